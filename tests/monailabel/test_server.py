"""The bundles in the real server: segment, save labels, train, segment better."""

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.metrics.segmentation import dice_score

MODEL = "hippocampus_mri_segmentation"
CT_MODEL = "head_neck_ct_segmentation"

pytestmark = pytest.mark.slow


def mean_dice(prediction, truth):
    predicted, expected = (np.asarray(nib.load(path).dataobj) for path in (prediction, truth))
    values = [value for value in np.unique(expected) if value]
    return np.mean([dice_score(*(torch.as_tensor(a == value) for a in (predicted, expected))) for value in values])


@pytest.fixture(scope="module")
def server(serve):
    return serve("--models", MODEL)


@pytest.fixture(scope="module")
def own_labels(serve, scans):
    """A server whose annotators have classes of their own."""
    count = max(int(np.asarray(nib.load(label).dataobj).max()) for _, label in scans.values())
    return serve("--models", MODEL, "--labels", ",".join(f"own {value}" for value in range(1, count + 1)))


def test_the_server_knows_the_bundle_its_labels_and_how_it_can_be_trained(server):
    info = server.get("/info/")
    assert info["labels"] == ["anterior", "posterior"]
    assert info["models"][MODEL]["labels"] == {"anterior": 1, "posterior": 2}
    assert info["trainers"][MODEL]["config"]["run_id"] == "run"
    assert info["datastore"]["total"] == 3


def test_a_label_comes_on_the_images_grid_with_the_bundles_values(server, scans, tmp_path):
    for case, (image, _) in scans.items():
        assert server.infer(MODEL, case, tmp_path / "label.nii.gz") == 200
        label, scan = nib.load(tmp_path / "label.nii.gz"), nib.load(image)
        assert label.shape == scan.shape
        np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2}


def test_bad_requests_come_back_as_errors_and_the_server_goes_on(server, scans, tmp_path):
    assert server.infer(MODEL, "no_such_scan", tmp_path / "label.nii.gz") >= 400
    task = server.train(MODEL)
    assert task["status"] == "ERROR"
    assert any("error: the training request has no labelled scan" in line for line in task["details"])
    case, (image, label) = next(iter(scans.items()))
    wrong = tmp_path / "wrong.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), nib.load(image).affine), wrong)
    assert server.save_label(case, wrong) == 200
    task = server.train(MODEL, val_split=0)
    assert task["status"] == "ERROR"
    assert any("but label is (4, 5, 6)" in line for line in task["details"])
    assert server.save_label(case, label) == 200
    assert server.infer(MODEL, case, tmp_path / "label.nii.gz") == 200


def test_two_labels_of_ones_own_classes_are_enough_to_segment_the_next_scan(own_labels, scans, tmp_path):
    *labelled, unseen = scans
    truth, found = scans[unseen][1], tmp_path / "label.nii.gz"
    assert all(label.startswith("own") for label in own_labels.get("/info/")["labels"])
    assert own_labels.infer(MODEL, unseen, found) == 200
    before = mean_dice(found, truth)
    for case in labelled:
        assert own_labels.save_label(case, scans[case][1]) == 200
    task = own_labels.train(MODEL, max_epochs=1, val_split=0)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert own_labels.infer(MODEL, unseen, found) == 200
    assert mean_dice(found, truth) > before + 0.2
    # a value that no class has yet becomes one, without a new start of the server
    label = nib.load(scans[labelled[0]][1])
    voxels = np.asarray(label.dataobj).astype(np.uint8)
    more = tmp_path / "more.nii.gz"
    voxels[voxels == 0] = np.where(np.indices(voxels.shape)[0] < 3, voxels.max() + 1, 0)[voxels == 0]
    nib.save(nib.Nifti1Image(voxels, label.affine), more)
    assert own_labels.save_label(labelled[0], more) == 200
    assert own_labels.train(MODEL, val_split=0)["status"] == "DONE"
    assert own_labels.infer(MODEL, labelled[0], found) == 200
    assert voxels.max() in np.asarray(nib.load(found).dataobj)


def test_one_label_does_not_take_from_the_head_and_neck_network_what_it_knows(serve, ct_scans, tmp_path):
    server, (labelled, unseen) = serve("--models", CT_MODEL, served=ct_scans), ct_scans
    truth, found = ct_scans[unseen][1], tmp_path / "label.nii.gz"
    assert server.infer(CT_MODEL, unseen, found) == 200
    before = mean_dice(found, truth)
    assert before > 0.6
    assert server.save_label(labelled, ct_scans[labelled][1]) == 200
    # the second training goes on from the first, and is to end where that did
    for _ in range(2):
        task = server.train(CT_MODEL, val_split=0)
        assert task["status"] == "DONE", "\n".join(task["details"])
        assert server.infer(CT_MODEL, unseen, found) == 200
        assert mean_dice(found, truth) > before - 0.02


def test_fine_tuning_is_an_option_of_the_request(own_labels, scans, tmp_path):
    case, (_, label) = next(iter(scans.items()))
    assert own_labels.save_label(case, label) == 200
    config = own_labels.app / "monaibundle" / "model" / MODEL / "configs" / "train.json"
    text = config.read_text()
    assert '"steps_per_epoch": 50,' in text
    config.write_text(text.replace('"steps_per_epoch": 50,', '"steps_per_epoch": 5,'))  # minutes on some machines
    task = own_labels.train(MODEL, run_id="fine_tune", max_epochs=1, val_split=0)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert any("the last network" in line for line in task["details"])
    assert own_labels.infer(MODEL, case, tmp_path / "label.nii.gz") == 200
