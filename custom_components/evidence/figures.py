"""The label-efficiency curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

STYLES = {"linear": "--", "linear_augmented": "-.", "nonlinear": ":", "finetune": "-"}


def label_efficiency_figure(summary: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Dice over the number of labelled scans (log axis, `all` at its right end), with the 95% intervals as bands,
    or as a bar where there is a single number.

    Args:
        summary: rows of `summarise`, of one bundle. A colour is a backbone, a line style is a head.
    """
    counts = sorted({int(row["num_labelled"]) for row in summary if row["num_labelled"] != "all"})
    positions = {str(count): float(count) for count in counts}
    positions["all"] = 2.0 * (counts[-1] if counts else 1)
    backbones = list(dict.fromkeys(row["backbone"] for row in summary))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, backbone in enumerate(backbones):
        for head, style in STYLES.items():
            rows = [row for row in summary if row["backbone"] == backbone and row["head"] == head]
            rows.sort(key=lambda row: positions[row["num_labelled"]])
            if not rows:
                continue
            x = [positions[row["num_labelled"]] for row in rows]
            label, colour = f"{backbone}, {head}", f"C{number}"
            axis.plot(x, [row["dice"] for row in rows], style, color=colour, marker="o", label=label)
            if all(row["dice_low"] is not None for row in rows):
                bounds = [row["dice_low"] for row in rows], [row["dice_high"] for row in rows]
                if len(rows) > 1:
                    axis.fill_between(x, *bounds, color=colour, alpha=0.12, linewidth=0)
                else:  # a band would have no width
                    axis.vlines(x, *bounds, color=colour, alpha=0.5)
    axis.set_xscale("log", base=2)
    shown = [name for name in positions if any(row["num_labelled"] == name for row in summary)]
    axis.set_xticks([positions[name] for name in shown], shown)
    axis.minorticks_off()
    axis.set_xlabel("labelled scans")
    axis.set_ylabel("mean Dice on the held-out scans")
    shown_dice = [row[name] for row in summary for name in ("dice", "dice_low", "dice_high") if row[name] is not None]
    axis.set_ylim(max(0.0, min(shown_dice) - 0.05), min(1.0, max(shown_dice) + 0.05))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    if title:
        axis.set_title(title)
    return figure
