import json
import re
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from ..public_layouts import PUBLIC_LAYOUTS
from .conftest import BUNDLES, CLASSES, SHORT, SMALL

PRETRAINING, SEGMENTATION = "mri_dense_ssl", "head_neck_ct_segmentation"
NAMES = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
SHARED = ["dataset_dir", "output_dir", "device", "base_channels", "num_scales", "weights"]
RELEASED = [name for name in NAMES if (BUNDLES / name / "models" / "model.pt").is_file()]


def config(bundle, *names):
    parser = ConfigParser()
    parser.read_config([BUNDLES / bundle / "configs" / f"{name}.json" for name in names])
    return parser


@pytest.fixture
def phantoms(name, request, tmp_path):
    """Phantoms of the modality, and in the layout, that a bundle is for."""
    if name in PUBLIC_LAYOUTS:
        return PUBLIC_LAYOUTS[name](tmp_path / "data")
    return request.getfixturevalue("ct_phantoms" if "ct" in name.split("_") else "mri_phantoms")


def settings_of_classes(name):
    """The classes of the phantoms, where they are not those that the bundle is for."""
    if not name.endswith("segmentation") or name in PUBLIC_LAYOUTS:
        return {}
    return CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_has_every_file(name):
    for file in ("train", "evaluate", "inference", "metadata", "multi_gpu_train"):
        json.loads((BUNDLES / name / "configs" / f"{file}.json").read_text())
    for file in ("configs/logging.conf", "docs/README.md", "LICENSE"):
        assert (BUNDLES / name / file).is_file(), file
    assert not list((BUNDLES / name).rglob("*.py"))


@pytest.mark.parametrize("file", ["evaluate", "inference"])
def test_scans_are_also_run_mirrored_where_that_is_asked_for(file, tmp_path):
    parser = config("head_neck_ct_segmentation", file)
    kidneys = {"class_names": ["LeftKidney", "Liver", "RightKidney"], "weights": str(tmp_path / "model.pt")}
    for changes, expected in (({}, None), ({"mirrored": True}, [0, 1, 3, 2, 4, 5, 6]), (kidneys, [2, 1, 0])):
        parser.update(changes)
        assert parser.get_parsed_content("inferer").mirrored == expected


def test_inference_takes_the_classes_from_the_record_of_the_weights(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"classes": ["Mandible", "LeftLung", "RightLung"]}))
    parser = config("head_neck_ct_segmentation", "inference")
    parser.update({"weights": str(tmp_path / "model.pt"), "mirrored": True})
    assert parser.get_parsed_content("network_def").num_classes == 3
    assert parser.get_parsed_content("inferer").mirrored == [0, 2, 1]
    # the bundle's own classes 2 to 7 are in one piece, lungs are not
    assert parser.get_parsed_content("postprocessing").transforms[1].values == [1]


@pytest.mark.parametrize("name", NAMES)
def test_configs_agree_on_what_they_share(name):
    configs = {file: config(name, file).get() for file in ("train", "evaluate", "inference")}
    for key in SHARED:
        assert all(key in content for content in configs.values()), key
    for key in ("seed", "num_labelled", "max_steps", "pretrained"):
        assert key in configs["train"]
    common = set(configs["train"]) & set(configs["evaluate"]) - {"initialize", "run", "imports", "device"}
    # output_dir of a training: an annotator's goes into the bundle
    differing = {"max_voxels", "pairs_per_scan", "network_def", "preparation", "output_dir"}
    if name == "ct_dense_ssl":
        # those of the released weights, low_resolution.json; the training's are the paper's
        released = config(name, "low_resolution").get()
        low_resolution = {"spacing", "crop_size", "num_shuffled_blocks"}
        assert {key: configs["evaluate"][key] for key in low_resolution} == {
            key: released[key] for key in low_resolution
        }
        differing |= low_resolution
    for key in common - differing:
        assert configs["evaluate"][key] == configs["train"][key], key
    # inference takes the classes from the weights' record
    configs["inference"] = json.loads(json.dumps(configs["inference"]).replace("@classes", "@class_names"))
    for key in set(configs["inference"]) & set(configs["evaluate"]) - {"initialize", "run", "imports", "network_def"}:
        if key in configs["train"]:
            assert configs["inference"][key] == configs["evaluate"][key], key
    if name.endswith("segmentation"):
        for key in ("inferer", "tile_size", "overlap", "air", "backend", "mirrored"):
            assert configs["inference"][key] == configs["evaluate"][key], key


@pytest.mark.parametrize(
    "file", sorted(BUNDLES.glob("*/configs/*.json")), ids=lambda file: f"{file.parts[-3]} {file.stem}"
)
def test_no_config_imports_the_package_before_a_release_has_put_its_own_copy_first(file):
    """`imports` are run before `initialize`: where another version is installed, it would be that one."""
    content = json.loads(file.read_text())
    assert not any("custom_components" in statement for statement in content.get("imports", []))


@pytest.mark.parametrize("name", ["ct_dense_ssl", "mri_dense_ssl"])
def test_the_released_backbone_was_trained_by_masked_json(name):
    recipe = json.loads((BUNDLES / name / "configs" / "masked.json").read_text())
    record = json.loads((BUNDLES / name / "models" / "model.json").read_text())
    if "exclude_within" in recipe:
        recipe["exclude_within_mm"] = recipe.pop("exclude_within")
    recipe["steps"] = json.loads((BUNDLES / name / "configs" / "train.json").read_text())["max_steps"]
    assert {key: record[key] for key in recipe} == recipe


@pytest.mark.parametrize("name", NAMES)
def test_every_training_has_the_same_options_of_memory_and_precision(name):
    train, other = config(name, "train").get(), config("mri_dense_ssl", "train").get()
    for key in ("amp", "amp_dtype", "compile", "checkpointing", "accumulation_steps"):
        assert train[key] == other[key]
    for key in ("amp", "amp_kwargs", "compile", "accumulation_steps"):
        assert train["train"]["trainer"][key] == other["train"]["trainer"][key]
    for workflow in ("evaluate", "inference"):
        one = config(name, workflow).get()
        assert one["amp_dtype"] == train["amp_dtype"]
        assert one["evaluator"]["amp_kwargs"] == {"dtype": "@amp_dtype"}
    assert train["validate"]["evaluator"]["amp_kwargs"] == {"dtype": "@amp_dtype"}
    assert train["network_def"]["checkpointing"] == "@checkpointing"
    assert train["optimizer"]["_target_"] == "custom_components.engines.FusedAdam"


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("segmentation")])
def test_the_strength_of_augmentation_is_set_at_the_top(name):
    weak, strong = (config(name, "train", *override) for override in ([], ["strong_augmentation"]))
    found = {}
    for parser in (weak, strong):
        for number, step in enumerate(parser["sampling"]):
            if step["_target_"].startswith("Rand"):
                found.setdefault(step["_target_"], []).append(parser.get_parsed_content(f"sampling#{number}"))
    grids = [affine.rand_affine.rand_affine_grid for affine in found["RandAffined"]]
    assert [affine.prob for affine in found["RandAffined"]] == [0.5, 0.9]
    assert [grid.rotate_range for grid in grids] == [(0.2,) * 3, (0.35,) * 3]
    assert [grid.scale_range for grid in grids] == [(0.1,) * 3, (0.2,) * 3]
    assert [change.scaler.factors for change in found["RandScaleIntensityd"]] == [(-0.2, 0.2), (-0.3, 0.3)]
    assert [change.shifter.offsets for change in found["RandShiftIntensityd"]] == [(-0.1, 0.1), (-0.15, 0.15)]
    assert [(change.prob, change.adjuster.gamma) for change in found["RandAdjustContrastd"]] == [
        (0.3, (0.7, 1.5)),
        (0.5, (0.6, 1.8)),
    ]


# settings that decide where, how fast and how long a training runs, or what it is scored by, and not what it learns;
# its scans and classes are in the record by their names
OF_THE_RUN = {
    *(
        "bundle_root",
        "dataset_dir",
        "output_dir",
        "hold_out",
        "compile",
        "checkpointing",
        "augment_on_device",
        "split_seed",
    ),
    *("num_folds", "fold", "num_labelled", "class_names", "resume", "max_steps", "steps_per_epoch", "val_interval"),
    *("overlap", "warmup_steps"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_trainings_record_has_every_setting_that_decides_what_is_learnt(name):
    content = json.loads((BUNDLES / name / "configs" / "train.json").read_text())
    settings = {key for key, value in content.items() if not re.search(r"[$@{]|_target_", json.dumps(value))}
    recorded = set(re.findall(r"@(\w+)", json.dumps(content["train"]["recipe"])))
    assert {"spacing", "crop_size", "learning_rate"} <= settings and settings - OF_THE_RUN - recorded == set()
    assert "pretrained" in content["train"]["recipe"]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_inference_prepare_the_image_alike(name):
    train, inference = config(name, "train").get(), config(name, "inference").get()
    evaluate = config(name, "evaluate").get()

    def image_steps(transforms):
        steps = []
        for step in transforms:
            # an entry of its own in the configuration
            if isinstance(step, str):
                step = evaluate[step.removeprefix("@")]
            # the same resampling, where MONAI Label adds entries of its own
            if step["_target_"] == "custom_components.transforms.ResampleSpacingd":
                step = {**step, "_target_": "Spacingd"}
            if step["_target_"] in (
                "Orientationd",
                "Spacingd",
                "ScaleIntensityRangePercentilesd",
                "ScaleIntensityRanged",
            ):
                step = {**step, "keys": "image"}
                if isinstance(step.get("mode"), list):
                    step["mode"] = step["mode"][0]
                steps.append(step)
        return steps

    expected = image_steps(train["preparation"])
    assert len(expected) == 3
    assert image_steps(inference["preprocessing"]["transforms"]) == expected
    assert image_steps(evaluate.get("preparation") or evaluate["preprocessing"]["transforms"]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_expressions_hold_one_expression_and_no_statement(name):
    for path in (BUNDLES / name / "configs").glob("*.json"):
        for expression in re.findall(r'"\$([^"]*)"', path.read_text()):
            assert ";" not in expression and "\n" not in expression and len(expression) < 160, (path.name, expression)


@pytest.mark.parametrize("name", NAMES)
def test_verify_net_in_out_agrees_with_the_metadata(name):
    folder = BUNDLES / name / "configs"
    for file in ("train", "evaluate", "inference"):
        monai.bundle.verify_net_in_out(
            "network_def", str(folder / "metadata.json"), str(folder / f"{file}.json"), device="cpu", any=20
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["train", "infer"])
def test_monai_finds_the_properties_it_looks_for(name, kind, phantoms, tmp_path):
    if name not in RELEASED:
        pytest.skip("no weights are released in this bundle yet")
    small = {**settings_of_classes(name), "spacing": [8.0, 8.0, 8.0]} if kind == "train" else {}
    workflow = monai.bundle.create_workflow(
        config_file=str(BUNDLES / name / "configs" / ("train.json" if kind == "train" else "inference.json")),
        workflow_type=kind,
        bundle_root=str(BUNDLES / name),
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path),
        **small,
    )
    assert workflow.check_properties() == []
    assert workflow.network_def is not None and workflow.version


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_are_what_their_documents_say(name):
    folder = BUNDLES / name
    weights = folder / "models" / "model.pt"
    record = json.loads((folder / "models" / "model.json").read_text())
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert weights.stat().st_size <= 25e6
    assert all(isinstance(value, torch.Tensor) for value in torch.load(weights, weights_only=True).values())
    assert metadata["weights"]["models/model.pt"]["sha256"] == record["sha256"]
    assert record["sha256"] in (folder / "docs" / "README.md").read_text()
    folders = [record["data"]] if isinstance(record["data"], str) else record["data"]
    assert folders and not any(Path(folder).is_absolute() for folder in folders)


@pytest.mark.parametrize("name", RELEASED)
def test_create_workflow_and_load_give_the_network_with_its_weights(name, tmp_path):
    state = torch.load(BUNDLES / name / "models" / "model.pt", weights_only=True)
    key = "backbone.first_conv.weight"
    workflow = monai.bundle.create_workflow(
        config_file=str(BUNDLES / name / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(BUNDLES / name),
        dataset_dir=str(tmp_path),
    )
    assert torch.equal(workflow.network_def.state_dict()[key], state[key].float())
    shutil.copytree(BUNDLES / name, tmp_path / name)
    network = monai.bundle.load(name, bundle_dir=str(tmp_path))
    assert all(torch.allclose(value.float(), state[k].float()) for k, value in network.state_dict().items())


def test_bundles_of_a_kind_train_on_several_gpus_alike():
    texts = {name: (BUNDLES / name / "configs" / "multi_gpu_train.json").read_text() for name in NAMES}
    for name, text in texts.items():
        assert text == texts[SEGMENTATION if name.endswith("segmentation") else PRETRAINING], name


@pytest.mark.slow
@pytest.mark.parametrize("name", [PRETRAINING, SEGMENTATION])
def test_two_processes_train_together(name, command_line, phantoms, tmp_path):
    # the backbone is frozen in the first epoch and trained in the second
    frozen = {"head_epochs": 1} if name.endswith("segmentation") else {}
    classes = {**settings_of_classes(name), **frozen}
    extra = {**SMALL, **SHORT, **classes, "pretrained": "none", "dataset_dir": phantoms, "output_dir": tmp_path}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    done = command_line(name, "train", "multi_gpu_train", launcher=launcher, **extra)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "model.json").read_text())["steps"] == 4
