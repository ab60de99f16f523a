"""For the test server: PyPI's torchvision imports beside a CPU build of torch once two operators are declared."""

try:
    import torch
except ImportError:
    pass
else:
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
