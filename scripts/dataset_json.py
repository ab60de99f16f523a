"""Write dataset.json for a folder of scans: classes, patients, and which scans are held out.

python -m scripts.dataset_json data/scans --class_names "['Liver','Spleen']" --patient "(.*)_s"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fire

from custom_components.data.dataset_json import count_parts, write_dataset_json
from custom_components.errors import InputError


def dataset_json(folder: str, class_names: str | Sequence[str] | None = None, patient: str | None = None) -> None:
    """Write FOLDER/dataset.json, or bring it up to date after scans were added: what it says of the others stays.

    Args:
        folder: the scans lie in its imagesTr, or directly in it, labels of the same names in labelsTr.
        class_names: of label values 1, 2, ...; else those that the file has. A pre-training needs none.
        patient: regular expression that finds the patient in the name of a scan: its first group, or all that it
            matches; else every scan is a patient.
    """
    names = [class_names] if isinstance(class_names, str) else class_names
    try:
        content = write_dataset_json(str(folder), names, None if patient is None else str(patient))
    except (InputError, OSError) as error:
        sys.exit(f"dataset_json: {error}")
    entries = content["training"]
    patients = len({entry.get("patient", entry["image"]) for entry in entries})
    print(f"{folder}/dataset.json: {len(entries)} scans of {patients} patients; {count_parts(content)}")


if __name__ == "__main__":
    fire.Fire(dataset_json)
