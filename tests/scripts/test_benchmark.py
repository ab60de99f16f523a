from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from custom_components.errors import InputError
from scripts.benchmark import DEFAULT, benchmark
from scripts.benchmarks import augment, infer, loss, pipeline, train
from scripts.benchmarks.scans import phantom_volume, spacing_of, write_scan
from scripts.benchmarks.settings import Row, Settings
from scripts.benchmarks.timing import peak_memory, time_beside

NAMES = {
    "augment": {"augment/shuffle", "augment/bezier", "augment/inpaint", "augment/local", "augment/batch"},
    "pipeline": {"pipeline/pairs", "pipeline/augmented_pairs", "pipeline/memory"},
    "loss": {"loss/all_batch_time", "loss/all_batch_memory", "loss/same_scan_time", "loss/same_scan_memory"},
    "train": {"train/step_time", "train/step_memory", "train/checkpointing_memory"},
    "infer": {"infer/volume_time", "infer/volume_memory"},
}
QUICK = Settings("cpu", 1, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("section", DEFAULT)
def test_a_section_writes_its_figures_beside_those_of_the_reference(section, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        benchmark(section, quick=True, device="cpu", threads=1, json=str(tmp_path / "folder" / "rows.json"))
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "folder" / "rows.json").read_text())
    assert {row["name"] for row in rows} == NAMES[section]
    table = capsys.readouterr().out
    for row in rows:
        assert row["ours"] > 0 and row["reference"] > 0
        assert row["unit"] in (("MB",) if row["name"].endswith("memory") else ("ms", "s"))
        assert row["ratio"] == pytest.approx(row["reference"] / row["ours"])
        assert row["device"] == "cpu" and row["threads"] == 1 and row["quick"] is True and "torch" in row["machine"]
        assert row["name"] in table and row["machine"] in table


@pytest.mark.slow
def test_growth_tells_each_size(tmp_path):
    benchmark("growth", quick=True, device="cpu", threads=1, json=str(tmp_path / "rows.json"))
    names = [row["name"] for row in json.loads((tmp_path / "rows.json").read_text())]
    assert {"growth/infer_time_48", "growth/infer_memory_48", "growth/pipeline_time_1"} <= set(names)
    assert "growth/pipeline_memory_10" in names


def test_an_unknown_section_is_refused_before_anything_is_measured():
    with pytest.raises(InputError, match="speed: is no section; the sections are augment, pipeline"):
        benchmark("loss", "speed")
    with pytest.raises(InputError, match="device: must be cpu or cuda but is tpu"):
        benchmark("loss", device="tpu")
    with pytest.raises(InputError, match="quick: takes no value but got loss"):
        benchmark(quick="loss")


@pytest.mark.parametrize("shape", [(40, 40, 21), (128, 128, 32)])
def test_the_reference_augmentations_give_the_same_voxels(shape):
    augment.check_equal(shape)


def test_the_reference_shuffles_inside_blocks():
    image = np.arange(24 * 24 * 12, dtype=np.float32).reshape(24, 24, 12)
    starts = np.array([[0, 0, 0], [5, 7, 3]])
    orders = np.stack([np.random.RandomState(0).permutation(8) for _ in range(2)])
    result = augment.reference_shuffle(image, starts, (2, 2, 2), orders)
    outside = np.ones(image.shape, dtype=bool)
    for x, y, z in starts:
        block = (slice(x, x + 2), slice(y, y + 2), slice(z, z + 2))
        outside[block] = False
        assert sorted(result[block].ravel()) == sorted(image[block].ravel())
    assert np.array_equal(result[outside], image[outside]) and not np.array_equal(result, image)


def test_the_dense_losses_give_the_same_value_and_gradient():
    loss.check_equal(QUICK)


def test_the_reference_pipeline_gives_the_same_views_and_voxels(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", (44, 40, 30))
    pipeline.check_equal(scan, tmp_path / "cache", (16, 16, 8))
    view_1, view_2, voxels_1, voxels_2 = pipeline.reference_pairs(scan, (16, 16, 8), np.random.RandomState(0), False)[0]
    assert np.array_equal(view_1[tuple(voxels_1.T)], view_2[tuple(voxels_2.T)]) and len(voxels_1)


def test_the_reference_step_starts_with_the_same_loss_and_takes_the_same_step():
    ours, reference = train.our_step(QUICK, cpu_bfloat16=False), train.reference_step(QUICK)
    for _ in range(2):
        assert ours().item() == pytest.approx(reference().item(), rel=1e-3)


@pytest.mark.slow
def test_the_paper_s_step_has_its_rows_whatever_the_device():
    rows = list(train.paper_rows(QUICK, peak_tflops=1e-3))
    figures = {
        f"train/paper_{kind}_{figure}": unit
        for kind in ("step", "checkpointing")
        for figure, unit in (("time", "s"), ("rate", "Mvoxel/s"), ("peak_share", "%"), ("memory", "MB"))
    }
    assert {row.name: row.unit for row in rows} == figures
    assert all(row.ours > 0 and row.reference is None and row.ratio is None for row in rows)
    assert {row.size for row in rows} == {"4 views of 32 x 32 x 16, 8 channels, 5 scales"}


def test_the_paper_s_step_has_the_paper_s_size():
    config = train.config_of(Settings("cpu", 1), paper=True)
    assert train.size_of(config) == "20 views of 128 x 128 x 32, 32 channels"
    assert config.get_parsed_content("num_scales") == 5
    assert train.size_of(train.config_of(Settings("cpu", 1))) == "6 views of 40 x 40 x 32, 16 channels"


def test_operations_are_those_of_products_and_convolutions_both_ways():
    a, b = torch.rand(8, 16, requires_grad=True), torch.rand(16, 4, requires_grad=True)
    assert train.flops_of(lambda: (a @ b).sum().backward()) == 3 * 2 * 8 * 16 * 4
    convolution, image = torch.nn.Conv3d(2, 5, 3, padding=1), torch.rand(1, 2, 6, 5, 4)
    # the image needs no gradient
    assert train.flops_of(lambda: convolution(image).sum().backward()) == 2 * 2 * 2 * 5 * 27 * 6 * 5 * 4


def test_the_reference_windows_give_the_logits_of_ours_in_the_same_tiles(monkeypatch):
    infer.check_equal(QUICK)
    quarter = SlidingWindowInferer((40, 40, 40), 4, overlap=0.25, mode="gaussian")
    monkeypatch.setattr(infer, "reference_inferer", lambda config: quarter)
    with pytest.raises(RuntimeError, match="benchmark: our logits differ by .* in the same tiles"):
        infer.check_equal(QUICK, (72, 48, 40))


def test_a_phantom_is_enlarged_by_repeating_its_voxels(tmp_path):
    volume, _ = phantom_volume((21, 20, 15), times=2)
    assert volume.shape == (21, 20, 15)
    assert np.array_equal(volume[:20:2], volume[1:20:2]) and np.array_equal(volume[..., :14:2], volume[..., 1:14:2])
    spacing = spacing_of(write_scan(tmp_path / "scan.nii.gz", (20, 20, 20), times=2))
    assert spacing == pytest.approx([346 / 20, 248 / 20, 272 / 20])


def test_ours_and_the_reference_take_turns_after_a_warm_up():
    called = []
    row = time_beside(
        "a/b",
        (lambda: called.append("ours"), lambda: called.append("reference")),
        QUICK,
        "nothing",
        repeats=3,
        reference_repeats=1,
    )
    turns = [name for name, before in zip(called, [None, *called]) if name != before]
    assert turns[-3:] == ["ours", "reference", "ours"] and {"ours", "reference"} == set(turns)
    assert row.as_dict()["ratio"] == row.reference / row.ours


def test_a_row_without_a_reference_has_no_ratio():
    values = Row("a/b", 2.0, None, "s", "nothing", QUICK).as_dict()
    assert values["ratio"] is None and values["threads"] == 1 and "settings" not in values
    assert Row("a/b", 2.0, 3.0, "s", "nothing", QUICK).ratio == 1.5


def allocate(settings: Settings, megabytes: int) -> Callable[[], None]:
    def call() -> None:
        np.ones(megabytes * 125_000)

    return call


def stop(settings: Settings) -> Callable[[], None]:
    raise SystemExit(3)


@pytest.mark.slow
def test_peak_memory_is_what_a_call_takes_for_a_moment():
    assert peak_memory(allocate, 200, settings=QUICK) == pytest.approx(200, abs=20)
    with pytest.raises(RuntimeError, match="stopped with status 3"):
        peak_memory(stop, settings=QUICK)
