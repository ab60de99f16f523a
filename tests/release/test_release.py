import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import custom_components
from custom_components.delivery import require_copy, unzip_bundle
from custom_components.errors import InputError
from custom_components.release import check_bundle, pack_bundle, release_bundles, write_listings
from scripts.release import release

from .conftest import SEGMENTER, SSL

# as `python -m monai.bundle`, where this repository cannot be imported although it is installed
RUN = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
for arguments in {runs!r}:
    sys.argv = ["monai.bundle", "run", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__")
import custom_components
print("code:", custom_components.__file__)
"""


def arguments(folder, config, **settings):
    listed = ["--config_file", str(folder / "configs" / f"{config}.json"), "--bundle_root", str(folder)]
    return listed + [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def run_elsewhere(cwd, *runs):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-W", "ignore", "-c", RUN.format(runs=list(runs))]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_a_packed_bundle_is_the_same_bytes_whenever_it_is_made(bundles, tmp_path):
    first = pack_bundle(bundles / SSL, tmp_path / "first.zip")
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundles, moved)
    for path in moved.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    (moved / SSL / "configs" / "__pycache__").mkdir()
    (moved / SSL / "configs" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (moved / SSL / ".DS_Store").write_bytes(b"x")
    second = pack_bundle(moved / SSL, tmp_path / "second.zip")
    assert first.read_bytes() == second.read_bytes()


def test_a_packed_bundle_has_its_files_and_its_code_under_its_name(bundles, tmp_path):
    with zipfile.ZipFile(pack_bundle(bundles / SEGMENTER, tmp_path / "x.zip")) as archive:
        names = archive.namelist()
        assert names == sorted(names) and all(name.startswith(f"{SEGMENTER}/") for name in names)
        assert {f"{SEGMENTER}/custom_components/__init__.py", f"{SEGMENTER}/LICENSE"} <= set(names)
        assert not [name for name in names if "__pycache__" in name]
        # weights that the training starts from come along, and the config knows
        assert archive.read(f"{SEGMENTER}/models/pretrained.pt") == (bundles / SSL / "models" / "model.pt").read_bytes()
        train = json.loads(archive.read(f"{SEGMENTER}/configs/train.json"))
        assert train["pretrained"] == "$@bundle_root + '/models/pretrained.pt'"
        source = json.loads((bundles / SEGMENTER / "configs" / "train.json").read_text())
        changed = {key for key in source if source[key] != train[key]}
        assert changed == {"pretrained", "initialize"} and train.keys() == source.keys()


def test_links_of_a_packed_readme_lead_to_files_of_the_archive(bundles, tmp_path):
    readme = bundles / SSL / "docs" / "README.md"
    text = "see [the experiments](../../../docs/EXPERIMENTS.md), [configs](../configs/train.json) and [us](https://a.b)"
    readme.write_text(text)
    with zipfile.ZipFile(pack_bundle(bundles / SSL, tmp_path / "x.zip")) as archive:
        packed = archive.read(f"{SSL}/docs/README.md").decode()
        assert f"{SSL}/configs/train.json" in archive.namelist()
    assert packed == "see the experiments, [configs](../configs/train.json) and [us](https://a.b)"
    assert readme.read_text() == text


def test_listings_name_every_archive_as_sha256sum_and_the_model_zoo_do(releases, tmp_path):
    shutil.copytree(releases, tmp_path / "served")
    write_listings(tmp_path / "served", "https://server.invalid/bundles/")
    lines = (tmp_path / "served" / "SHA256SUMS").read_text().splitlines()
    info = json.loads((tmp_path / "served" / "model_info.json").read_text())
    assert len(lines) == len(info) == 3
    for line in lines:
        sha256, name = line.split("  ")
        content = (releases / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        entry = info[name.removesuffix(".zip")]
        assert entry["checksum"] == hashlib.sha1(content).hexdigest()
        assert entry["source"] == f"https://server.invalid/bundles/{name}"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FAULTS = {
    "a file is missing": (lambda b: (b / "LICENSE").unlink(), "LICENSE: is missing"),
    "somebody's scan": (lambda b: (b / "scan.nii.gz").write_bytes(b"x"), "scan.nii.gz: is not part of a bundle"),
    "Python": (lambda b: (b / "configs" / "x.py").write_text(""), "configs/x.py: is not part of a bundle"),
    "other weights": (
        lambda b: (b / "models" / "model.pt").write_bytes(b"x"),
        "models/model.json: says .* where the SHA-256 of models/model.pt is",
    ),
    "README of other weights": (lambda b: (b / "docs" / "README.md").write_text("x"), "README.md: does not name"),
    "no JSON": (lambda b: (b / "configs" / "train.json").write_text("{"), "configs/train.json: is not JSON"),
    "a field is missing": (
        lambda b: edit(b / "configs" / "metadata.json", lambda content: content.pop("authors")),
        "metadata.json: has no authors; it must be of type str",
    ),
    "a tensor without channels": (
        lambda b: edit(
            b / "configs" / "metadata.json", lambda c: c["network_data_format"]["outputs"]["pred"].pop("num_channels")
        ),
        "has no network_data_format.outputs.pred.num_channels",
    ),
    "a version nobody explains": (
        lambda b: edit(b / "configs" / "metadata.json", lambda content: content.update(version="0.2.0")),
        "changelog has no entry '0.2.0'",
    ),
    "a path of somebody's machine": (
        lambda b: edit(b / "models" / "model.json", lambda content: content.update(data="/somewhere/scans")),
        "data names a path of one machine",
    ),
    "a path of somebody's machine among others": (
        lambda b: edit(b / "models" / "model.json", lambda content: content.update(data=["A", "/somewhere/scans"])),
        "data names a path of one machine, /somewhere/scans;",
    ),
    "a start that only one machine has": (
        lambda b: edit(b / "models" / "model.json", lambda content: content.update(pretrained="/somewhere/model.pt")),
        "pretrained names a path of one machine",
    ),
    "a command of one machine": (
        lambda b: edit(b / "models" / "model.json", lambda c: c.update(command="run --x ['a/b.json','/my/c.json']")),
        "command names a path of one machine, /my/c.json;",
    ),
    "weights taught on other voxels": (
        lambda b: edit(b / "models" / "model.json", lambda content: content.update(spacing_mm=[2, 2, 2])),
        r"configs/evaluate.json: has spacing \[1.0, 1.0, 1.0\], but the weights were trained with \[2, 2, 2\]",
    ),
    "too large": (
        lambda b: (b / "models" / "pretraining.pt").write_bytes(bytes(101_000_000)),
        "has 101.0 MB; at most 100 MB",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_with_a_fault_is_not_released(fault, bundles, tmp_path):
    damage, message = FAULTS[fault]
    check_bundle(bundles / SSL)
    damage(bundles / SSL)
    with pytest.raises(InputError, match=message):
        release_bundles(bundles, tmp_path / "out", [SSL])
    assert not (tmp_path / "out").exists()


def test_the_network_must_do_what_the_metadata_says(bundles, tmp_path):
    path = bundles / SSL / "configs" / "metadata.json"
    edit(path, lambda content: content["network_data_format"]["outputs"]["pred"].update(num_channels=5))
    with pytest.raises(InputError, match="its network_def does not do what metadata.json says"):
        release_bundles(bundles, tmp_path / "out", [SSL])
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_packed_of_another_bundle_is_checked_too(bundles, tmp_path):
    models = bundles / SSL / "models"
    record = json.loads((models / "model.json").read_text())
    (models / "model.json").write_text(json.dumps({**record, "command": "python -m x '--a=/home/anna/my scans'"}))
    with pytest.raises(InputError, match="command names a path of one machine, /home/anna/my scans;"):
        pack_bundle(bundles / SEGMENTER, tmp_path / "packed.zip")
    (models / "model.json").write_text(json.dumps(record))
    (models / "model.pt").write_bytes(b"garbage")
    with pytest.raises(InputError, match="model.pt"):
        pack_bundle(bundles / SEGMENTER, tmp_path / "packed.zip")


def test_every_record_of_a_bundle_is_looked_through_for_places(bundles):
    (bundles / SEGMENTER / "docs" / "metrics.json").write_text(json.dumps({"command": "x --a /home/anna/scans"}))
    with pytest.raises(InputError, match="docs/metrics.json: command names a path of one machine, /home/anna/scans"):
        check_bundle(bundles / SEGMENTER)


def test_a_stray_archive_is_not_listed(tmp_path):
    for name in ("ct_dense_ssl_v0.1.0.zip", "ct_dense_ssl_v0.1.0 (1).zip", "notes_v2.zip"):
        (tmp_path / name).write_bytes(b"zip")
    write_listings(tmp_path)
    assert [line.split("  ")[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()] == [
        "ct_dense_ssl_v0.1.0.zip"
    ]


def test_weights_that_a_training_starts_from_must_be_there(bundles, tmp_path):
    shutil.rmtree(bundles / SSL)
    with pytest.raises(
        InputError, match="model.(pt|json): is missing, and hippocampus_mri_segmentation starts from it"
    ):
        pack_bundle(bundles / SEGMENTER, tmp_path / "x.zip")


def test_a_bundle_refuses_to_run_with_the_code_of_another_release(tmp_path):
    own = tmp_path / "same" / "custom_components"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(os.path.dirname(custom_components.__file__), own, ignore=ignored)
    require_copy(tmp_path / "same")
    (own / "version.py").write_text('__version__ = "9.9.9"\n')
    with pytest.raises(
        InputError, match="brings its own custom_components, .* run this bundle in a process of its own"
    ):
        require_copy(tmp_path / "same")


@pytest.mark.slow
def test_release_checks_packs_and_tries_every_bundle_with_weights(bundles, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = Path("out")
    release(output_dir=str(output), bundles_dir=str(bundles))
    names = sorted(path.name for path in output.iterdir())
    archives = [f"{SEGMENTER}_v0.1.0.zip", f"{SSL}_v0.1.0.zip"]
    assert names == sorted(["SHA256SUMS", *archives, "model_info.json"])
    assert "2 released" in capsys.readouterr().out
    edit(bundles / SSL / "configs" / "metadata.json", lambda content: content.update(description="another"))
    with pytest.raises(SystemExit, match="exists with other content; a version is released once"):
        release(SSL, output_dir=str(output), bundles_dir=str(bundles))
    assert sorted(path.name for path in output.iterdir()) == names


@pytest.mark.slow
def test_a_packed_bundle_trains_evaluates_and_segments_without_the_repository(releases, mri_phantoms, tmp_path):
    folder = unzip_bundle(releases / f"{SEGMENTER}_v0.1.0.zip", SEGMENTER, tmp_path / "anywhere" / "renamed")
    classes = "['Liver','Spleen','RightKidney','LeftKidney','Aorta','Bladder']"
    common = {"dataset_dir": mri_phantoms, "spacing": [8, 8, 8], "crop_size": [16] * 3, "class_names": classes}
    trained = tmp_path / "trained"
    short = {"max_steps": 4, "steps_per_epoch": 2, "val_interval": 1, "scans_per_step": 2}
    weights = {"weights": trained / "model.pt", "output_dir": tmp_path / "results"}
    done = run_elsewhere(
        tmp_path,
        arguments(folder, "train", output_dir=trained, **common, **short),
        arguments(folder, "evaluate", **common, **weights, split="all"),
        arguments(folder, "inference", **common, **weights),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"code: {folder / 'custom_components' / '__init__.py'}" in done.stdout
    assert json.loads((trained / "model.json").read_text())["steps"] == 4
    assert (tmp_path / "results" / "metrics.csv").is_file()
    assert len(list((tmp_path / "results").glob("*_seg.nii.gz"))) == 6


@pytest.mark.slow
def test_a_packed_bundle_runs_from_inside_its_folder_as_those_of_the_model_zoo_do(releases, mri_phantoms, tmp_path):
    folder = unzip_bundle(releases / f"{SSL}_v0.9.0.zip", SSL, tmp_path / SSL)
    settings = {"dataset_dir": sorted((mri_phantoms / "imagesTr").glob("*.nii.gz"))[0], "spacing": [8, 8, 8]}
    listed = ["--config_file", "configs/inference.json", "--output_dir", "out"]
    done = run_elsewhere(
        folder, [*listed, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "out").glob("*_features.nii.gz"))) == 1


@pytest.mark.slow
def test_two_packed_bundles_in_one_process_do_not_disturb_each_other(releases, mri_phantoms, tmp_path):
    scan = sorted((mri_phantoms / "imagesTr").glob("*.nii.gz"))[0]
    runs = {}
    for kind in ("together", "alone"):
        runs[kind] = []
        for name, version, size in ((SSL, "0.10.0", "roi_size"), (SEGMENTER, "0.1.0", "crop_size")):
            folder = unzip_bundle(releases / f"{name}_v{version}.zip", name, tmp_path / name)
            settings = {"dataset_dir": scan, "spacing": [8, 8, 8], size: [16] * 3}
            runs[kind].append(arguments(folder, "inference", output_dir=tmp_path / kind, **settings))
    for done in (run_elsewhere(tmp_path, *runs["together"]), *(run_elsewhere(tmp_path, run) for run in runs["alone"])):
        assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert len(names) == 2
    for name in names:
        together, alone = (np.asarray(nib.load(tmp_path / kind / name).dataobj) for kind in ("together", "alone"))
        assert np.array_equal(together, alone)
    # a release with other code says so instead of running with the code that came first
    (tmp_path / SEGMENTER / "custom_components" / "version.py").write_text('__version__ = "9.9.9"\n')
    done = run_elsewhere(tmp_path, *runs["together"])
    assert done.returncode != 0 and "run this bundle in a process of its own" in done.stderr
