"""Lists of scans, splits, the memory-mapped cache, and procedural phantoms."""

from .cache import MemoryMappedDataset
from .datalists import DataError, case_name, class_names_of, list_scans, read_datalist
from .phantoms import PHANTOM_CLASSES, PHANTOM_SIZES, make_phantom, phantom_affine, write_phantoms
from .splits import few_label_subset, split_datalist
from .writer import ExactNiftiWriter

__all__ = [
    "DataError",
    "ExactNiftiWriter",
    "MemoryMappedDataset",
    "PHANTOM_CLASSES",
    "PHANTOM_SIZES",
    "case_name",
    "class_names_of",
    "few_label_subset",
    "list_scans",
    "make_phantom",
    "phantom_affine",
    "read_datalist",
    "split_datalist",
    "write_phantoms",
]
