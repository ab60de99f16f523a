import hashlib
from pathlib import Path

import pytest

from custom_components.data import DataError, digest_of_cases, few_label_subset, read_datalist, split_datalist

PARTS = ("train", "validation", "test")


def scans(count, folder="A", prefix="case"):
    return [{"case": f"{prefix}_{i:03d}", "folder": folder, "image": f"{folder}/{i}"} for i in range(count)]


def cases(items):
    return [item["case"] for item in items]


@pytest.mark.parametrize("count", [3, 4, 5, 10, 37, 200])
def test_one_folder_is_split_into_the_announced_numbers(count):
    items = scans(count)
    test, validation = max(1, round(count * 0.2)), max(1, round(count * 0.1))
    assert len(split_datalist(items, "test")) == test
    assert len(split_datalist(items, "validation")) == validation
    assert len(split_datalist(items, "train")) == count - test - validation
    assert len(split_datalist(items, "pretrain")) == count - test
    assert split_datalist(items, "all") == items


def test_the_parts_are_disjoint_and_complete_and_keep_the_order():
    items = scans(50)
    parts = [split_datalist(items, part) for part in PARTS]
    assert sorted(c for part in parts for c in cases(part)) == sorted(cases(items))
    assert all(cases(part) == sorted(cases(part)) for part in parts)
    assert sorted(cases(parts[0]) + cases(parts[1])) == cases(split_datalist(items, "pretrain"))


def test_all_scans_of_a_patient_that_is_named_are_on_one_side_and_patients_are_counted():
    items = [{**item, "patient": item["case"][:-1]} for item in scans(200)]  # ten scans a patient
    parts = [{item["patient"] for item in split_datalist(items, part)} for part in PARTS]
    assert [len(part) for part in parts] == [14, 2, 4] and len(set.union(*parts)) == 20
    assert len(split_datalist(items, "test")) == 40


def test_the_test_part_is_the_lowest_fifth_of_the_hashes():
    items = scans(20)
    ranked = sorted(cases(items), key=lambda case: int(hashlib.sha256(f"7:{case}".encode()).hexdigest(), 16))
    assert set(cases(split_datalist(items, "test", split_seed=7))) == set(ranked[:4])
    assert set(cases(split_datalist(items, "validation", split_seed=7))) == set(ranked[4:6])


def test_the_split_does_not_depend_on_the_order_and_depends_on_the_seed():
    items = scans(50)
    assert set(cases(split_datalist(items[::-1], "test"))) == set(cases(split_datalist(items, "test")))
    assert set(cases(split_datalist(items, "test", 1))) != set(cases(split_datalist(items, "test", 0)))


@pytest.mark.parametrize("count", [10, 41, 100])
def test_an_added_scan_moves_few_others(count):
    before, after = scans(count), scans(count + 1)
    old, new = ({c: p for p in PARTS for c in cases(split_datalist(items, p))} for items in (before, after))
    assert sum(old[case] != new[case] for case in old) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_no_test_patient_of_one_folder_is_pretrained_on_with_any_other_folders(seed):
    a = scans(37)
    others = [scans(n, "B", prefix) for n in (3, 12, 80) for prefix in ("case", "other")]
    held_out = set(cases(split_datalist(a, "test", seed)))
    for b in others:
        together = a + b + scans(20, "C")
        assert held_out.isdisjoint(cases(split_datalist(together, "pretrain", seed)))
        assert held_out <= set(cases(split_datalist(together, "test", seed)))


def test_a_patient_in_two_folders_is_on_one_side_and_each_folder_holds_out_about_a_fifth():
    together = scans(40, "CT") + scans(40, "MRI") + scans(100, "other", "else")
    sides = {part: set(cases(split_datalist(together, part))) for part in PARTS}
    assert sides["test"].isdisjoint(sides["train"]) and sides["test"].isdisjoint(sides["validation"])
    for folder, count in {"CT": 8, "MRI": 8, "other": 20}.items():
        assert sum(item["folder"] == folder for item in split_datalist(together, "test")) == count


def test_two_scans_are_not_split():
    assert len(split_datalist(scans(2), "train")) == 2
    assert split_datalist(scans(2), "validation") == []
    with pytest.raises(DataError, match="2 scans, and 3 are the fewest"):
        split_datalist(scans(2), "test")


def test_fractions_of_zero_hold_out_nothing():
    assert len(split_datalist(scans(10), "train", test_fraction=0, validation_fraction=0)) == 10


def test_nothing_left_to_train_on_is_said():
    with pytest.raises(DataError, match="No training scan left: 3 scans"):
        split_datalist(scans(3), "train", test_fraction=0.5, validation_fraction=0.4)
    with pytest.raises(DataError, match="No training scan left"):
        split_datalist([], "pretrain")


def test_unknown_parts_and_impossible_fractions_are_refused():
    with pytest.raises(ValueError, match="train, validation, test, pretrain, all but is 'val'"):
        split_datalist(scans(5), "val")
    for fractions in ((-0.1, 0.1), (0.6, 0.4)):
        with pytest.raises(ValueError, match="fractions must be"):
            split_datalist(scans(5), "all", 0, *fractions)


@pytest.mark.parametrize(("count", "num_folds"), [(30, 3), (60, 5), (7, 3)])
def test_every_case_is_a_test_case_of_exactly_one_fold(count, num_folds):
    items = scans(count)
    tests = []
    for fold in range(num_folds):
        parts = {part: cases(split_datalist(items, part, num_folds=num_folds, fold=fold)) for part in PARTS}
        assert sorted(case for part in parts.values() for case in part) == cases(items)
        assert count // num_folds <= len(parts["test"]) <= -(-count // num_folds)
        assert len(parts["validation"]) == max(1, round(count * 0.1))
        tests += parts["test"]
    assert sorted(tests) == cases(items)


@pytest.mark.parametrize(("num_folds", "fold"), [(1, 0), (3, 3), (3, -1)])
def test_a_fold_that_does_not_exist_is_refused(num_folds, fold):
    with pytest.raises(ValueError, match="num_folds must be at least 2"):
        split_datalist(scans(9), "test", num_folds=num_folds, fold=fold)


def test_a_smaller_subset_is_the_start_of_a_larger_one():
    items = scans(20)
    order = few_label_subset(items, 20)
    for count in range(1, 20):
        assert few_label_subset(items, count) == order[:count]
    assert few_label_subset(items[::-1], 20) == order
    assert cases(order) == sorted(
        cases(items), key=lambda case: int(hashlib.sha256(f"0:few:{case}".encode()).hexdigest(), 16)
    )


def test_all_scans_are_taken_where_no_number_is_given():
    items = scans(5)
    taken = few_label_subset(items, None)
    assert taken == items and taken is not items


def test_another_seed_gives_another_order():
    items = scans(20)
    assert len({tuple(cases(few_label_subset(items, 20, seed))) for seed in range(10)}) == 10
    assert len({cases(few_label_subset(items, 1, seed))[0] for seed in range(20)}) > 5


@pytest.mark.parametrize("seed", range(8))
def test_partly_annotated_scans_cover_all_classes_as_early_as_a_greedy_choice_can(seed):
    labels = [[1], [2], [1, 2], [3], [1, 3], [4], []] * 3
    items = [item | {"annotated_labels": drawn} for item, drawn in zip(scans(21), labels, strict=True)]
    order = few_label_subset(items, 21, seed)
    covered = [set().union(*(item["annotated_labels"] for item in order[:k])) for k in range(1, 4)]
    assert [len(c) for c in covered] == [2, 3, 4]
    rest = cases(order[3:])
    assert rest == sorted(rest, key=lambda case: hashlib.sha256(f"{seed}:few:{case}".encode()).hexdigest())
    assert few_label_subset(items, 2, seed) == order[:2]


def test_more_labelled_scans_than_there_are_is_said_with_their_number():
    with pytest.raises(DataError, match="num_labelled is 6 but there are 5 scans"):
        few_label_subset(scans(5), 6)


@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_less_than_one_labelled_scan_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        few_label_subset(scans(5), wrong)


def test_ct_and_mri_of_a_real_patient_are_never_on_two_sides(real_data):
    both = read_datalist([real_data / "SoftTissueSarcoma_CT", real_data / "SoftTissueSarcoma_MRI"], labelled=False)
    assert len(both) == 80 and len(set(cases(both))) < 80
    assert set(cases(split_datalist(both, "test"))).isdisjoint(cases(split_datalist(both, "pretrain")))


def test_the_patient_of_a_case_need_be_said_in_one_folder_only():
    """Two scans each of forty patients without labels, some of them again in a folder of labelled ones."""
    unlabelled = [
        {"case": f"{i:03d}_s{series}", "patient": f"{i:03d}", "folder": "scans"} for i in range(40) for series in (2, 3)
    ]
    labelled = [{"case": f"{i:03d}_s2", "patient": f"{i:03d}_s2", "folder": "labelled"} for i in range(0, 40, 2)]
    for datalist in (unlabelled + labelled, labelled + unlabelled):
        test, rest = split_datalist(datalist, "test"), split_datalist(datalist, "pretrain")
        assert len(test) + len(rest) == 100
        assert not {item["case"][:3] for item in test} & {item["case"][:3] for item in rest}


@pytest.mark.parametrize("seed", range(5))
def test_what_labelled_scans_alone_hold_out_is_held_out_with_a_folder_that_says_their_patients(seed):
    unlabelled = [
        {"case": f"{i:03d}_s{k}", "patient": f"{i:03d}", "folder": "scans"} for i in range(20) for k in (1, 2)
    ]
    labelled = [{"case": f"{i:03d}_s1", "patient": f"{i:03d}_s1", "folder": "labelled"} for i in range(20)]
    alone = {item["case"][:3] for item in split_datalist(labelled, "test", seed)}
    rest = {item["case"][:3] for item in split_datalist(unlabelled + labelled, "pretrain", seed)}
    assert len(alone) == 4 and not alone & rest


@pytest.mark.parametrize("seed", range(5))
def test_cases_of_one_name_whose_patients_differ_are_different_cases(seed):
    """Two sites number their scans alike, two and three a patient."""
    sites = [
        {"case": f"scan{i:02d}", "patient": f"{site}{i // scans}", "folder": site}
        for site, scans in (("A", 2), ("B", 3))
        for i in range(60)
    ]
    sides = [split_datalist(sites, part, seed) for part in PARTS]
    patients = [{item["patient"] for item in side} for side in sides]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 50
    assert (
        sum(item["folder"] == "A" for item in sides[2]) == 12 and sum(item["folder"] == "B" for item in sides[2]) == 12
    )


def test_the_digest_is_that_of_the_scans_in_any_order():
    items = scans(20)
    digest = digest_of_cases(items)
    assert len(digest) == 12 and digest_of_cases(items[::-1]) == digest
    assert digest_of_cases(items[:-1]) != digest != digest_of_cases(scans(20, prefix="other"))
    assert digest_of_cases([{"image": "scan.nii.gz"}]) != digest_of_cases([{"image": "other.nii.gz"}])


def test_the_digest_is_another_where_a_label_is_replaced_but_not_where_the_folder_is_moved(tmp_path):
    def in_folder(name, label):
        (tmp_path / name).mkdir()
        files = {"image": str(tmp_path / name / "a.nii.gz"), "label": str(tmp_path / name / "a_label.nii.gz")}
        for file, content in zip(files.values(), (b"image", label)):
            Path(file).write_bytes(content)
        return digest_of_cases([{"case": "a", **files}])

    assert in_folder("first", b"label") == in_folder("moved", b"label") != in_folder("replaced", b"corrected label")


def test_the_first_real_head_and_neck_scan_has_every_organ(real_data):
    train = split_datalist(read_datalist(real_data / "OpenKBP"), "train")
    for seed in range(3):
        assert few_label_subset(train, 1, seed)[0]["annotated_labels"] == [1, 2, 3, 4, 5, 6, 7]


def test_parts_that_are_given_are_taken_and_do_not_move():
    given = {3: "test", 7: "test", 1: "validation", 2: "train"}
    items = [{**item, **({"part": given[i]} if i in given else {})} for i, item in enumerate(scans(12))]
    assert cases(split_datalist(items, "test")) == ["case_003", "case_007"]
    assert cases(split_datalist(items, "validation")) == ["case_001"]
    assert len(split_datalist(items, "train")) == 9 and len(split_datalist(items, "pretrain")) == 10
    assert not any("part" in item for item in split_datalist(items, "all"))
    more = [*items, *({"case": f"new_{i}", "folder": "A"} for i in range(90))]
    assert cases(split_datalist(more, "test", split_seed=5)) == ["case_003", "case_007"]
    assert len(split_datalist(more, "test", num_folds=3)) == 34  # folds are those of the hash


def test_parts_of_one_folder_bind_its_patients_in_the_others():
    items = [{**item, "part": "test" if i < 4 else "train"} for i, item in enumerate(scans(10))]
    other = scans(10, folder="B")
    held_out = {item["case"] for item in split_datalist(other, "test")}
    both = split_datalist([*items, *other], "test")
    assert {item["case"] for item in both} == held_out | {f"case_{i:03d}" for i in range(4)}


def test_no_part_for_the_test_is_told_as_that():
    items = [{**item, "part": "train"} for item in scans(7)]
    with pytest.raises(DataError, match='give one "part": "test" in dataset.json'):
        split_datalist(items, "test")


def test_a_patient_of_two_parts_is_a_fault():
    items = [{"case": f"p_{i}", "patient": "p", "part": part} for i, part in enumerate(("train", "test"))]
    with pytest.raises(DataError, match="p_1: has the part test but another scan of the patient p has train"):
        split_datalist(items, "test")
