import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy import stats

from custom_components.errors import InputError
from custom_components.evidence import (
    CASE_COLUMNS,
    SUMMARY_COLUMNS,
    UNTRAINED,
    as_counts,
    case_rows,
    figures_of,
    intensities_of_rows,
    label_efficiency_figure,
    make_cells,
    read_cases,
    reference_of,
    run_cells,
    summarise,
    summary_table,
    training_settings,
    with_tables,
    write_results,
)
from custom_components.metrics import write_csv

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
SEGMENTER = BUNDLES / "hippocampus_mri_segmentation"
RNG = np.random.default_rng(0)
CASES = [f"case_{i:02d}" for i in range(30)]


def rows_of(backbone, head, offset, seeds=(0, 1), count="4", skip=()):
    """Scores around 0.6 + offset; `skip` are (case, class) that are not annotated."""
    rows = []
    for seed in seeds:
        for number, case in enumerate(CASES):
            for k, name in enumerate(("A", "B")):
                dice = None if (case, name) in skip else 0.6 + 0.1 * k + 0.005 * number + offset + 0.001 * seed
                rows.append(
                    {
                        **{"bundle": "b", "backbone": backbone, "head": head, "num_labelled": count, "seed": seed},
                        **{"case": case, "class": name, "dice": dice, "hd95_mm": 2.0 if dice else None},
                    }
                )
    return rows


def test_the_mean_is_over_classes_of_the_mean_over_cases_that_have_them():
    skip = {(case, "B") for case in CASES[:10]}
    (row,) = summarise(rows_of("released", "linear", 0.0, seeds=(0,), skip=skip))
    first = np.mean([0.6 + 0.005 * i for i in range(30)])
    second = np.mean([0.7 + 0.005 * i for i in range(10, 30)])
    assert row["dice"] == pytest.approx((first + second) / 2)
    assert (row["cases"], row["seeds"], row["hd95_mm"]) == (30, 1, 2.0)


def test_the_interval_is_that_of_a_normal_mean_where_the_scores_are_normal():
    rows = rows_of("released", "linear", 0.0, seeds=(0,))
    for row in rows:
        row["dice"] = RNG.normal(0.6, 0.1)
    (row,) = summarise(rows)
    by_case = np.array([row["dice"] for row in rows]).reshape(-1, 2).mean(1)
    half = 1.96 * by_case.std(ddof=1) / np.sqrt(30)
    assert row["dice_low"] == pytest.approx(by_case.mean() - half, abs=0.012)
    assert row["dice_high"] == pytest.approx(by_case.mean() + half, abs=0.012)


def test_the_difference_to_scratch_is_paired_by_case():
    noise = {case: RNG.normal(0, 0.01) for case in CASES}
    scratch, ours = rows_of(UNTRAINED, "finetune", 0.0), rows_of("released", "finetune", 0.05)
    for row in ours:
        row["dice"] += noise[row["case"]]
    summary = {row["backbone"]: row for row in summarise(scratch + ours)}
    row = summary["released"]
    expected = np.array([0.05 + noise[case] for case in CASES])
    assert row["difference"] == pytest.approx(expected.mean())
    # unpaired, the spread of the cases would make this interval ten times as wide
    assert 0.04 < row["difference_low"] < row["difference"] < row["difference_high"] < 0.06
    assert row["p_value"] == pytest.approx(stats.wilcoxon(expected).pvalue)
    assert summary[UNTRAINED]["difference"] is None


def test_the_differences_of_single_seeds_are_beside_their_mean():
    scratch = rows_of(UNTRAINED, "finetune", 0.0, seeds=(2, 0, 1))
    ours = [row for seed, by in ((1, 0.1), (0, -0.04)) for row in rows_of("ours", "finetune", by, seeds=(seed,))]
    (row,) = (row for row in summarise(scratch + ours) if row["backbone"] == "ours")
    assert row["difference"] == pytest.approx(0.03) and row["difference_by_seed"] == "-0.040, +0.100"
    (line,) = (line for line in summary_table(summarise(scratch + ours)).splitlines() if line.startswith("ours"))
    assert line.endswith("; by seed -0.040, +0.100")


def test_only_seeds_that_both_have_are_compared_and_other_label_counts_are_not():
    scratch = rows_of(UNTRAINED, "finetune", 0.0, seeds=(0,))
    ours = rows_of("released", "finetune", 0.0, seeds=(0, 5)) + rows_of("released", "finetune", 0.0, count="8")
    summary = {(row["backbone"], row["num_labelled"]): row for row in summarise(scratch + ours)}
    assert summary["released", "4"]["difference"] == pytest.approx(0)
    assert summary["released", "4"]["p_value"] == 1.0
    assert summary["released", "8"]["difference"] is None


def test_only_scans_that_both_were_scored_on_are_compared():
    scratch, ours = rows_of(UNTRAINED, "finetune", 0.0), rows_of("released", "finetune", 0.05)
    # a scan came to the data in between, and moved one out of the held-out ones
    ours = [{**row, "case": "case_99" if row["case"] == "case_00" else row["case"]} for row in ours]
    (row,) = (row for row in summarise(scratch + ours) if row["backbone"] == "released")
    assert (row["cases"], row["difference"]) == (30, pytest.approx(0.05))
    other = [{**row, "case": "other_" + row["case"]} for row in ours]
    (row,) = (row for row in summarise(scratch + other) if row["backbone"] == "released")
    assert row["difference"] is None and row["p_value"] is None


def test_a_scan_in_which_nothing_is_annotated_changes_nothing():
    skip = {("case_03", "A"), ("case_03", "B")}
    rows = rows_of(UNTRAINED, "finetune", 0.0, skip=skip) + rows_of("released", "finetune", 0.05, skip=skip)
    (row,) = (row for row in summarise(rows) if row["backbone"] == "released")
    expected = np.full(29, 0.05)
    assert row["difference"] == pytest.approx(0.05) and row["p_value"] == pytest.approx(stats.wilcoxon(expected).pvalue)
    left = [row for row in rows if row["case"] != "case_03"]
    assert summarise(rows) == summarise(left)


def test_a_class_in_one_scan_widens_the_interval_and_does_not_move_it():
    """Resamples without that scan would have the mean of the other class alone."""
    skip = {(case, "B") for case in CASES[1:]}
    rows = rows_of("ours", "linear", 0.0, seeds=(0,), skip=skip)
    for row in rows:
        row["dice"] = None if row["dice"] is None else 0.9 if row["class"] == "A" else 0.2
    (summary,) = summarise(rows)
    assert [summary[key] for key in ("dice", "dice_low", "dice_high")] == pytest.approx([0.55] * 3)


def test_the_interval_is_scipys_where_every_case_has_every_class():
    rows = rows_of("ours", "linear", 0.0, seeds=(0,))
    (summary,) = summarise(rows)
    by_case = np.array([row["dice"] for row in rows]).reshape(-1, 2).mean(1)
    options = {"n_resamples": 2000, "method": "percentile", "rng": np.random.default_rng(0)}
    expected = stats.bootstrap((by_case,), np.mean, **options).confidence_interval
    assert (summary["dice_low"], summary["dice_high"]) == pytest.approx((expected.low, expected.high))


def test_the_table_is_in_the_order_of_the_number_of_labels():
    rows = [row for count in ("all", "16", "2", "1") for row in rows_of("ours", "linear", 0.0, count=count)]
    lines = summary_table(summarise(rows)).splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["1", "2", "16", "all"]


def test_the_reference_of_a_head_can_be_another_backbone():
    rows = rows_of("vox2vec", "linear", 0.0) + rows_of("ours", "linear", 0.02) + rows_of("ours", "finetune", 0.1)
    summary = {(row["backbone"], row["head"]): row["difference"] for row in summarise(rows, "vox2vec")}
    assert summary["ours", "linear"] == pytest.approx(0.02)
    assert summary["vox2vec", "linear"] is None and summary["ours", "finetune"] is None


def test_a_table_is_made_of_the_published_scores(tmp_path):
    rows = rows_of(UNTRAINED, "finetune", 0.0) + rows_of("ours", "finetune", 0.05)
    write_csv(tmp_path / "cases.csv", CASE_COLUMNS, rows)
    document = "before\n<!-- cases.csv against scratch: begin -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    made = with_tables(document, tmp_path)
    assert "| finetune | 4 | ours | 2 | 0.773 |" in made and "| +0.050 (+0.050 to +0.050) |" in made
    assert "| +0.050, +0.050 |" in made
    assert made.startswith("before\n<!--") and made.endswith("<!-- end -->\nafter <!-- end -->\n") and "old" not in made
    assert with_tables(made, tmp_path) == made


def test_a_table_can_leave_classes_out(tmp_path):
    rows = rows_of(UNTRAINED, "finetune", 0.0)
    expected = np.mean([row["dice"] for row in rows if row["class"] == "B"])
    assert summarise(rows, without=["A"])[0]["dice"] == pytest.approx(expected)
    with pytest.raises(InputError, match="must be of the classes of the scores but C came"):
        summarise(rows, without=["C"])
    write_csv(tmp_path / "cases.csv", CASE_COLUMNS, rows)
    document = "<!-- cases.csv against scratch without A: begin -->\n<!-- end -->\n"
    assert f"| {UNTRAINED} | 2 | {expected:.3f} |" in with_tables(document, tmp_path)
    assert with_tables(with_tables(document, tmp_path), tmp_path) == with_tables(document, tmp_path)


def test_a_file_that_holds_no_scores_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.csv: no such file; name a cases.csv"):
        read_cases(tmp_path / "absent.csv")
    (tmp_path / "metrics.csv").write_text("case,class,dice,hd95_mm\n")
    with pytest.raises(InputError, match="metrics.csv: the columns must be bundle,.* but are case,class,dice,hd95_mm"):
        read_cases(tmp_path / "metrics.csv")


def test_the_documents_tables_are_those_of_the_published_scores():
    document = ROOT / "docs" / "EVIDENCE.md"
    text = document.read_text()
    assert with_tables(text, document.parent) == text, "run python -m scripts.evidence"
    figures = figures_of(text, document.parent)
    assert figures
    for scores in figures:
        assert scores.is_file() and scores.with_suffix(".png").is_file(), "run python -m scripts.evidence"


def test_a_documents_figures_are_of_the_scores_of_the_same_name():
    text = "![a](evidence/one.png) [table](evidence/two.csv) [b](three.png)\n![c d](four.png)"
    assert figures_of(text, Path("docs")) == [Path("docs/evidence/one.csv"), Path("docs/four.csv")]


def test_a_folder_with_another_training_is_refused_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"first")
    cells = make_cells(SEGMENTER, {"ours": str(tmp_path / "w.pt")}, [1], ["finetune"], [0])
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: done)
    steps = {"finetune": {"max_steps": 600, "cache_dir": tmp_path / "cache"}}
    assert run_cells(cells, tmp_path, {"dataset_dir": "d"}, steps) == []
    # nothing was trained yet, as where the first settings were wrong
    assert run_cells(cells, tmp_path, {"dataset_dir": "e"}, steps) == []
    assert run_cells(cells, tmp_path, {"dataset_dir": "d"}, steps) == []
    (cells[0].folder(tmp_path) / "model.pt").touch()
    # where the cache lies does not matter
    assert run_cells(cells, tmp_path, {"dataset_dir": "d"}, {"finetune": {"max_steps": 600, "cache_dir": "c"}}) == []
    with pytest.raises(InputError, match="1_labelled_seed_0: was made with training={'max_steps': 600}, this one has"):
        run_cells(cells, tmp_path, {"dataset_dir": "d"}, {"finetune": {"max_steps": 2000}})
    with pytest.raises(InputError, match="was made with held_out_scans="):
        run_cells(cells, tmp_path, {"dataset_dir": "d"}, steps, held_out=[{"case": "added"}])
    strong = make_cells(
        SEGMENTER, {"ours": str(tmp_path / "w.pt")}, [1], ["finetune"], [0], overrides=["strong_augmentation"]
    )
    (tmp_path / "strong").mkdir()
    run_cells(strong, tmp_path / "strong", {"dataset_dir": "d"}, steps)
    (cells[0].folder(tmp_path / "strong") / "model.pt").touch()
    with pytest.raises(InputError, match=r"was made with overrides=\['strong_augmentation'\], this one has"):
        run_cells(cells, tmp_path / "strong", {"dataset_dir": "d"}, steps)
    (tmp_path / "w.pt").write_bytes(b"second")
    with pytest.raises(InputError, match="was made with weights="):
        run_cells(cells, tmp_path, {"dataset_dir": "d"}, steps)


def test_cells_of_other_recipes_are_told_apart(tmp_path, caplog):
    (tmp_path / "w.pt").touch()
    backbones = {UNTRAINED: None, "ours": str(tmp_path / "w.pt")}
    needs = {"ours": {"intensity_range": [0, 1]}}
    cells = make_cells(tmp_path / "bundle", backbones, [1, 4], ["finetune"], [0], needs)
    for cell in cells:
        folder = cell.folder(tmp_path)
        folder.mkdir(parents=True)
        write_csv(folder / "metrics.csv", ("case", "class", "dice", "hd95_mm"), [])
        ours = cell.backbone == "ours"
        recipe = {"steps": 300, "seed": 0, "scans": cell.num_labelled, "head_start": "probe" if ours else "random"}
        recipe["intensity_range"] = [0, 1] if ours else [0, 2]
        recipe["crop_ratios"] = [1.0, cell.num_labelled]  # of the scans that are drawn
        recipe["started"] = f"2026-01-0{cell.num_labelled}T00:00:00+00:00"
        (folder / "model.json").write_text(json.dumps(recipe))
    write_results(cells, tmp_path)
    assert not caplog.messages
    (cells[-1].folder(tmp_path) / "model.json").write_text(json.dumps({"steps": 300, "head_start": "random"}))
    write_results(cells, tmp_path)
    (message,) = caplog.messages
    assert "ours/finetune/4_labelled_seed_0: was trained with head_start=random" in message


def test_scans_of_one_name_in_two_folders_are_two_cases(tmp_path):
    (cell,) = make_cells(tmp_path / "bundle", {UNTRAINED: None}, [1], ["finetune"], [0])
    cell.folder(tmp_path).mkdir(parents=True)
    scores = [{"case": "001", "class": name, "dice": dice, "hd95_mm": 1.0} for dice in (0.2, 0.8) for name in "AB"]
    write_csv(cell.folder(tmp_path) / "metrics.csv", ("case", "class", "dice", "hd95_mm"), scores)
    rows = case_rows([cell], tmp_path)
    assert [(row["case"], row["dice"]) for row in rows[::2]] == [("001", 0.2), ("001 (2)", 0.8)]
    assert summarise(rows)[0]["cases"] == 2


def test_small_p_values_and_missed_classes_are_in_the_summary(tmp_path):
    rows = rows_of(UNTRAINED, "finetune", 0.0) + rows_of("ours", "finetune", 0.05)
    rows[-1]["hd95_mm"] = float("inf")
    summary = {row["backbone"]: row for row in summarise(rows)}
    assert (summary["ours"]["missed"], summary[UNTRAINED]["missed"]) == (1, 0)
    assert summary["ours"]["hd95_mm"] == 2.0 and summary["ours"]["p_value"] < 1e-4
    write_csv(tmp_path / "summary.csv", SUMMARY_COLUMNS, summary.values())
    with open(tmp_path / "summary.csv", newline="") as file:
        written = {row["backbone"]: row for row in csv.DictReader(file)}
    assert float(written["ours"]["p_value"]) == pytest.approx(summary["ours"]["p_value"], rel=0.05)
    assert written["ours"]["dice"] == f"{summary['ours']['dice']:.4f}"


def test_numbers_of_labelled_scans_are_read_from_an_option():
    assert as_counts((1, "4", "all")) == [1, 4, None] and as_counts(8) == [8]
    for wrong in ("few", 0, -1, 1.5):
        with pytest.raises(InputError, match=f"num_labelled: must be numbers of scans, or all, but {wrong} came"):
            as_counts(wrong)


def test_steps_are_those_of_heads_that_are_trained():
    made = training_settings(["linear", "finetune"], {"finetune": 300}, Path("c"))
    assert made == {"linear": {"cache_dir": Path("c")}, "finetune": {"cache_dir": Path("c"), "max_steps": 300}}
    for wrong in ("fintune", "linear"):
        with pytest.raises(InputError, match=rf"steps: must be of the heads .* \(finetune\) but {wrong} came"):
            training_settings(["linear", "finetune"], {wrong: 300}, Path("c"))


def test_a_grid_has_every_combination_once_and_few_labels_come_first(tmp_path):
    (tmp_path / "w.pt").touch()
    backbones = {UNTRAINED: None, "ours": str(tmp_path / "w.pt")}
    cells = make_cells(SEGMENTER, backbones, [None, 4, 1], ["linear", "finetune"], [0, 1])
    assert len(set(cells)) == 2 * 3 * 2 * 2
    assert [cell.labels for cell in cells[:12]] == ["1"] * 4 + ["4"] * 4 + ["all"] * 4
    assert len({cell.folder(tmp_path) for cell in cells}) == len(cells)
    scratch = next(cell for cell in cells if cell.backbone == UNTRAINED and cell.head == "finetune")
    # a setting of the training alone is not the evaluation's
    train, evaluate = scratch.commands(tmp_path, {"dataset_dir": "d", "learning_rate": 0.1}, {"max_steps": 7})
    assert "--learning_rate" in train and "--learning_rate" not in evaluate
    assert "from_scratch.json" in " ".join(train) and train[train.index("--max_steps") + 1] == "7"
    assert "--max_steps" not in evaluate and evaluate[evaluate.index("--dataset_dir") + 1] == "d"


def test_a_grid_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent.pt: no such weight file, for the backbone ours"):
        make_cells(tmp_path, {"ours": str(tmp_path / "absent.pt")}, [1], ["linear"], [0])
    with pytest.raises(InputError, match="heads: must be of linear, .*, finetune but quadratic came"):
        make_cells(tmp_path, {UNTRAINED: None}, [1], ["quadratic"], [0])
    with pytest.raises(InputError, match="backbone_settings: must be of untrained but vox2vec came"):
        make_cells(tmp_path, {UNTRAINED: None}, [1], ["linear"], [0], {"vox2vec": {"intensity_range": [0, 1]}})
    with pytest.raises(InputError, match="weak_augmentation.json: no such config; name one of this bundle's"):
        make_cells(
            BUNDLES / "hippocampus_mri_segmentation",
            {UNTRAINED: None},
            [1],
            ["finetune"],
            [0],
            {},
            ["weak_augmentation"],
        )


def test_the_same_weights_are_not_trained_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.pt").write_bytes(b"same")
    files = {name: str(tmp_path / f"{name}.pt") for name in ("a", "b")}
    with pytest.raises(InputError, match="backbones: a and b are the same weights; name them once"):
        make_cells(SEGMENTER, files, [1], ["linear"], [0])
    assert len(make_cells(SEGMENTER, files, [1], ["linear"], [0], {"b": {"spacing": [2, 2, 2]}})) == 2


def test_differences_are_to_scratch_or_to_the_untrained_backbone_where_nothing_is_fine_tuned():
    linear, tuned = (make_cells(SEGMENTER, {UNTRAINED: None}, [1], [head], [0]) for head in ("linear", "finetune"))
    assert reference_of(linear) == UNTRAINED and reference_of([*linear, *tuned]) is None
    rows = rows_of("ours", "linear", 0.03) + rows_of(UNTRAINED, "linear", 0.0)
    table = summary_table(summarise(rows, UNTRAINED), UNTRAINED)
    assert "difference to untrained" in table and "+0.030 (+0.030 to +0.030)" in table


def test_configs_are_merged_where_a_head_is_trained_step_by_step(tmp_path):
    bundle, merged = SEGMENTER, ["strong_augmentation"]
    for head, expected in (("linear", 0), ("nonlinear", 1), ("finetune", 1)):
        (cell,) = make_cells(bundle, {UNTRAINED: None}, [1], [head], [0], overrides=merged)
        commands = cell.commands(tmp_path, {}, {})
        assert [" ".join(command).count("strong_augmentation.json") for command in commands] == [expected, 0]
        assert cell.made_of({}, {})["overrides"] == (["strong_augmentation"] if expected else [])


def test_a_linear_probe_is_fitted_in_seconds_with_the_intensities_of_its_backbone(tmp_path):
    (tmp_path / "w.pt").touch()
    needs = {"vox2vec": {"intensity_range": [-1350, 1000]}}
    backbones = {UNTRAINED: None, "vox2vec": str(tmp_path / "w.pt")}
    bundle = BUNDLES / "head_neck_ct_segmentation"
    cells = make_cells(bundle, backbones, [4], ["linear", "linear_augmented"], [0], needs)
    for cell in cells:
        train, evaluate = cell.commands(tmp_path, {"intensity_range": [0, 1]}, {})
        expected = str([-1350, 1000] if cell.backbone == "vox2vec" else [0, 1])
        assert all(command[command.index("--intensity_range") + 1] == expected for command in (train, evaluate))
        assert ("quick_probe" in train) == (cell.head == "linear") and "quick_probe" not in evaluate
        assert ("linear_probe.json" in " ".join(train)) == (cell.head == "linear_augmented")


def test_rows_with_the_baselines_intensities_keep_them_in_the_segmentation(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vox2vec_baseline.json").write_text('{"balanced": false, "intensity_range": [-1350, 1000]}')
    needs = intensities_of_rows(tmp_path, ["vox2vec", "balanced", "all_three"])
    assert needs == dict.fromkeys(("vox2vec", "balanced"), {"intensity_range": [-1350, 1000]})


def test_scores_are_read_with_their_cell_and_what_has_none_is_left_out(tmp_path):
    cells = make_cells(tmp_path / "bundle", {UNTRAINED: None}, [1, 2], ["linear"], [3])
    folder = cells[0].folder(tmp_path)
    folder.mkdir(parents=True)
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["case", "class", "dice", "hd95_mm"], ["c", "A", "0.5", "inf"], ["c", "B", "", ""]])
    rows = case_rows(cells, tmp_path)
    assert [(row["num_labelled"], row["seed"], row["dice"]) for row in rows] == [("1", 3, 0.5), ("1", 3, None)]
    assert rows[0]["hd95_mm"] == float("inf") and rows[1]["hd95_mm"] is None


def test_the_figure_has_a_line_a_backbone_and_head_with_all_labels_at_its_right_end():
    rows = rows_of(UNTRAINED, "finetune", 0.0) + rows_of("released", "finetune", 0.1)
    rows += rows_of("released", "finetune", 0.2, count="all") + rows_of("released", "linear", -0.1, count="8")
    axis = label_efficiency_figure(summarise(rows), "title").axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"untrained, finetune", "released, finetune", "released, linear"}
    assert list(lines["released, finetune"].get_xdata()) == [4, 16]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["4", "8", "all"]
    # two lines of one number of labels, whose band would have no width
    assert sum(isinstance(collection, LineCollection) for collection in axis.collections) == 2
