"""Pictures in TensorBoard: what the network sees and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from custom_components.visualization import overlay_figure


class ViewPictures:
    """Both views of the first pair: before augmentation, after it, and restored, as one picture. Attach it to the
    trainer.

    Args:
        writer: a TensorBoard `SummaryWriter`.
        interval: epochs between two pictures; 0: none.
    """

    def __init__(self, writer: Any, interval: int = 1) -> None:
        self.writer, self.interval = writer, interval

    def attach(self, engine: Any) -> None:
        if self.interval:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Any) -> None:
        output = engine.state.output
        columns = [output["label"]["original"], output["image"], output["pred"][1]]
        rows = [torch.cat([_middle_slice(c[i]) for c in columns], dim=1) for i in (0, len(columns[0]) // 2)]
        self.writer.add_image(
            "views/original_augmented_restored", torch.cat(rows).clamp(0, 1)[None], global_step=engine.state.iteration
        )


def _middle_slice(volume: Tensor) -> Tensor:
    """The middle axial slice of `(C, H, W, D)`, the first axis to the right."""
    return volume[0, :, :, volume.shape[-1] // 2].detach().float().cpu().T.flip(0)


class OverlayPictures:
    """The first validation case with its label and with the prediction over it. Attach it to the evaluator.

    Args:
        writer: a TensorBoard `SummaryWriter`.
        class_names: names of label values 1..K.
    """

    def __init__(self, writer: Any, class_names: Sequence[str]) -> None:
        self.writer, self.class_names = writer, list(class_names)

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        if engine.state.iteration != 1:
            return
        output, case = engine.state.output[0], engine.state.batch[0].get("case", "")
        image, truth, prediction = (torch.as_tensor(output[key])[0].cpu().numpy() for key in ("image", "label", "pred"))
        labels = {"annotated": truth, "predicted": prediction}
        figure = overlay_figure(image, labels, self.class_names, title=case)
        # MONAI's validation runs as one epoch of the evaluator, counted on from the trainer's epoch
        self.writer.add_figure("validation/overlay", figure, global_step=engine.state.epoch)
