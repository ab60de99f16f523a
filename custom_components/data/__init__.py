"""Lists of scans, splits, the memory-mapped cache, and procedural phantoms."""

from .cache import MemoryMappedDataset
from .datalists import case_name, checked, class_names_of, list_scans, output_name, read_datalist
from .dicom import DicomSeriesReader, series_of
from .headers import DataError
from .layouts import read_amos, read_btcv
from .loading import LoadScan, LoadScand, scan_grid
from .phantom_dataset import PHANTOM_SIZES, write_phantoms
from .phantoms import PHANTOM_CLASSES, make_phantom, phantom_affine
from .splits import digest_of_cases, few_label_subset, split_datalist
from .workers import loader_workers
from .writer import ExactNiftiWriter

__all__ = [
    "DataError",
    "DicomSeriesReader",
    "ExactNiftiWriter",
    "LoadScan",
    "LoadScand",
    "MemoryMappedDataset",
    "PHANTOM_CLASSES",
    "PHANTOM_SIZES",
    "case_name",
    "checked",
    "class_names_of",
    "digest_of_cases",
    "few_label_subset",
    "list_scans",
    "loader_workers",
    "make_phantom",
    "output_name",
    "phantom_affine",
    "read_amos",
    "read_btcv",
    "read_datalist",
    "scan_grid",
    "series_of",
    "split_datalist",
    "write_phantoms",
]
