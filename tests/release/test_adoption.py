"""Weights and their measured figures, put into a bundle."""

import json
import sys
from types import SimpleNamespace

import pytest

from custom_components.errors import InputError
from custom_components.metrics import record_scores, seen_scans
from custom_components.networks import SegmentationNetwork, save_weights
from custom_components.release import adopt_weights, check_bundle, model_card

from .conftest import BUNDLES, SEGMENTER, SSL, TINY

SCORES = (
    "case,class,dice,hd95_mm\na,Anterior,0.8000,2.0\na,Posterior,0.6000,inf\nb,Anterior,0.9000,4.0\nb,Posterior,,\n"
)
RETRIEVAL = "case,retrieved_within_1,median_mm\na,0.5000,2.0\na,0.7000,4.0\n"


@pytest.fixture
def trained(tmp_path):
    """Weights of a training, and its scores."""
    record = {"data": "data/Scans", "scans": 7, "steps": 5, "commit": "abc", "minutes": 1.5, "machine": "2 CPU threads"}
    save_weights(SegmentationNetwork(num_classes=2, **TINY), tmp_path / "out" / "model.pt", {**record, **TINY})
    (tmp_path / "out" / "metrics.csv").write_text(SCORES)
    record_scores(tmp_path / "out" / "metrics.csv", tmp_path / "out" / "model.pt", "test")
    return tmp_path / "out"


def test_a_bundle_that_adopts_weights_can_be_released_and_published(bundles, trained):
    bundle = bundles / SEGMENTER
    (bundle / "docs" / "README.md").write_text("# Name\n\nWhat it is.\n\n## Released weights\n\nBy hand.\n")
    figures = adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0")
    assert figures == pytest.approx({"mean_dice": 0.725, "dice_Anterior": 0.85, "dice_Posterior": 0.6})
    metadata = check_bundle(bundle)
    assert metadata["eval_metrics"] == figures
    assert metadata["weights"]["models/model.pt"]["license"] == "cc-by-4.0"
    text = (bundle / "docs" / "README.md").read_text()
    assert "| Anterior | 2 | 0.850 | 3.0 | 0 |" in text and "| Posterior | 1 | 0.600 |  | 1 |" in text
    assert "| mean | | **0.725** | 3.0 | |" in text and "data/Scans: 7 scans" in text
    assert text.endswith("By hand.\n")
    assert "0.850" in model_card(bundle, "owner/name")
    assert not (bundle / "docs" / "metrics.csv").exists()


def test_the_next_weights_replace_what_was_written_of_the_last(bundles, trained, monkeypatch):
    bundle = bundles / SEGMENTER
    adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0")
    first = json.loads((bundle / "models" / "model.json").read_text())["sha256"]
    save_weights(SegmentationNetwork(num_classes=2, **TINY), trained / "model.pt", {"data": "data/Scans"})
    with pytest.raises(InputError, match="metrics.json: was written for other weights than .*model.pt; run evaluate"):
        adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0")
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--dataset_dir", "/home/anna/Scans"])
    program = SimpleNamespace(__spec__=SimpleNamespace(name="monai.bundle.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", program)
    record_scores(trained / "metrics.csv", trained / "model.pt", "all")
    (bundle / "models" / "model.safetensors").write_bytes(b"of the weights before")
    adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0", with_cases=True)
    text = (bundle / "docs" / "README.md").read_text()
    sha256 = json.loads((bundle / "models" / "model.json").read_text())["sha256"]
    assert first != sha256 and sha256 in text and first not in text and text.count("begin -->") == 1
    assert (bundle / "docs" / "metrics.csv").read_text() == SCORES and "on 2 scans (`--split all`), on" in text
    assert not (bundle / "models" / "model.safetensors").exists()
    check_bundle(bundle)
    published = json.loads((bundle / "docs" / "metrics.json").read_text())
    assert published["command"] == "python -m monai.bundle run --dataset_dir Scans"
    # once more from the bundle itself, and then without the cases
    adopt_weights(bundle, bundle / "models" / "model.pt", bundle / "docs" / "metrics.csv", "mit", with_cases=True)
    assert (bundle / "docs" / "metrics.csv").read_text() == SCORES
    adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "mit")
    assert not list((bundle / "docs").glob("metrics.*"))


@pytest.mark.parametrize("with_cases", [False, True])
def test_which_scans_were_seen_is_published_like_their_names_and_warned_of(with_cases, bundles, trained, caplog):
    record = json.loads((trained / "model.json").read_text())
    seen = seen_scans([{"case": "b"}, {"case": "c"}])
    (trained / "model.json").write_text(json.dumps({**record, "seen_scans": seen}))
    adopt_weights(bundles / SEGMENTER, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0", with_cases)
    published = json.loads((bundles / SEGMENTER / "models" / "model.json").read_text())
    assert published.get("seen_scans") == (seen if with_cases else None)
    (message,) = [message for message in caplog.messages if "1 of the 2 scans have the names" in message]
    assert "(b)" in message
    text = (bundles / SEGMENTER / "docs" / "README.md").read_text()
    assert "Measured on 2 scans, of which 1 have the names of scans that the training has seen, on" in text


def test_retrieval_is_the_mean_of_every_column(bundles, trained):
    (trained / "retrieval.csv").write_text(RETRIEVAL)
    record_scores(trained / "retrieval.csv", trained / "model.pt", "test")
    figures = adopt_weights(bundles / SSL, trained / "model.pt", trained / "retrieval.csv", "mit")
    assert figures == {"retrieved_within_1": 0.6, "median_mm": 3.0}
    text = (bundles / SSL / "docs" / "README.md").read_text()
    assert "1 held-out scans, 2 pairs" in text and "| median mm | 3.0 |" in text


def test_places_of_one_machine_are_not_published(bundles, trained):
    record = json.loads((trained / "model.json").read_text())
    command = "python -m x run --config_file \"['bundles/a.json','/home/jo/my.json']\" --dataset_dir /data/jo/Scans"
    changes = {"data": ["/data/jo/Scans", "data/More"], "pretrained": str(BUNDLES / "x.pt"), "command": command}
    (trained / "model.json").write_text(json.dumps({**record, **changes}))
    adopt_weights(bundles / SEGMENTER, trained / "model.pt", trained / "metrics.csv", "mit")
    adopted = json.loads((bundles / SEGMENTER / "models" / "model.json").read_text())
    assert adopted["data"] == ["Scans", "data/More"] and adopted["pretrained"] == "bundles/x.pt"
    assert adopted["command"].endswith("\"['bundles/a.json','my.json']\" --dataset_dir Scans")
    check_bundle(bundles / SEGMENTER)
    assert not any(b"/jo/" in path.read_bytes() for path in bundles.rglob("*") if path.is_file())
    assert json.loads((trained / "model.json").read_text())["command"] == command


@pytest.mark.parametrize(("name", "value"), [("classes", ["Posterior", "Anterior"]), ("spacing_mm", [2, 2, 2])])
def test_a_bundle_for_another_network_does_not_adopt_it(name, value, bundles, trained):
    bundle = bundles / SEGMENTER
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    record = json.loads((trained / "model.json").read_text())
    (trained / "model.json").write_text(json.dumps({**record, name: value}))
    with pytest.raises(InputError, match="evaluate.json: has .*give such weights a bundle of their own"):
        adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "mit")
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "fault", ["no record", "damaged weights", "no scores", "other table", "other classes", "changed"]
)
def test_nothing_is_written_where_something_is_wrong(fault, bundles, trained):
    bundle = bundles / SEGMENTER
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    if fault == "no record":
        (trained / "model.json").unlink()
    elif fault == "damaged weights":
        with open(trained / "model.pt", "ab") as file:
            file.write(b"x")
    elif fault == "no scores":
        (trained / "metrics.csv").unlink()
    elif fault == "other table":
        (trained / "metrics.csv").write_text("a,b\n1,2\n")
    elif fault == "changed":
        (trained / "metrics.csv").write_text(SCORES.replace("0.6", "0.9"))
    else:
        record = json.loads((trained / "model.json").read_text())
        (trained / "model.json").write_text(json.dumps({**record, "classes": ["Liver", "Spleen"]}))
    with pytest.raises(InputError) as caught:
        adopt_weights(bundle, trained / "model.pt", trained / "metrics.csv", "cc-by-4.0")
    assert str(trained) in str(caught.value)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
