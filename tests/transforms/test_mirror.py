import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import InputError
from custom_components.transforms import RandMirrord, mirrored_classes_order, mirrored_pairs

NAMES = ["Brainstem", "RightParotid", "LeftParotid"]
SIDES = [["RightParotid", "LeftParotid"]]


def item():
    """A patient in RAS order: +x is the right, where the right gland is bright."""
    label = torch.zeros(1, 7, 4, 3, dtype=torch.uint8)
    label[:, 3], label[:, 5], label[:, 1] = 1, 2, 3
    image = torch.zeros(1, 7, 4, 3)
    image[:, 5], image[:, 1] = 0.9, 0.4
    return {
        "image": MetaTensor(image, affine=torch.eye(4)),
        "label": MetaTensor(label, affine=torch.eye(4)),
        "annotated": torch.tensor([1.0, 1.0, 0.0]),
    }


def test_a_right_organ_is_on_the_right_before_and_after_mirroring():
    mirrored = RandMirrord(["image", "label"], NAMES, SIDES, prob=1.0)(item())
    for data in (item(), mirrored):
        right, left = (np.argwhere(np.asarray(data["label"])[0] == value)[:, 0].mean() for value in (2, 3))
        assert right > 3 > left
    assert mirrored["label"].dtype == torch.uint8 and isinstance(mirrored["label"], MetaTensor)


def test_the_image_is_mirrored_along_the_first_axis_only():
    mirrored = RandMirrord(["image", "label"], NAMES, SIDES, prob=1.0)(item())
    assert np.array_equal(np.asarray(mirrored["image"]), np.asarray(item()["image"])[:, ::-1])
    assert float(mirrored["image"][mirrored["label"] == 2].unique()) == pytest.approx(0.4)  # what was the left gland


def test_an_organ_that_is_annotated_on_one_side_is_annotated_on_the_other_afterwards():
    mirrored = RandMirrord(["image", "label"], NAMES, SIDES, prob=1.0)(item())
    assert mirrored["annotated"].tolist() == [1, 0, 1]


def test_twice_is_not_at_all_and_the_input_stays_as_it_is():
    mirror, data = RandMirrord(["image", "label"], NAMES, SIDES, prob=1.0), item()
    twice = mirror(mirror(data))
    for key, value in item().items():
        assert torch.equal(torch.as_tensor(twice[key]), torch.as_tensor(value))
        assert torch.equal(torch.as_tensor(data[key]), torch.as_tensor(value))


def test_classes_without_a_side_are_only_mirrored():
    mirrored = RandMirrord(["image", "label"], ["Brainstem", "Larynx", "Mandible"], prob=1.0)(item())
    assert np.array_equal(np.asarray(mirrored["label"]), np.asarray(item()["label"])[:, ::-1])


def test_half_of_the_scans_are_mirrored_and_the_seed_decides_which():
    mirror = RandMirrord(["image", "label"], NAMES, SIDES).set_random_state(0)
    seen = [bool(mirror(item())["annotated"][1] == 0) for _ in range(200)]
    mirror.set_random_state(0)
    assert seen == [bool(mirror(item())["annotated"][1] == 0) for _ in range(200)]
    assert 70 < sum(seen) < 130


@pytest.mark.parametrize("pairs", [[["RightParotid"]], [["RightParotid", "Spleen"]], [["Brainstem", "Brainstem"]]])
def test_pairs_that_are_no_pairs_of_classes_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs of different names"):
        RandMirrord("label", NAMES, pairs)


def test_pairs_of_other_classes_do_not_matter_where_nothing_is_mirrored():
    mirror = RandMirrord(["image", "label"], ["Liver", "Spleen"], SIDES, prob=0.0)
    assert torch.equal(torch.as_tensor(mirror(item())["label"]), torch.as_tensor(item()["label"]))


def test_the_names_of_classes_tell_which_are_left_and_right_of_one_organ():
    assert mirrored_pairs(NAMES) == SIDES
    names = ["kidney_left", "L_eye", "Liver", "kidney_right", "R_eye", "lung l", "lung r", "Skull", "LEFT HIP"]
    assert mirrored_pairs(names) == [["kidney_left", "kidney_right"], ["L_eye", "R_eye"], ["lung l", "lung r"]]


@pytest.mark.parametrize(
    "pair",
    [
        ("NiereLinks", "NiereRechts"),
        ("linke Niere", "rechte Niere"),
        ("LINKER_LUNGENFLUEGEL", "RECHTER_LUNGENFLUEGEL"),
        ("rein_gauche", "rein_droit"),
        ("glande gauche", "glande droite"),
        ("riñon_izquierdo", "riñon_derecho"),
        ("rim esquerdo", "rim direito"),
        ("rene_sinistro", "rene_destro"),
        ("Glandula parotis sinistra", "Glandula parotis dextra"),
        ("ren sinister", "ren dexter"),
        ("Parotis_li", "Parotis_re"),
        ("Parotide dx", "Parotide sx"),
        ("Lt Kidney", "Rt Kidney"),
        ("Leftkidney", "Rightkidney"),
        ("LKidney", "RKidney"),
        ("KidneyL", "KidneyR"),
        ("pulmon_izquierdo", "pulmon_derecho"),
    ],
)
def test_left_and_right_are_known_in_other_languages(pair):
    for names in (pair, pair[::-1]):
        assert mirrored_pairs(["Liver", names[0], "Spleen", names[1]]) == [list(names)]
    if pair[0] not in ("Parotis_li", "Parotide dx", "Lt Kidney", "LKidney", "KidneyL"):
        with pytest.raises(InputError, match="is in no pair"):
            mirrored_classes_order(["Liver", pair[0]], [])


@pytest.mark.parametrize(
    "pair",
    [
        ("LeftVentricle", "RightVentricle"),
        ("LinkerVorhof", "RechterVorhof"),
        ("Ventrikel_links", "Ventrikel_rechts"),
        ("oreillette_gauche", "oreillette_droite"),
        ("aurícula_izquierda", "aurícula_derecha"),
        ("átrio_esquerdo", "átrio_direito"),
        ("left_coronary_artery", "right_coronary_artery"),
        ("left pulmonary artery", "right pulmonary artery"),
    ],
)
def test_sides_of_the_heart_are_not_exchanged(pair):
    assert mirrored_pairs(list(pair)) == []


def test_letters_that_may_mean_something_else_are_no_side_alone():
    names = [
        "Li",
        "Sin",
        "Linksys",
        "LSpine",
        "VitaminL",
        "Direction",
        "Rechtsanwalt",
        "Gauchery",
        "Rectum",
        "Bright",
        "cleft",
    ]
    assert mirrored_pairs(names) == [] and mirrored_classes_order(names, []) == list(range(len(names)))


def test_what_is_exchanged_is_told(caplog):
    caplog.set_level("INFO")
    RandMirrord("label", NAMES, SIDES)
    RandMirrord("label", ["Niere", "Lunge"])
    RandMirrord("label", ["Niere", "Lunge"], prob=0)
    first, second = caplog.messages
    assert first.endswith("with probability 0.5: exchanged are RightParotid with LeftParotid, no other class")
    assert second.endswith("no class is exchanged with another")
    assert mirrored_pairs(["Left-Hippocampus", "Right-Hippocampus", "RIGHT HIP", "LEFT HIP"]) == [
        ["Left-Hippocampus", "Right-Hippocampus"],
        ["RIGHT HIP", "LEFT HIP"],
    ]


def test_chambers_of_the_heart_and_sides_inside_of_words_are_in_no_pair():
    assert mirrored_pairs(["LeftVentricle", "RightVentricle", "left_atrium", "right_atrium"]) == []
    assert mirrored_classes_order(["BrightLesion", "alveolar cleft", "Leaf"], []) == [0, 1, 2]


@pytest.mark.parametrize(("names", "pairs"), [(NAMES, []), (["Liver", "kidney_l"], []), (NAMES[:2], [])])
def test_a_class_of_one_side_without_its_mirror_image_is_not_mirrored(names, pairs):
    with pytest.raises(InputError, match="is in no pair.*--mirror_probability 0"):
        mirrored_classes_order(names, pairs)
    with pytest.raises(InputError, match="is in no pair"):
        RandMirrord(["image", "label"], names, pairs)
    RandMirrord(["image", "label"], names, pairs, prob=0)
