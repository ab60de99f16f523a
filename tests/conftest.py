import os
from pathlib import Path

import pytest

from custom_components.data import write_phantoms


@pytest.fixture(scope="session")
def mri_phantoms(tmp_path_factory):
    """A data set of six tiny MRI phantoms; tests only read it."""
    folder = tmp_path_factory.mktemp("mri_phantoms")
    write_phantoms(folder, "MRI", 6, size="tiny")
    return folder


@pytest.fixture(scope="session")
def ct_phantoms(tmp_path_factory):
    """A data set of six tiny CT phantoms; tests only read it."""
    folder = tmp_path_factory.mktemp("ct_phantoms")
    write_phantoms(folder, "CT", 6, size="tiny")
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans: the environment variable DENSE_SSL_DATA, else shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DENSE_SSL_DATA") or beside)
    if not (folder / "Task04_Hippocampus" / "dataset.json").is_file():
        pytest.skip(f"no real scans in {folder}; set DENSE_SSL_DATA to their folder")
    return folder
