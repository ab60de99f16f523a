"""Array and dictionary transforms in MONAI's form, one family a file."""

from .annotated import AnnotatedClassesd, crop_ratios, tell_undrawn_classes
from .baseline import RandInPlaneBlurOrSharpen, RandInPlaneBlurOrSharpend, RandWindow, RandWindowd
from .batch import BatchAugmentation
from .bezier import RandBezierIntensity, RandBezierIntensityd
from .body import BodyMask, BodyMaskd
from .checks import CheckLabeld, CheckScan, CheckScand
from .components import LargestComponentd
from .crops import ClassIndicesd, RandCropByClassIndicesd
from .inpaint import RandInPaint, RandInPaintd
from .mirror import RandMirrord, mirrored_classes_order, mirrored_pairs, told_pairs
from .restore import LogitsToLabel, LogitsToLabeld
from .shuffle import RandLocalShuffle, RandLocalShuffled
from .spacing import ResampleSpacingd
from .views import OverlappingViews, OverlappingViewsd, ViewPair

__all__ = [
    "AnnotatedClassesd",
    "BatchAugmentation",
    "BodyMask",
    "BodyMaskd",
    "CheckLabeld",
    "CheckScan",
    "CheckScand",
    "ClassIndicesd",
    "LargestComponentd",
    "LogitsToLabel",
    "LogitsToLabeld",
    "OverlappingViews",
    "OverlappingViewsd",
    "RandBezierIntensity",
    "RandBezierIntensityd",
    "RandCropByClassIndicesd",
    "RandInPaint",
    "RandInPaintd",
    "RandInPlaneBlurOrSharpen",
    "RandInPlaneBlurOrSharpend",
    "RandLocalShuffle",
    "RandLocalShuffled",
    "RandMirrord",
    "RandWindow",
    "RandWindowd",
    "ResampleSpacingd",
    "ViewPair",
    "crop_ratios",
    "mirrored_classes_order",
    "mirrored_pairs",
    "tell_undrawn_classes",
    "told_pairs",
]
