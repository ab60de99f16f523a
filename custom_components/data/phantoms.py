"""Procedural CT and MRI torsos with labelled organs: data for tests, tutorials and benchmarks where none is at hand.

The anatomy is defined in mm as implicit shapes in a frame of the body (LAS: +x is the patient's left, +y anterior, +z
superior, the origin in the middle of the trunk), and sampled at the positions that the affine gives the voxels. So any
orientation, spacing and oblique affine shows the same body. Affines are NIfTI's and lead to RAS: +x is the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

PHANTOM_CLASSES = ("Liver", "Spleen", "RightKidney", "LeftKidney", "Aorta", "Bladder")
RAS_TO_BODY = np.diag([-1.0, 1.0, 1.0, 1.0])

# mean CT (HU), its variation between scans; mean MRI (fat = 1), amplitude of the texture as a fraction of contrast
TISSUES = {
    "air": (-1000, 0, 0.0, 0.0),
    "fat": (-100, 5, 0.9, 0.3),
    "muscle": (52, 6, 0.34, 0.5),
    "lung": (-810, 40, 0.09, 1.0),
    "bone": (420, 60, 0.55, 3.0),
    "cortex": (760, 80, 0.12, 2.0),
    "disc": (80, 10, 0.4, 0.5),
    "cord": (30, 8, 0.3, 0.3),
    "bowel": (38, 12, 0.42, 1.4),
    "gas": (-850, 40, 0.03, 0.5),
    "heart": (120, 12, 0.38, 0.6),
    "stomach": (40, 15, 0.36, 1.2),
    "couch": (-600, 50, 0.0, 0.5),
    "Liver": (98, 10, 0.52, 0.6),
    "Spleen": (115, 10, 0.38, 0.5),
    "RightKidney": (128, 10, 0.40, 0.8),
    "LeftKidney": (128, 10, 0.40, 0.8),
    "Aorta": (130, 12, 0.30, 0.3),
    "Bladder": (12, 6, 0.22, 0.2),
}
TISSUE_INDEX = {name: index for index, name in enumerate(TISSUES)}
CT_TEXTURE_HU, MRI_TEXTURE = 14.0, 0.06

# centre and half axes (mm), for the body of average size
ELLIPSOIDS = {
    "Liver": ((-68, 12, 12), (80, 72, 66)),
    "left lobe": ((-5, 42, 24), (60, 34, 28)),
    "Spleen": ((90, -30, 14), (28, 44, 48)),
    "RightKidney": ((-62, -44, -38), (29, 25, 54)),
    "LeftKidney": ((62, -44, -30), (29, 25, 54)),
    "Bladder": ((0, 22, -98), (38, 32, 28)),
    "heart": ((18, 26, 92), (48, 44, 48)),
    "stomach": ((60, 32, 18), (36, 34, 42)),
}


def phantom_affine(
    shape: Sequence[int], spacing: ArrayLike, axcodes: str = "RAS", rotation: ArrayLike = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """The affine (4, 4), voxel indices to mm, of a scan whose centre is the origin of the patient's frame.

    Args:
        shape: voxels along each array axis.
        spacing: mm along each array axis.
        axcodes: where each array axis points, for example "LPS".
        rotation: angles about the patient's x, y and z axis, degrees.
    """
    axes, signs = nib.orientations.axcodes2ornt(axcodes).T
    directions = np.zeros((3, 3))
    directions[axes.astype(int), [0, 1, 2]] = signs
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rotation) @ directions @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def make_phantom(
    modality: str,
    seed: int | Sequence[int],
    shape: Sequence[int] = (96, 80, 72),
    spacing: Sequence[float] = (3.6, 3.1, 3.8),
    affine: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A torso with six organs of random shape, size, position and tilt.

    The same seed gives the same body in both modalities and on every grid; noise and contrast differ. The body is
    about 320 mm wide, 210 mm deep, and goes on beyond the default field of view in the direction of head and feet.

    Args:
        modality: "CT" (HU) or "MRI" (arbitrary unit, another one in each scan, with a bias field); any case.
        seed: decides the body and the noise.
        shape: voxels `(H, W, D)`.
        spacing: mm along each array axis, in RAS order; not used where `affine` is given.
        affine: `(4, 4)`, voxel indices to mm in the patient's RAS frame.

    Returns:
        image float32 `(H, W, D)`, label uint8 `(H, W, D)` (0 = background, k = `PHANTOM_CLASSES[k - 1]`), affine.

    Raises:
        ValueError: another modality, a shape that is not three positive numbers, a singular affine.
    """
    modality = checked_modality(modality)
    shape = tuple(int(size) for size in shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be three positive numbers but is {shape}")
    affine = phantom_affine(shape, spacing) if affine is None else np.array(affine, dtype=float)
    if affine.shape != (4, 4) or abs(np.linalg.det(affine)) < 1e-6:
        raise ValueError(f"affine must be an invertible 4 x 4 matrix but is {affine.tolist()}")
    seeds = [seed] if isinstance(seed, (int, np.integer)) else list(seed)
    body_affine = RAS_TO_BODY @ affine
    tissue = _anatomy(np.random.default_rng([*seeds, 0]), shape, body_affine)
    if modality == "CT":
        tissue = _add_couch(tissue, shape, body_affine)
    names = list(TISSUES)
    values = np.array([PHANTOM_CLASSES.index(name) + 1 if name in PHANTOM_CLASSES else 0 for name in names], np.uint8)
    acquire = _acquire_ct if modality == "CT" else _acquire_mri
    image = acquire(np.random.default_rng([*seeds, 1 + (modality == "MRI")]), tissue, body_affine)
    return image.astype(np.float32), values[tissue], affine


def checked_modality(modality: str) -> str:
    """`"CT"` or `"MRI"` in capitals; ValueError where it is neither."""
    if str(modality).upper() not in ("CT", "MRI"):
        raise ValueError(f'modality must be "CT" or "MRI" but is {modality!r}')
    return str(modality).upper()


def _rotation(degrees: ArrayLike) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=float))):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], affine: np.ndarray, wavelength: float, waves: int = 20
) -> np.ndarray:
    """Smooth random field, float32 `(H, W, D)`, mean 0 and variance 1, fixed to the patient and not to the grid.

    It is a sum of plane waves of random direction and about the given wavelength (mm). On a grid a plane wave is a
    product of three one-dimensional ones, so that the sum is one matrix product.
    """
    direction = rng.standard_normal((waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * (2 * np.pi / wavelength) * rng.uniform(0.6, 1.4, (waves, 1))
    phase = rng.uniform(0, 2 * np.pi, waves) + vectors @ affine[:3, 3]
    x, y, z = (
        np.exp(1j * np.outer(vectors @ affine[:3, axis], np.arange(shape[axis]))).astype(np.complex64)
        for axis in range(3)
    )
    x *= np.exp(1j * phase)[:, None]
    plane = (x[:, :, None] * y[:, None, :]).reshape(waves, -1)
    field = plane.real.T @ z.real - plane.imag.T @ z.imag
    return (field * np.float32(np.sqrt(2 / waves))).reshape(shape)


def _positions(shape: Sequence[int], affine: np.ndarray) -> list[np.ndarray]:
    """x, y and z (mm) of each voxel, float32 `(H, W, D)` each."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    return [sum((affine[row, i] * axes[i] for i in range(3)), affine[row, 3]).astype(np.float32) for row in range(3)]


def _radius(position: Sequence[np.ndarray], centre: Any, half: Any, tilt: np.ndarray) -> np.ndarray:
    """Distance from the centre of an ellipsoid in units of its surface: below 1 inside."""
    matrix = (np.diag(1 / np.asarray(half)) @ tilt.T).astype(np.float32)
    x, y, z = (p - np.float32(c) for p, c in zip(position, centre, strict=True))
    return np.sqrt(sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in matrix))


def _anatomy(rng: np.random.Generator, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Tissue indices, uint8 `(H, W, D)`."""
    position = _positions(shape, affine)
    stature = rng.uniform((0.92, 0.92, 0.94), (1.04, 1.04, 1.04))
    # positions in the body of average size, gently warped: organs bend with the body
    x, y, z = (
        p / np.float32(s) + 4 * smooth_noise(rng, shape, affine, 150) for p, s in zip(position, stature, strict=True)
    )
    tissue = np.zeros(tuple(shape), np.uint8)

    def paint(name: str, where: np.ndarray) -> None:
        tissue[where] = TISSUE_INDEX[name]

    # the trunk: a rounded box in cross-section, narrower at the waist; depth is mm below the skin
    waist = 1 - rng.uniform(0.04, 0.1) * np.exp(-(((z + 35) / 50) ** 2))
    round_radius = ((np.abs(x) / (152 * waist)) ** 2.4 + (np.abs(y) / (100 * waist)) ** 2.4) ** (1 / 2.4)
    depth = (1 - round_radius) * 122
    fat = rng.uniform(9, 20) * (1 + 0.25 * np.abs(x) / 150 + 0.15 * smooth_noise(rng, shape, affine, 120))
    body, wall = depth > 0, depth - fat
    inside = wall > 13
    paint("fat", body)
    paint("muscle", wall > 0)
    paint("fat", inside)

    dome = 44 + 22 * np.exp(-(((np.abs(x) - 66) / 48) ** 2) - ((y - 8) / 62) ** 2) - 8 * (x > 0) - 0.12 * (60 - y)
    chest = inside & (z > dome)
    abdomen = inside & (z < dome - 3)
    loops, gas = smooth_noise(rng, shape, affine, 48), smooth_noise(rng, shape, affine, 40)
    bowel = abdomen & (z < dome - 55) & (z > -100) & (np.abs(loops) > 0.45) & (y > -30)
    paint("bowel", bowel)
    paint("gas", bowel & (np.abs(loops) > 1.1) & (gas > 0.9) & (y > 15))
    paint("muscle", abdomen & (z < -82) & ((x / 58) ** 2 + ((y - 12) / 56) ** 2 > 1))
    lungs = chest & (np.abs(x - 4) > 26 + 8 * np.sin(z / 30)) & (z < 190)
    paint("muscle", chest & ~lungs & (y < 10) & (np.abs(x) < 26))
    paint("lung", lungs)
    for side in (-1, 1):
        paint("muscle", body & (((x - side * 31) / 25) ** 2 + ((y + 74) / 17) ** 2 < 1) & (wall > 0))
        paint("muscle", inside & (((x - side * (34 - 0.12 * z)) / 15) ** 2 + ((y + 44) / 16) ** 2 < 1) & (z < 10))

    _paint_bones(rng, paint, (x, y, z), wall, inside)
    tissue_of_organs = _organs(rng, (x, y, z), shape, affine)
    soft = (tissue_of_organs > 0) & ~np.isin(
        tissue, [TISSUE_INDEX[n] for n in ("air", "bone", "cortex", "disc", "cord")]
    )
    # organs keep to their cavity: the heart above the diaphragm, the others below it
    heart = tissue_of_organs == TISSUE_INDEX["heart"]
    aorta = tissue_of_organs == TISSUE_INDEX["Aorta"]
    soft &= inside & np.where(heart, z > dome - 6, aorta | (z < dome - 3))
    tissue[soft] = tissue_of_organs[soft]
    return tissue


def _paint_bones(rng, paint, position: Sequence[np.ndarray], wall: np.ndarray, inside: np.ndarray) -> None:
    """Spine with canal and processes, ribs, breast bone and pelvis."""
    x, y, z = position
    x_spine = x - rng.uniform(-4, 4) * np.sin(z / rng.uniform(60, 90))
    period = rng.uniform(31, 36)
    level = np.mod(z + rng.uniform(0, period), period)
    body = np.sqrt((x_spine / 20) ** 2 + ((y + 47) / 16) ** 2)
    canal = np.hypot(x_spine, y + 71)
    paint("cortex", (canal < 13) | ((np.abs(x_spine) < 3.5) & (y < -76) & (y > -92) & (level > 6)))
    transverse = (
        (np.abs(x_spine) < 40) & (np.abs(y + 70 + 0.1 * np.abs(x_spine)) < 5) & (np.abs(level - period / 2) < 6)
    )
    paint("bone", transverse)
    paint("cortex", body < 1)
    paint("bone", (body < 0.84) & (level > 10))
    paint("disc", (body < 1) & (level < 8))
    paint("cord", canal < 8)
    # ribs run down from the spine to the front, in the wall of the chest
    course = np.mod(z + 0.45 * y - 6, 29)
    ribs = (np.abs(wall - 9) < 4.5) & (course < 11) & (z > -12 - 0.45 * y) & (y < 78) & (np.abs(x) > 18)
    paint("cortex", ribs)
    paint("bone", ribs & (np.abs(wall - 9) < 2) & (np.abs(course - 5.5) < 3))
    paint("bone", (np.abs(wall - 8) < 5) & (np.abs(x) < 17) & (y > 0) & (z > 48))
    for side in (-1, 1):
        tilt = _rotation((12, 0, side * -28))
        wing = _radius(position, (side * 82, -22, -112), (9, 52, 46), tilt)
        paint("cortex", (wing < 1) & (wall > 2))
        paint("bone", (wing < 0.75) & (wall > 2))
    paint("bone", inside & (np.hypot(x / 42, (y + 52) / 15) < 1) & (z < -102))


def _organs(
    rng: np.random.Generator, position: Sequence[np.ndarray], shape: Sequence[int], affine: np.ndarray
) -> np.ndarray:
    """Tissue index of the organ at each voxel, 0 where none; where two compete, the one whose middle is nearer wins."""
    x, y, z = position
    radius: dict[str, np.ndarray] = {}
    for name, (centre, half) in ELLIPSOIDS.items():
        moved = np.array(centre) + rng.uniform(-6, 6, 3)
        sized = np.array(half) * rng.uniform(0.86, 1.12, 3)
        tilt = _rotation(rng.uniform(-14, 14, 3) + _resting_tilt(name))
        warp = 0.09 * smooth_noise(rng, shape, affine, 55) + 0.03 * smooth_noise(rng, shape, affine, 22)
        radius[name] = _radius(position, moved, sized, tilt) * (1 + warp)
        if name.endswith("Kidney"):  # the sinus: fat and vessels that enter from the middle
            side = np.sign(centre[0])
            sinus = _radius(position, moved - (side * 18, -3, 0), (12, 9, 17), tilt)
            radius[name] = np.maximum(radius[name], 1.05 * (sinus < 1))
    radius["Liver"] = np.minimum(radius["Liver"], radius.pop("left lobe"))
    bend = rng.uniform(-5, 5, 2).tolist()
    end = rng.uniform(-72, -58)
    middle_x = 9 + bend[0] * np.sin(z / 45)
    middle_y = -17 + bend[1] * np.cos(z / 55)
    tube = np.hypot(x - middle_x, y - middle_y) / rng.uniform(10.5, 12.5)
    radius["Aorta"] = np.where(z > end, tube, 2)
    result = np.zeros(tuple(shape), np.uint8)
    nearest = np.ones(tuple(shape), np.float32)
    for name, value in radius.items():
        closer = value < nearest
        result[closer] = TISSUE_INDEX[name]
        nearest = np.minimum(nearest, value)
    return result


def _resting_tilt(name: str) -> tuple[float, float, float]:
    """How an organ lies in the average body: degrees about x, y and z."""
    return {
        "RightKidney": (8.0, 12.0, 0.0),
        "LeftKidney": (8.0, -12.0, 0.0),
        "Spleen": (-20.0, 10.0, 15.0),
        "heart": (0.0, 25.0, -25.0),
        "stomach": (0.0, 20.0, 0.0),
    }.get(name, (0.0, 0.0, 0.0))


def _add_couch(tissue: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """The table of a CT scanner: a thin slab below the back."""
    x, y, _ = _positions(shape, affine)
    couch = (np.abs(y - 4e-4 * x**2 + 119) < 4) & (np.abs(x) < 165) & (tissue == 0)
    return np.where(couch, np.uint8(TISSUE_INDEX["couch"]), tissue)


def _acquire_ct(rng: np.random.Generator, tissue: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """HU, clipped to [-1024, 3071]."""
    mean, spread, _, texture = (np.array(column, np.float32) for column in zip(*TISSUES.values(), strict=True))
    mean = mean + spread * rng.uniform(-1, 1, len(mean)).astype(np.float32)
    mean[TISSUE_INDEX["LeftKidney"]] = mean[TISSUE_INDEX["RightKidney"]]
    grain = smooth_noise(rng, tissue.shape, affine, 18, waves=40)
    image = ndimage.gaussian_filter(mean[tissue] + CT_TEXTURE_HU * texture[tissue] * grain, 0.5)
    image += rng.normal(0, rng.uniform(11, 18), tissue.shape).astype(np.float32)
    return np.clip(image, -1024, 3071)


def _acquire_mri(rng: np.random.Generator, tissue: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Arbitrary unit, not negative: contrast of a T1-weighted scan, bias field, Rician noise."""
    _, _, mean, texture = (np.array(column, np.float32) for column in zip(*TISSUES.values(), strict=True))
    mean = mean * rng.uniform(0.9, 1.1, len(mean)).astype(np.float32)
    mean[TISSUE_INDEX["LeftKidney"]] = mean[TISSUE_INDEX["RightKidney"]]
    grain = smooth_noise(rng, tissue.shape, affine, 18, waves=40)
    clean = ndimage.gaussian_filter(mean[tissue] * (1 + MRI_TEXTURE * np.minimum(texture, 1.5)[tissue] * grain), 0.5)
    clean *= np.exp(0.18 * smooth_noise(rng, tissue.shape, affine, 500))
    sigma = np.float32(rng.uniform(0.015, 0.03))
    noise = sigma * rng.standard_normal((2, *tissue.shape), dtype=np.float32)
    return np.hypot(clean + noise[0], noise[1]) * np.float32(np.exp(rng.uniform(np.log(150), np.log(2500))))
