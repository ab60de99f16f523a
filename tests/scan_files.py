"""Writes small scans in other formats than NIfTI byte by byte, without the libraries that read them."""

import struct
from pathlib import Path

import numpy as np

CT = "1.2.840.10008.5.1.4.1.1.2"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SLOPE, INTERCEPT = 2, -10


def rotation(angles=(0.2, -0.3, 0.4)):
    """An oblique orientation (3, 3), columns of length 1."""
    x, y, z = ((np.cos(a), np.sin(a)) for a in angles)
    about_x = np.array([[1, 0, 0], [0, x[0], -x[1]], [0, x[1], x[0]]])
    about_y = np.array([[y[0], 0, y[1]], [0, 1, 0], [-y[1], 0, y[0]]])
    about_z = np.array([[z[0], -z[1], 0], [z[1], z[0], 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


AXES, SPACING, ORIGIN = rotation(), np.array([0.8, 0.9, 2.5]), np.array([10.0, -20.0, 30.0])  # LPS, mm


def volume(shape=(7, 6, 5)):
    return np.random.default_rng(0).integers(-500, 500, shape).astype(np.int16)


def ras_positions(indices):
    """Positions (N, 3) in mm, RAS, of voxel indices (N, 3) of a scan written here."""
    return (ORIGIN + (np.asarray(indices) * SPACING) @ AXES.T) * [-1, -1, 1]


def text(values, separator=" "):
    return separator.join(f"{value:.10g}" for value in values)


def write_nrrd(path, voxels=None, directions=None, kind="short", more=""):
    voxels = volume() if voxels is None else voxels
    directions = AXES * SPACING if directions is None else directions
    header = f"NRRD0004\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\n{more}"
    vectors = " ".join(f"({text(column, ',')})" for column in directions.T)
    header += f"sizes: {text(voxels.shape)}\nspace directions: {vectors}\n"
    header += f"space origin: ({text(ORIGIN, ',')})\nendian: little\nencoding: raw\n\n"
    path.write_bytes(header.encode() + voxels.tobytes(order="F"))
    return path


def write_mha(path, voxels=None, more=""):
    voxels = volume() if voxels is None else voxels
    header = f"ObjectType = Image\nNDims = {voxels.ndim}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{more}"
    if voxels.ndim == 3:
        header += f"TransformMatrix = {text(AXES.T.ravel())}\nOffset = {text(ORIGIN)}\n"
        header += f"ElementSpacing = {text(SPACING)}\n"
    header += f"DimSize = {text(voxels.shape)}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + voxels.tobytes(order="F"))
    return path


def element(tag, kind, value):
    """A DICOM data element in explicit little endian."""
    value = {"US": lambda: struct.pack("<H", value), "UL": lambda: struct.pack("<I", value)}.get(
        kind, lambda: value if isinstance(value, bytes) else value.encode()
    )()
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if kind in ("OB", "OW") else struct.pack("<H", len(value))
    return struct.pack("<HH", *tag) + kind.encode() + length + value


def write_dicom(path, elements, storage_class=CT):
    meta = element((2, 1), "OB", b"\0\1") + element((2, 2), "UI", storage_class) + element((2, 3), "UI", "1.2.3.4")
    meta += element((2, 0x10), "UI", "1.2.840.10008.1.2.1")
    body = b"".join(element(*e) for e in [((8, 0x16), "UI", storage_class), *elements])
    Path(path).write_bytes(b"\0" * 128 + b"DICM" + element((2, 0), "UL", len(meta)) + meta + body)
    return path


def write_slice(path, plane, position, axes=AXES, spacing=SPACING, series="1.2.3", description="Chest", without=()):
    """One CT slice; `plane` is (columns, rows); stored values are those of `plane` before slope and intercept."""
    columns, rows = plane.shape
    elements = [
        ((0x08, 0x18), "UI", f"{series}.{abs(hash(str(path))) % 10**9}"),
        ((0x08, 0x60), "CS", "CT"),
        ((0x08, 0x103E), "LO", description),
        ((0x18, 0x50), "DS", "1"),
        ((0x20, 0x0D), "UI", "1.2"),
        ((0x20, 0x0E), "UI", series),
        ((0x20, 0x32), "DS", text(position, "\\")),
        ((0x20, 0x37), "DS", text([*axes[:, 0], *axes[:, 1]], "\\")),
        ((0x28, 0x02), "US", 1),
        ((0x28, 0x04), "CS", "MONOCHROME2"),
        ((0x28, 0x10), "US", rows),
        ((0x28, 0x11), "US", columns),
        ((0x28, 0x30), "DS", text([spacing[1], spacing[0]], "\\")),  # between rows first
        ((0x28, 0x100), "US", 16),
        ((0x28, 0x101), "US", 16),
        ((0x28, 0x102), "US", 15),
        ((0x28, 0x103), "US", 1),
        ((0x28, 0x1052), "DS", str(INTERCEPT)),
        ((0x28, 0x1053), "DS", str(SLOPE)),
        ((0x7FE0, 0x10), "OW", plane.astype("<i2").tobytes(order="F")),
    ]
    return write_dicom(path, [e for e in elements if e[0] not in without])


def write_series(folder, voxels=None, suffix="", **settings):
    """A series whose file names are in another order than its slices."""
    voxels = volume() if voxels is None else voxels
    folder.mkdir(parents=True, exist_ok=True)
    count = voxels.shape[2]
    return [
        write_slice(folder / f"IM{count - k:03}{suffix}", voxels[:, :, k], slice_position(k), **settings)
        for k in range(count)
    ]


def slice_position(k):
    return ORIGIN + AXES[:, 2] * SPACING[2] * k
