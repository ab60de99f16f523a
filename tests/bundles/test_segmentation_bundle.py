import csv
import importlib.util
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom_components import load_backbone
from custom_components.data import PHANTOM_CLASSES, case_name
from custom_components.data.dataset_json import write_dataset_json
from custom_components.delivery import file_digest

from .conftest import CLASSES, SHORT, SMALL

pytestmark = pytest.mark.slow
BUNDLE = "hippocampus_mri_segmentation"
BFLOAT16 = pytest.param(
    {"cpu_bfloat16": True},
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no convolutions in bfloat16"
    ),
)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_fine_tuning_writes_weights_checkpoints_and_a_log(segmenter):
    assert json.loads((segmenter / "model.json").read_text())["selection"] == "best"
    assert {path.name for path in (segmenter / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    events = EventAccumulator(str(segmenter / "tensorboard"))
    events.Reload()
    assert {"loss", "learning_rate", "val_mean_dice", "dice_Liver"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["validation/overlay"]


@pytest.mark.parametrize("override", ["linear_probe", "nonlinear_probe", "from_scratch", "strong_augmentation"])
def test_every_override_trains_and_only_a_probe_keeps_the_backbone(
    run_bundle, mri_phantoms, pretrained, tmp_path, override
):
    backbone = {} if override == "from_scratch" else {"pretrained": pretrained / "model.pt"}
    settings = {**SMALL, **SHORT, **CLASSES, **backbone, "num_labelled": 2}
    run_bundle(BUNDLE, "train", override, dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    before, after = (load_backbone(folder / "model.pt").state_dict() for folder in (pretrained, tmp_path))
    kept = all(torch.equal(before[key], after[key]) for key in before)
    assert kept == override.endswith("probe")
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["scans"], record["selection"]) == (2, "last")
    if override == "linear_probe":
        run_bundle(
            BUNDLE,
            "evaluate",
            dataset_dir=mri_phantoms,
            output_dir=tmp_path,
            weights=tmp_path / "model.pt",
            **SMALL,
            **CLASSES,
        )
        assert len(rows_of(tmp_path / "metrics.csv")) == len(PHANTOM_CLASSES)


def test_a_quick_probe_fits_the_head_alone(run_bundle, mri_phantoms, pretrained, tmp_path):
    settings = {**SMALL, **SHORT, **CLASSES, "pretrained": pretrained / "model.pt", "hold_out": False}
    run_bundle(BUNDLE, "train", run_id="quick_probe", dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    before, after = (load_backbone(folder / "model.pt").state_dict() for folder in (pretrained, tmp_path))
    assert all(torch.equal(before[key], after[key]) for key in before)
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["selection"] == "linear probe" and record["scans"] == 6


@pytest.mark.parametrize("start", ["probe", "random"])
def test_fine_tuning_starts_from_the_head_of_the_quick_probe(run_bundle, mri_phantoms, pretrained, tmp_path, start):
    settings = {**SMALL, **SHORT, **CLASSES, "pretrained": pretrained / "model.pt", "num_labelled": 2}
    still = {"learning_rate": 0.0, "backbone_learning_rate": 0.0, "head_start": start}
    for name, more in (("quick", {"run_id": "quick_probe"}), ("tuned", still)):
        run_bundle(BUNDLE, "train", dataset_dir=mri_phantoms, output_dir=tmp_path / name, **settings, **more)
    probed, tuned = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("quick", "tuned"))
    heads = [key for key in probed if key.startswith("head.")]
    assert heads and all(torch.equal(probed[key], tuned[key]) for key in heads) == (start == "probe")
    assert json.loads((tmp_path / "tuned" / "model.json").read_text())["head_start"] == start


@pytest.mark.parametrize(
    "option",
    [
        {"checkpointing": True},
        BFLOAT16,
        pytest.param({"compile": True}, marks=pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")),
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_trains_the_same_network(run_bundle, mri_phantoms, pretrained, segmenter, tmp_path, option):
    settings = {**SMALL, **SHORT, **CLASSES, "pretrained": pretrained / "model.pt", "head_epochs": 1} | option
    # a head that is fitted to other digits starts elsewhere
    settings["probe#cpu_bfloat16"] = False
    run_bundle(BUNDLE, "train", dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    expected, found = (
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["network"] for folder in (segmenter, tmp_path)
    )
    # in bfloat16 a small gradient may have another sign, and Adam's four steps are of 0.001
    tolerance = {"compile": 1e-3, "cpu_bfloat16": 1e-2}.get(next(iter(option)), 0.0)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_training_that_was_stopped_goes_on_without_the_file_that_it_started_from(
    run_bundle, mri_phantoms, pretrained, tmp_path, capsys
):
    start = tmp_path / "start.pt"
    for suffix in (".pt", ".json"):
        shutil.copyfile(pretrained / f"model{suffix}", start.with_suffix(suffix))
    settings = {**SMALL, **SHORT, **CLASSES, "dataset_dir": mri_phantoms, "pretrained": start, "num_labelled": 2}
    records = []
    for max_steps in (4, 6):
        run_bundle(BUNDLE, "train", output_dir=tmp_path / "out", **{**settings, "max_steps": max_steps})
        records.append(json.loads((tmp_path / "out" / "model.json").read_text()))
        for path in tmp_path.glob("start.*"):
            path.unlink()
        # the head is fitted once, not to be thrown away where the training goes on
        assert ("linear probe: " in capsys.readouterr().out) == (max_steps == 4)
    assert [record["steps"] for record in records] == [4, 6]
    # two labelled ones, and all but the one held out by the pre-training
    assert [len(record["seen_scans"].split()) for record in records] == [5, 5]


def test_accumulated_steps_are_fewer_steps_of_the_optimiser(run_bundle, mri_phantoms, tmp_path):
    settings = {**SMALL, **SHORT, **CLASSES, "accumulation_steps": 2, "num_workers": 2}
    run_bundle(BUNDLE, "train", "from_scratch", dataset_dir=mri_phantoms, output_dir=tmp_path, **settings)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 4
    assert {int(state["step"]) for state in last["optimizer"]["state"].values()} == {2}
    assert json.loads((tmp_path / "model.json").read_text())["accumulation_steps"] == 2


def test_a_training_that_adam_began_goes_on_with_the_rates_of_head_and_backbone(run_bundle, mri_phantoms, tmp_path):
    settings = {**SMALL, **SHORT, **CLASSES, "learning_rate": 0.002, "backbone_learning_rate": 0.001}
    settings = {**settings, "dataset_dir": mri_phantoms, "output_dir": tmp_path}
    run_bundle(BUNDLE, "train", "from_scratch", **settings, **{"optimizer#_target_": "torch.optim.Adam"})
    run_bundle(BUNDLE, "train", "from_scratch", **{**settings, "max_steps": 8})
    optimizer = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["optimizer"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {8}
    head, backbone = optimizer["param_groups"]
    assert head["fused"] and backbone["fused"] and head["initial_lr"] == 2 * backbone["initial_lr"]


@pytest.mark.parametrize("run_id", ["run", "fine_tune"])
def test_an_annotators_request_trains_the_network_in_use_on_classes_of_ones_own(
    run_bundle, mri_phantoms, segmenter, tmp_path, run_id
):
    weights, items = tmp_path / "models" / "model.pt", []
    weights.parent.mkdir()
    for file in ("model.pt", "model.json"):
        (weights.parent / file).write_bytes((segmenter / file).read_bytes())
    for image in sorted((mri_phantoms / "imagesTr").iterdir())[:2]:
        label = nib.load(mri_phantoms / "labelsTr" / image.name)
        voxels = np.asarray(label.dataobj).astype(np.uint8)
        voxels[voxels == 0] = np.where(np.indices(voxels.shape)[2] < 3, 8, 0)[voxels == 0]
        nib.save(nib.Nifti1Image(voxels, label.affine), tmp_path / image.name)
        items.append({"image": str(image), "label": str(tmp_path / image.name)})
    # what MONAI Label overrides
    request = {"train#dataset#data": items, "validate#dataset#data": [], "train#trainer#max_epochs": 1}
    small = {**SMALL, **SHORT, **CLASSES, "weights": weights, "output_dir": tmp_path / "annotation"}
    run_bundle(BUNDLE, "train", run_id=run_id, dataset_dir="nowhere", **small, **request)
    state, released = (torch.load(weights.with_name(name)) for name in ("model.pt", "released.pt"))
    assert state["head.layers.0.bias"].shape == (8,) and released["head.layers.0.bias"].shape == (6,)
    kept = all(torch.equal(state[key], value) for key, value in released.items() if key.startswith("backbone."))
    assert kept == (run_id == "run")
    record = json.loads(weights.with_name("model.json").read_text())
    assert record["pretrained"] == str(weights) and record["pretrained_sha256"] == file_digest(segmenter / "model.pt")


def test_evaluation_scores_every_case_and_class(run_bundle, command_line, mri_phantoms, segmenter, tmp_path):
    settings = {**SMALL, **CLASSES, "dataset_dir": mri_phantoms, "weights": segmenter / "model.pt"}
    run_bundle(BUNDLE, "evaluate", output_dir=tmp_path / "test", **settings)
    told = command_line(BUNDLE, "evaluate", output_dir=tmp_path / "all", split="all", **settings).stdout
    # all but the one that is held out: that for validation was seen by the pre-training
    assert "5 of the 6 scans have the names of scans that these weights were trained or pre-trained on" in told
    held_out, every = rows_of(tmp_path / "test" / "metrics.csv"), rows_of(tmp_path / "all" / "metrics.csv")
    assert list(every[0]) == ["case", "class", "dice", "hd95_mm"]
    assert len({row["case"] for row in every}) == 6 and len(every) == 36
    assert len({row["case"] for row in held_out}) == 1
    assert [row for row in every if row["case"] == held_out[0]["case"]] == held_out


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({"backend": "openvino"}, 0, 1e-3),
        # tiles smaller than what a voxel sees: other values, and so other labels
        ({"tile_size": [24, 16, 40], "overlap": 0.5}, 1e-3, 1),
        ({"air": 0.0}, 0, 0.05),
        pytest.param(*BFLOAT16.values, 1e-4, 0.25, marks=BFLOAT16.marks),
    ],
)
def test_a_scan_may_be_run_by_openvino_in_tiles_without_air_and_in_bfloat16(
    run_bundle, mri_phantoms, segmenter, tmp_path, settings, least, most
):
    # not importorskip: an import of it here would send its telemetry
    if settings.get("backend") == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    scan = min((mri_phantoms / "imagesTr").iterdir())
    common = {**SMALL, **CLASSES, "dataset_dir": scan, "weights": segmenter / "model.pt"}
    run_bundle(BUNDLE, "inference", output_dir=tmp_path / "whole", **common)
    run_bundle(BUNDLE, "inference", output_dir=tmp_path / "other", **{**common, **settings})
    name = scan.name.replace(".nii.gz", "_seg.nii.gz")
    whole, other = (np.asarray(nib.load(tmp_path / folder / name).dataobj) for folder in ("whole", "other"))
    # voxels and not the Dice: after four steps of training a class of a few voxels hangs on the last digit
    labelled = (whole > 0) | (other > 0)
    assert 0.01 < labelled.mean() < 0.9
    assert least <= (whole != other)[labelled].mean() <= most


def test_a_class_that_is_not_annotated_is_not_scored(run_bundle, mri_phantoms, segmenter, tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).symlink_to(mri_phantoms / folder)
    listing = json.loads((mri_phantoms / "dataset.json").read_text())
    for entry in listing["training"]:
        entry["annotated_labels"] = [1, 3]
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    settings = {**SMALL, **CLASSES, "weights": segmenter / "model.pt", "split": "all"}
    run_bundle(BUNDLE, "evaluate", dataset_dir=tmp_path, output_dir=tmp_path / "scores", **settings)
    for row in rows_of(tmp_path / "scores" / "metrics.csv"):
        annotated = row["class"] in (PHANTOM_CLASSES[0], PHANTOM_CLASSES[2])
        assert (row["dice"] != "") == annotated and (row["hd95_mm"] != "") == annotated


def test_the_parts_that_dataset_json_gives_are_those_that_are_trained_on_and_scored(
    run_bundle, mri_phantoms, pretrained, tmp_path
):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).symlink_to(mri_phantoms / folder)
    listing = write_dataset_json(tmp_path, CLASSES["class_names"])
    cases = [case_name(entry["image"]) for entry in listing["training"]]
    for entry, part in zip(listing["training"], ["train", "train", "test", "test", "test", "validation"]):
        entry["part"] = part
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    settings = {**SMALL, **CLASSES, "dataset_dir": tmp_path, "output_dir": tmp_path / "out"}
    run_bundle(BUNDLE, "train", run_id="quick_probe", pretrained=pretrained / "model.pt", **settings)
    assert json.loads((tmp_path / "out" / "model.json").read_text())["scans"] == 2
    run_bundle(BUNDLE, "evaluate", weights=tmp_path / "out" / "model.pt", **settings)
    assert {row["case"] for row in rows_of(tmp_path / "out" / "metrics.csv")} == set(cases[2:5])


def test_inference_writes_a_label_on_the_grid_of_every_scan(run_bundle, mri_phantoms, segmenter, tmp_path):
    settings = {**SMALL, **CLASSES, "weights": segmenter / "model.pt"}
    run_bundle(BUNDLE, "inference", dataset_dir=mri_phantoms / "imagesTr", output_dir=tmp_path, **settings)
    for scan in (mri_phantoms / "imagesTr").glob("*.nii.gz"):
        source, label = nib.load(scan), nib.load(tmp_path / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        assert label.shape == source.shape
        assert np.allclose(label.affine, source.affine, atol=1e-3)
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(label.dataobj))) <= set(range(7))


def test_a_fine_tuning_of_few_phantoms_learns(run_bundle, mri_phantoms, pretrained, tmp_path):
    """Not a benchmark: a network that learns nothing would stay near a Dice of 0."""
    settings = {**SMALL, **CLASSES, "base_channels": 8, "num_scales": 2, "max_steps": 60, "steps_per_epoch": 30}
    common = {"dataset_dir": mri_phantoms, "output_dir": tmp_path, "mirror_probability": 0.0}
    run_bundle(BUNDLE, "train", "from_scratch", scans_per_step=2, learning_rate=0.01, **settings, **common)
    small = {**SMALL, "base_channels": 8, "num_scales": 2}
    run_bundle(
        BUNDLE,
        "evaluate",
        dataset_dir=mri_phantoms,
        output_dir=tmp_path,
        weights=tmp_path / "model.pt",
        split="all",
        **small,
        **CLASSES,
    )
    liver = [float(row["dice"]) for row in rows_of(tmp_path / "metrics.csv") if row["class"] == "Liver"]
    assert np.mean(liver) > 0.3
