"""Lists of scans: read from folders, with every fault of the files found before anything expensive starts."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .dicom import holds_dicom
from .headers import ITK_SUFFIXES, NIFTI_SUFFIXES, DataError, Grid, is_placed
from .loading import AFFINE_TOLERANCE, distance_of_grids, scan_grid

logger = logging.getLogger(__name__)

SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
LABELS_FORM = '"labels": {"0": "background", "1": "Liver", ...}'
TRAINING_FORM = '"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, ...]'

GIVEN_PARTS = ("train", "validation", "test")
UNLABELLED = "without_labels"
RESULTS = ("_seg", "_features")  # what inference puts behind the name of a scan
CONVERT = "dcm2niix -z y -f %i_s%s -o OUTPUT/imagesTr INPUT"

Folders = str | os.PathLike | Sequence[str | os.PathLike]


def read_datalist(
    dataset_dir: Folders, class_names: Sequence[str] | None = None, labelled: bool = True
) -> list[dict[str, Any]]:
    """The scans of one or several folders, checked.

    A folder has a `dataset.json` as in the Medical Segmentation Decathlon (its "training" list is read), or it is
    plain: the NIfTI files in its `imagesTr` (with `labelsTr`), else those directly inside it, but not `a_seg` and
    `a_features` beside `a`. Only headers are read: damaged voxels are found when a scan is loaded. Hidden files, such
    as the `._*` of macOS, are ignored.

    Args:
        dataset_dir: a folder, or several: a list, or a string with commas or a list literal, as a command line gives
            it. A folder named twice is read once.
        class_names: the classes that label values 1, 2, ... must stand for. None takes them from `dataset.json`, which
            must then be the same in all folders. Not used where `labelled` is false.
        labelled: whether to read the scans with labels, and leave out those without, with a warning where a folder has
            both. If false, all scans are read, and labels are neither read nor checked.

    Returns:
        Items, folder by folder: `image` (path), `case` (file name without .nii or .nii.gz), `patient` (the entry's in
        `dataset.json`, else the case), `folder` (as given), `scan` (index in the list), `part` (where the entry in
        `dataset.json` has one) and, where labelled, `label` (path) and `annotated_labels` (label values drawn in that
        scan; all where `dataset.json` does not say). Scans of one patient, such as CT and MRI under the same name in
        two folders, land on the same side of every split. Where a folder has scans with and without labels, the latter
        are a `folder` of their own, so that a split of all holds out the same labelled scans as a split of the labelled
        ones.

    Raises:
        DataError: `class_names` that are no list; or one line for each fault: a folder without scans, a bad
            `dataset.json`, other classes than `class_names`, missing or unreadable files, scans that are not 3D (a
            fourth axis of 1 is fine), an image and a label of different shape or more than a tenth of a voxel apart,
            two scans of one name in a folder, a label whose image is not listed.
    """
    faults: list[str] = []
    items: list[dict[str, Any]] = []
    if isinstance(class_names, str):
        raise DataError(
            f"class_names: a list of names was expected but the text {class_names!r} came; "
            f"give --class_names \"['{class_names}']\""
        )
    names = None if class_names is None else [str(name) for name in class_names]
    for folder in _folders(dataset_dir):
        try:
            listed = _listed_scans(folder)
            entries, without = _apart(folder, listed)
            if labelled:
                names = _checked_names(folder, names)
                _require_labels(folder, listed)
            else:
                _tell_not_listed(folder, listed)
        except DataError as error:
            faults.append(str(error))
            continue
        if labelled:
            items += items_of(folder, entries, len(names or []), labelled, faults)
            faults += _lonely_labels(folder, listed)
            if without:
                logger.warning("%s: %d of its %d scans have no label: left out", folder, len(without), len(listed))
        else:
            items += items_to_split(folder, listed, faults)
    return checked(items, faults)


def items_to_split(folder: Path, entries: Sequence[Any], faults: list[str] | None = None) -> list[dict[str, Any]]:
    """The items of `read_datalist` for all entries of a folder, without their labels; appends to `faults`."""
    others = {_path(folder, _image_of(entry)) for entry in _apart(folder, entries)[1]}
    return [
        item | ({"folder": str(folder / UNLABELLED)} if item["image"] in others else {})
        for item in items_of(folder, entries, 0, False, [] if faults is None else faults)
    ]


def items_of(
    folder: Path, entries: Iterable[Any], num_classes: int, labelled: bool, faults: list[str]
) -> list[dict[str, Any]]:
    """Entries in the form of `dataset.json` as the items that `read_datalist` describes; appends to `faults`."""
    found = [_item(folder, entry, num_classes, labelled, faults) for entry in entries]
    complete = [item for item in found if item is not None]
    faults += [clash for clash in _name_clashes(complete) if clash is not None]
    return complete


def checked(items: Sequence[dict[str, Any]], faults: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The items with their index in the list, headers checked; all faults are raised as one `DataError`."""
    faults = [*faults, *(fault for item in items for fault in _header_faults(item["image"], item.get("label")))]
    if faults:
        raise DataError("\n".join(faults))
    _tell_unplaced(items)
    return [item | {"scan": index} for index, item in enumerate(items)]


def list_scans(path: Folders) -> list[dict[str, str]]:
    """The scans to run inference on, each checked; what is wrong with one does not keep the others from the list.

    Args:
        path: one NIfTI, NRRD or MetaImage file, or a folder: the "training" and "test" images of its `dataset.json`,
            else the files directly inside, else those in `imagesTr` and `imagesTs`. What inference wrote beside its
            scan (`a_seg` beside `a`, or `a_features`) is left out. The DICOM files directly inside are
            one scan, and so are those of each sub-folder at any depth, such as patient/study/series. Several files or
            folders come in the forms that `read_datalist` takes.

    Returns:
        Items with `image` (path of the file, or of the folder of a DICOM series), `case` (file name without suffix, or
        name of that folder) and, where the scan cannot be used, `fault` (a sentence): its header is not that of a 3D
        scan, its DICOM series is not as `series_of` wants it, or another scan has the same case name. `LoadScand`
        raises the fault.

    Raises:
        DataError: no such file or folder, no scan in it, or a bad `dataset.json`.
    """
    found = [image for source in _folders(path) for image in _scans_in(source)]
    made = _results_among(found)
    items = [{"image": image, "case": case_name(image)} for image in found if image not in made]
    for item in items:
        for fault in _header_faults(item["image"]):
            item["fault"] = fault
    sound = [item for item in items if "fault" not in item]
    for item, clash in zip(sound, _name_clashes(sound)):
        if clash is not None:
            item["fault"] = clash
    _tell_unplaced([item for item in items if "fault" not in item])
    return items


def class_names_of(dataset_dir: Folders) -> list[str]:
    """The classes in `dataset.json` of a folder, or of the first of several, in the order of their label values.

    The background is not among them. Whether other folders have the same classes is for `read_datalist` to check.

    Raises:
        DataError: no readable `dataset.json`, no "labels" in it, values other than 1, 2, ... C, or a name given twice.
    """
    file = _folders(dataset_dir)[0] / "dataset.json"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file, and it is needed for the names of the classes; write it with {LABELS_FORM}"
        )
    labels = read_json(file).get("labels")
    if not isinstance(labels, Mapping):
        raise DataError(f'{file}: the key "labels" is missing or not an object; add {LABELS_FORM}')
    try:
        names = {int(value): name for value, name in labels.items()}
    except ValueError:
        raise DataError(
            f"{file}: keys of labels must be whole numbers but are {list(labels)}; write {LABELS_FORM}"
        ) from None
    names.pop(0, None)
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        raise DataError(
            f"{file}: label values must be 1, 2, ... without a gap but are {sorted(names)}; renumber the labels"
        )
    ordered = [str(names[value]) for value in sorted(names)]
    if len(set(ordered)) < len(ordered):
        raise DataError(f"{file}: every class needs a name of its own but the labels are {ordered}; rename them")
    return ordered


def case_name(path: str | os.PathLike) -> str:
    """File name without the suffix of a scan's format, such as .nii.gz; the name of the folder for a DICOM series.

    In Unicode's composed form (NFC): of two files, an image and its label, one may come from macOS, which takes the
    letter ä for two.
    """
    name = unicodedata.normalize("NFC", os.path.basename(path))
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def output_name(metadict: Mapping, saver: Any) -> dict[str, Any]:
    """For `SaveImage(output_name_formatter=...)`: the file's name starts with the `case` of `list_scans`.

    MONAI cuts a name at its last dot, which is wrong for the folder of a DICOM series: it would take `1.2.840` and
    `1.2.841` for the same.
    """
    # MONAI takes off exactly the suffix that is put on here
    return {"subject": case_name(metadict["filename_or_obj"]) + ".nii.gz", "idx": metadict.get("patch_index")}


def _folders(dataset_dir: Any) -> list[Path]:
    """One or several folders from what a configuration or a command line gives."""
    if isinstance(dataset_dir, str) and not os.path.exists(dataset_dir):
        text = dataset_dir.strip()
        bracketed = text[:1] in ("[", "(")
        try:
            dataset_dir = ast.literal_eval(text) if bracketed else text.split(",")
        except (SyntaxError, ValueError):  # a list of paths without quotes
            dataset_dir = text.strip("[]()").split(",")
        dataset_dir = [str(part).strip().strip("'\"") for part in dataset_dir if str(part).strip()]
    if isinstance(dataset_dir, (str, os.PathLike)):
        dataset_dir = [dataset_dir]
    if not isinstance(dataset_dir, (list, tuple)) or not dataset_dir:
        raise DataError(f"dataset_dir must be a folder or a list of folders but is {dataset_dir!r}; name a folder")
    # a dictionary keeps the order and drops what is named twice
    return list({os.path.realpath(Path(str(f)).expanduser()): Path(str(f)).expanduser() for f in dataset_dir}.values())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: not valid JSON ({error}); correct it or remove it to read the folder as it is"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: must hold a JSON object but holds a {type(content).__name__}; write {{{TRAINING_FORM}}}"
        )
    return content


def _entries(file: Path, content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content[key]
    if not isinstance(entries, list):
        raise DataError(f'{file}: "{key}" must be a list but is a {type(entries).__name__}; write {TRAINING_FORM}')
    return entries


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    if not folder.is_dir():
        return []
    # a link that leads nowhere is a scan that cannot be read, and not none
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = (entry for entry in entries if entry.is_file() or entry.is_symlink() and not entry.exists())
    return sorted(str(file) for file in files if file.name.lower().endswith(suffixes))


def _nifti_files(folder: Path) -> list[str]:
    return _files(folder, NIFTI_SUFFIXES)


def _scans_inside(folder: Path) -> list[str]:
    """Files of any format directly inside, and folders of DICOM series: the folder itself and those at any depth."""
    # "." has no name that could name the case
    series = [os.path.abspath(folder)] if holds_dicom(folder) else []
    apart = {folder / "imagesTr", folder / "imagesTs"}  # taken where there is nothing else
    for parent, names, _ in os.walk(folder):
        # what is taken out of the list is not walked into
        names[:] = [name for name in names if not name.startswith(".") and Path(parent, name) not in apart]
        series += [str(path) for path in (Path(parent, name) for name in names) if holds_dicom(path)]
    return sorted(_files(folder, SUFFIXES) + series)


def _listed_scans(folder: Path) -> list[Any]:
    """The training entries of a folder, in the form of `dataset.json`; paths may be relative to the folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check dataset_dir")
    file = folder / "dataset.json"
    if file.is_file():
        content = read_json(file)
        if "training" not in content:
            raise DataError(f'{file}: the key "training" is missing; add {TRAINING_FORM}')
        entries = _entries(file, content, "training")
        if not entries:
            raise DataError(f'{file}: no scan found, the list "training" is empty; add {TRAINING_FORM}')
        return entries
    return entries_of_files(folder)


def entries_of_files(folder: Path) -> list[dict[str, str]]:
    """The entries of a folder in the form of `dataset.json`, from its files alone; paths are relative to it.

    Raises:
        DataError: no NIfTI scan in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    images = _nifti_files(folder / "imagesTr") or _nifti_files(folder)
    if not images:
        others = _scans_inside(folder) or _scans_inside(folder / "imagesTr")
        if others:
            raise DataError(
                f"{folder}: NIfTI scans were expected but {others[0]} is none, and other formats are read by inference "
                f"alone; convert them into one folder, DICOM for instance with: {CONVERT}"
            )
        raise DataError(
            f"{folder}: no scan found; looked for dataset.json, imagesTr/*.nii.gz, imagesTr/*.nii, *.nii.gz and *.nii"
        )
    _tell_other_formats(Path(images[0]).parent)
    images = [os.path.relpath(image, folder) for image in _without_results(folder, images)]
    labels = {case_name(label): os.path.relpath(label, folder) for label in _nifti_files(folder / "labelsTr")}
    return [{"image": i, "label": labels[case_name(i)]} if case_name(i) in labels else {"image": i} for i in images]


def _tell_other_formats(folder: Path) -> None:
    """Warn of scans beside the NIfTI files of a folder that only inference would read."""
    others = _files(folder, ITK_SUFFIXES)
    others += [str(path) for path in (folder, *sorted(folder.iterdir())) if path.is_dir() and holds_dicom(path)]
    if others:
        logger.warning(
            "%s: scans that are no NIfTI files are not used: %d, such as %s; convert them, DICOM for instance with: %s",
            folder,
            len(others),
            os.path.basename(others[0]),
            CONVERT,
        )


def _results_among(images: Sequence[str]) -> set[str]:
    """What inference, or another program, wrote beside a scan: `a_seg` where there is `a`."""
    cases = {case_name(image) for image in images}
    made = {case + suffix for case in cases for suffix in RESULTS}
    return {image for image in images if case_name(image) in made}


def _without_results(folder: Path, images: Sequence[str]) -> list[str]:
    made = _results_among(images)
    if made:
        name = os.path.basename(min(made))
        logger.warning("%s: left out as labels or features, and no scans: %d, such as %s", folder, len(made), name)
    return [image for image in images if image not in made]


def _apart(folder: Path, entries: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The entries of scans without labels apart from the others; all are others where no scan has a label.

    An entry whose label was forgotten, its file is there, and one that names no image are for `_item` to tell.
    """
    labels = {case_name(label) for label in _nifti_files(folder / "labelsTr")}
    others: list[Any] = []
    without: list[Any] = []
    labelled = False
    for entry in entries:
        image, has_label = _image_of(entry), isinstance(entry, Mapping) and entry.get("label") is not None
        labelled |= isinstance(image, str) and has_label
        unclear = not isinstance(image, str) or case_name(image) in labels
        (others if has_label or unclear else without).append(entry)
    return (others, without) if labelled else (list(entries), [])


def _image_of(entry: Any) -> Any:
    return entry.get("image") if isinstance(entry, Mapping) else entry


def _path(folder: Path, file: str) -> str:
    return os.path.normpath(folder / file)


def _require_labels(folder: Path, entries: Sequence[Any]) -> None:
    if not (folder / "dataset.json").is_file() and not _nifti_files(folder / "labelsTr"):
        name = os.path.basename(_image_of(entries[0]))
        raise DataError(f"{folder}: none of its {len(entries)} scans has a label; add them, such as labelsTr/{name}")


def _tell_not_listed(folder: Path, entries: Sequence[Any]) -> None:
    """Warn of scans that `dataset.json` does not list: a list of the labelled ones alone shortens a pre-training."""
    listed = {case_name(image) for image in map(_image_of, entries) if isinstance(image, str)}
    others = [image for image in _nifti_files(folder / "imagesTr") if case_name(image) not in listed]
    if others:
        logger.warning(
            "%s: scans in imagesTr that it does not list are not used: %d, such as %s; add them with "
            "scripts.dataset_json, or leave them",
            folder / "dataset.json",
            len(others),
            os.path.basename(others[0]),
        )


def _scans_in(folder: Path) -> list[str]:
    """Images of a folder to run inference on; a file is its own."""
    if not folder.is_dir():
        if folder.exists():
            return [str(folder)]
        raise DataError(f"{folder}: no such file or folder; check the path")
    file = folder / "dataset.json"
    if file.is_file():
        content = read_json(file)
        if "training" not in content and "test" not in content:
            raise DataError(f'{file}: the keys "training" and "test" are missing; add {TRAINING_FORM}')
        entries = [entry for key in ("training", "test") if key in content for entry in _entries(file, content, key)]
        images, faults = [], []
        for entry in entries:
            image = entry.get("image") if isinstance(entry, Mapping) else entry
            if isinstance(image, str):
                images.append(os.path.normpath(folder / image))
            else:
                faults.append(f"{file}: the entry {entry!r} names no image file; write {TRAINING_FORM}")
        if faults:
            raise DataError("\n".join(faults))
    else:
        images = _scans_inside(folder) or _scans_inside(folder / "imagesTr") + _scans_inside(folder / "imagesTs")
    if not images:
        raise DataError(
            f"{folder}: no scan found; looked for dataset.json, {', '.join('*' + suffix for suffix in SUFFIXES)}, and "
            "DICOM files directly inside or in sub-folders, also in imagesTr and imagesTs"
        )
    return images


def _checked_names(folder: Path, expected: list[str] | None) -> list[str]:
    """The classes of a folder; they must be the expected ones, where there are any."""
    if not (folder / "dataset.json").is_file():
        if expected is None:
            raise DataError(f"{folder}: the names of the classes are unknown; add a dataset.json with {LABELS_FORM}")
        return expected
    names = class_names_of(folder)
    if expected is not None and names != expected:
        raise DataError(
            f"{folder / 'dataset.json'}: label values 1, 2, ... must be {expected} but are {names}; "
            "rename or renumber the labels"
        )
    return names


def _item(folder: Path, entry: Any, num_classes: int, labelled: bool, faults: list[str]) -> dict[str, Any] | None:
    """An entry of `dataset.json` as an item, or None with its fault appended to `faults`."""
    image = _image_of(entry)
    if not isinstance(image, str):
        faults.append(f"{folder / 'dataset.json'}: the entry {entry!r} names no image file; write {TRAINING_FORM}")
        return None
    image = _path(folder, image)
    case = case_name(image)
    patient = entry.get("patient", case) if isinstance(entry, Mapping) else case
    if type(patient) not in (str, int) or patient == "":
        faults.append(f"{image}: patient must be a name or a number but is {patient!r}; correct it or leave it out")
        return None
    item: dict[str, Any] = {"image": image, "case": case, "patient": str(patient), "folder": str(folder)}
    if isinstance(entry, Mapping) and "part" in entry:
        if entry["part"] not in GIVEN_PARTS:
            faults.append(
                f"{image}: part must be one of {', '.join(GIVEN_PARTS)} but is {entry['part']!r}; correct it or leave "
                "it out"
            )
            return None
        item["part"] = entry["part"]
    if not labelled:
        return item
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(label, str):
        faults.append(
            f"{image}: a label was expected but there is none; add labelsTr/{os.path.basename(image)}, and where there "
            'is a dataset.json "label" to its entry, or remove it'
        )
        return None
    item["label"] = _path(folder, label)
    classes = list(range(1, num_classes + 1))
    annotated = entry.get("annotated_labels", classes)
    # True is an int to Python and would pass for class 1
    if not isinstance(annotated, list) or any(type(a) is not int or a not in classes for a in annotated):
        faults.append(
            f"{image}: annotated_labels must be a list of values from 1 to {num_classes} but is {annotated!r}"
        )
        return None
    item["annotated_labels"] = sorted(set(annotated))
    return item


def _name_clashes(items: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """For each item, the fault that an earlier one has the same case name, or None."""
    first: dict[str, str] = {}
    faults: list[str | None] = []
    for item in items:
        other = first.setdefault(item["case"], item["image"])
        fault = f"{item['image']}: has the same case name as {other}; rename or remove one of the two"
        faults.append(None if other is item["image"] else fault)
    return faults


def _lonely_labels(folder: Path, entries: Iterable[Any]) -> list[str]:
    """Labels in `labelsTr` that belong to no entry, neither by path nor by name."""
    values = (entry.values() if isinstance(entry, Mapping) else [entry] for entry in entries)
    named = [value for value in itertools.chain.from_iterable(values) if isinstance(value, str)]
    paths, cases = {os.path.realpath(folder / value) for value in named}, {case_name(value) for value in named}
    labels = _nifti_files(folder / "labelsTr")
    lonely = [label for label in labels if os.path.realpath(label) not in paths and case_name(label) not in cases]
    return [f"{label}: label without an image in the list; add its image or remove the label" for label in lonely]


def _header_faults(image: str, label: str | None = None) -> list[str]:
    """What is wrong with the headers of an image and, where given, its label."""
    faults: list[str] = []
    grids: list[Grid] = []
    for path in (image, label):
        try:
            grids += [scan_grid(path)] if path is not None else []
        except DataError as error:
            faults.append(str(error))
    if faults or label is None:
        return faults
    (shape, affine), (label_shape, label_affine) = grids
    if shape != label_shape:
        return [f"{image}: image is {shape} but label is {label_shape}; resample one to the other"]
    voxels, distance = distance_of_grids((shape, affine), (label_shape, label_affine))
    if voxels > AFFINE_TOLERANCE:
        silent = [path for path in (image, str(label)) if not is_placed(path)]
        reason = f", and {silent[0]} does not say where it lies (qform_code and sform_code are 0)" if silent else ""
        return [
            f"{image}: image and label lie apart by up to {distance:.3g} mm according to their affines{reason}; copy "
            "the image's header to the label if it was drawn on this scan, else resample one to the other"
        ]
    return []


def _tell_unplaced(items: Sequence[Mapping[str, Any]]) -> None:
    """Warn of scans whose left and right are a guess."""
    silent = [item["image"] for item in items if not is_placed(item["image"])]
    if silent:
        logger.warning(
            "%d of %d scans do not say how they lie in the patient (qform_code and sform_code are 0), such as %s: "
            "their first axis is taken to run from right to left; see in a viewer if it does, or convert them again",
            len(silent),
            len(items),
            silent[0],
        )
