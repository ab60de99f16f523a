"""The whole job on procedural phantoms, with no data at hand: `python -m scripts.quickstart`.

Pre-trains a backbone without labels, fine-tunes it and an untrained one for the same short time with four labelled
scans, scores both on held-out scans, segments an unseen scan, and draws the result. Every step is a `monai.bundle run`
command, shown before it runs.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fire

from custom_components.data import PHANTOM_CLASSES, write_phantoms
from custom_components.errors import InputError
from custom_components.metrics import mean_by_class
from custom_components.visualization import save_overlay

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
# phantoms are 3 to 4 mm apart, so that two cores finish in minutes; these are the only settings that differ
SETTINGS = {"spacing": [4.0, 4.0, 4.0], "crop_size": [32, 32, 32], "base_channels": 8, "num_scales": 4}
MADE = ("phantoms", "unseen", "cache", "pretrain", "pretrained", "untrained")


def bundle_run(bundle: str, configs: list[str], **settings: object) -> None:
    """Run a bundle the way a user does, in a process of its own."""
    root = Path(os.path.relpath(BUNDLES / bundle))
    files = [str(root / "configs" / f"{name}.json") for name in configs]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", files[0] if len(files) == 1 else str(files), "--bundle_root", str(root)]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    shown = [word if word == shlex.quote(word) else f'"{word}"' for word in command[1:]]
    print(f"\n$ python {' '.join(shown)}", flush=True)
    subprocess.run(command, check=True)


def quickstart(
    output_dir: str = "quickstart_output",
    num_phantoms: int = 24,
    num_labelled: int = 4,
    pretrain_steps: int = 1200,
    finetune_steps: int = 100,
    seed: int = 0,
) -> None:
    """Pre-train, fine-tune, evaluate, segment and draw, on MRI phantoms.

    Args:
        output_dir: folder for everything that is made; an earlier quick start in it is replaced.
        num_phantoms: scans; a fifth is held out for the scores.
        num_labelled: labelled scans that the fine-tunings may see.
        pretrain_steps: self-supervised steps.
        finetune_steps: steps of both fine-tunings.
        seed: seed of the phantoms.
    """
    started = time.monotonic()
    output = Path(output_dir)
    marker = output / "made_by_quickstart"
    if output.exists() and any(output.iterdir()) and not marker.is_file():
        raise InputError(f"{output}: is not empty and not an earlier quick start; choose another --output_dir")
    for made in MADE:
        shutil.rmtree(output / made, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    data, unseen = output / "phantoms", output / "unseen"
    print(f"Writing {num_phantoms} MRI phantoms to {data} and an unseen one to {unseen}", flush=True)
    write_phantoms(data, "mri", num_phantoms, seed=seed)
    write_phantoms(unseen, "mri", 1, seed=seed + 1_000_000)

    common = {**SETTINGS, "cache_dir": output / "cache", "seed": seed}
    bundle_run(
        "mri_dense_ssl",
        ["train"],
        dataset_dir=data,
        output_dir=output / "pretrain",
        max_steps=pretrain_steps,
        scans_per_step=2,
        **common,
    )
    backbones = {"pretrained": output / "pretrain" / "model.pt", "untrained": "none"}
    segmentation = {**SETTINGS, "class_names": list(PHANTOM_CLASSES)}
    for name, weights in backbones.items():
        folder = output / name
        bundle_run(
            "hippocampus_mri_segmentation",
            ["train"],
            dataset_dir=data,
            output_dir=folder,
            pretrained=weights,
            num_labelled=num_labelled,
            max_steps=finetune_steps,
            mirror_probability=0,
            **{"validate#dataset#data": []},  # with so few labels the last network is kept
            **{**common, **segmentation},
        )
        for config, scans, target in (("evaluate", data, folder), ("inference", unseen, folder / "unseen")):
            bundle_run(
                "hippocampus_mri_segmentation",
                [config],
                dataset_dir=scans,
                output_dir=target,
                weights=folder / "model.pt",
                **segmentation,
            )
    report(output, num_labelled)
    print(f"\nFinished in {(time.monotonic() - started) / 60:.1f} minutes.")


def report(output: Path, num_labelled: int) -> None:
    """Draw the unseen phantom and print the table of both backbones; keep both as files."""
    image = next((output / "unseen" / "imagesTr").glob("*.nii.gz"))
    labels = {"annotated": output / "unseen" / "labelsTr" / image.name}
    means = {}
    for name in ("pretrained", "untrained"):
        folder = output / name
        labels[name] = folder / "unseen" / image.name.replace(".nii.gz", "_seg.nii.gz")
        means[name] = mean_by_class(folder / "metrics.csv")
    picture = save_overlay(
        image, labels, PHANTOM_CLASSES, output / "overlay.png", title=f"Unseen phantom, {num_labelled} labelled scans"
    )
    rows = [("organ", *means)]
    rows += [(organ, *(f"{means[name][organ]:.3f}" for name in means)) for organ in PHANTOM_CLASSES]
    rows.append(("mean Dice", *(f"{sum(m.values()) / len(m):.3f}" for m in means.values())))
    with open(output / "dice.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    print(f"\nDice on the held-out phantoms, fine-tuned with {num_labelled} labelled scans:\n")
    for row in rows:
        print(f"  {row[0]:<14}" + "".join(f"{cell:>12}" for cell in row[1:]))
    print(f"\nSegmentation  {labels['pretrained']}\nPicture       {picture}\nTable         {output / 'dice.csv'}")


def main() -> None:
    try:
        fire.Fire(quickstart)
    except InputError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: the command above ended with status {error.returncode}; its output says why")


if __name__ == "__main__":
    main()
