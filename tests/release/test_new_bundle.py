"""A bundle of one's own, from each of the package's."""

import json

import pytest

from custom_components.errors import InputError
from custom_components.metrics import record_scores
from custom_components.networks import SegmentationNetwork, save_weights
from custom_components.release import adopt_weights, check_bundle, check_network, new_bundle, release_bundles

from .conftest import BUNDLES, SEGMENTER, SSL, TINY

NAMES = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
SCORES = "case,class,dice,hd95_mm\na,Liver,0.8,2.0\na,Spleen,0.6,3.0\na,Kidney,0.5,4.0\n"
CLASSES = ["Liver", "Spleen", "Kidney"]


def configs_of(bundle):
    return {path.name: json.loads(path.read_text()) for path in (bundle / "configs").glob("*.json")}


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_can_be_copied_with_other_settings(name, tmp_path):
    settings = {"spacing": [2.0, 2.0, 3.0], "crop_size": [16, 16, 16], "base_channels": 8, "num_scales": 3}
    settings |= {"class_names": CLASSES} if name.endswith("segmentation") else {}
    mine = tmp_path / ("my_segmentation" if name.endswith("segmentation") else "mine")
    new_bundle(BUNDLES / name, mine, settings)
    before, after = configs_of(BUNDLES / name), configs_of(mine)
    metadata = after.pop("metadata.json")
    # those of other sizes would override the settings
    assert after.keys() == before.keys() - {"metadata.json", "paper.json", "low_resolution.json"}
    for file, config in after.items():
        expected = dict(before[file])
        if file in ("train.json", "evaluate.json", "inference.json"):
            expected |= {key: value for key, value in settings.items() if key in expected}
            expected |= {"one_piece": []} if "one_piece" in expected else {}
        assert config == expected, file
    if name.endswith("segmentation"):  # a single name, as a command line gives it
        new_bundle(BUNDLES / name, tmp_path / "cyst_segmentation", {"class_names": "Cyst"})
        assert configs_of(tmp_path / "cyst_segmentation")["train.json"]["class_names"] == ["Cyst"]
    channels = len(CLASSES) if "class_names" in settings else 32 * 3
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == channels
    check_network(mine)
    assert not (mine / "models").exists()
    new_bundle(BUNDLES / name, mine.with_name(f"same_{mine.name}"), {})
    assert configs_of(mine.with_name(f"same_{mine.name}")).keys() == before.keys()


def test_a_copy_adopts_weights_and_is_released_once_its_metadata_is_filled_in(bundles, tmp_path):
    mine = bundles / "my_segmentation"
    empty = new_bundle(bundles / SEGMENTER, mine, {"class_names": CLASSES}, backbone=SSL)
    record = {"data": "data/Scans", "scans": 7, "classes": CLASSES, "command": "python -m x", **TINY}
    save_weights(SegmentationNetwork(num_classes=3, **TINY), tmp_path / "out" / "model.pt", record)
    (tmp_path / "out" / "metrics.csv").write_text(SCORES)
    record_scores(tmp_path / "out" / "metrics.csv", tmp_path / "out" / "model.pt", "test")
    with pytest.raises(InputError, match="class_names.*a bundle of their own"):
        adopt_weights(bundles / SEGMENTER, tmp_path / "out" / "model.pt", tmp_path / "out" / "metrics.csv", "mit")
    adopt_weights(mine, tmp_path / "out" / "model.pt", tmp_path / "out" / "metrics.csv", "mit")
    with pytest.raises(InputError, match="description is empty; fill it in") as caught:
        check_bundle(mine)
    assert len(str(caught.value).splitlines()) == len(empty) + 1  # and the sentence of the README
    assert "still has 'WHAT IT IS, IN A SENTENCE.'" in str(caught.value)
    readme = mine / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("WHAT IT IS, IN A SENTENCE.", "Liver, spleen and kidneys."))
    metadata = json.loads((mine / "configs" / "metadata.json").read_text())
    assert metadata["label_classes"] == "0 = background, 1 = Liver, 2 = Spleen, 3 = Kidney"
    (mine / "configs" / "metadata.json").write_text(json.dumps(metadata | dict.fromkeys(empty, "said")))
    (archive,) = release_bundles(bundles, tmp_path / "dist", ["my_segmentation"])
    assert archive.name == "my_segmentation_v0.1.0.zip"


def test_a_copy_can_start_from_another_backbone(tmp_path):
    new_bundle(BUNDLES / SEGMENTER, tmp_path / "my_segmentation", {}, backbone="my_ssl")
    text = (tmp_path / "my_segmentation" / "configs" / "train.json").read_text()
    assert "/../my_ssl/models/model.pt" in text and SSL not in text


@pytest.mark.parametrize(
    ("source", "name", "settings", "backbone", "sentence"),
    [
        ("nothing", "mine", {}, None, "is no bundle to copy"),
        (SEGMENTER, "Mine", {}, None, "small letters"),
        (SEGMENTER, SEGMENTER, {}, None, "exists; give the new bundle another name"),
        (SEGMENTER, "mine", {}, None, "the name of a bundle like hippocampus_mri_segmentation ends in _segmentation"),
        (SSL, "my_segmentation", {}, None, "does not end in _segmentation"),
        (SEGMENTER, "a_segmentation", {"spacings": [1, 1, 1]}, None, "spacings: is no setting of hippocampus"),
        (SEGMENTER, "a_segmentation", {"optimizer": 1}, None, "optimizer: is more than a value"),
        (SSL, "mine", {}, "other", "starts from no other bundle"),
        (SEGMENTER, "a_segmentation", {}, "my/ssl", "my/ssl: a bundle's name has small letters"),
    ],
)
def test_what_cannot_be_copied_is_told_and_nothing_is_written(source, name, settings, backbone, sentence, bundles):
    before = sorted(bundles.rglob("*"))
    with pytest.raises(InputError, match=sentence):
        new_bundle(bundles / source, bundles / name, settings, backbone)
    assert sorted(bundles.rglob("*")) == before
