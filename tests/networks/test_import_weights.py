import builtins
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from custom_components import load_backbone
from custom_components.networks import (
    DenseSSLNetwork,
    FPN3d,
    SegmentationNetwork,
    WeightsError,
    import_backbone,
    load_pretrained_backbone,
    load_weights,
    read_weights,
    save_weights,
)
from scripts.import_weights import import_weights


def original_shapes(base_channels, num_scales, in_channels=1):
    """Names and shapes of the predecessors' backbone, from the description of the method, not from FPN3d."""
    shapes = {}

    def conv(name, inputs, outputs, size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, size, size, size), (outputs,)

    def blocks(name, channels):
        for j in range(2):
            for norm, convolution in ((0, 2), (3, 5)):
                for entry in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{name}.layers.{j}.layers.{norm}.{entry}"] = (channels,)
                shapes[f"{name}.layers.{j}.layers.{norm}.num_batches_tracked"] = ()
                conv(f"{name}.layers.{j}.layers.{convolution}", channels, channels, 3)

    widths = [base_channels * 2**i for i in range(num_scales)]
    conv("first_conv", in_channels, base_channels, 3)
    for i in range(num_scales - 1):
        blocks(f"left_blocks.{i}", widths[i])
        conv(f"down_blocks.{i}.1", widths[i], widths[i + 1], 1)
        # these count from the deepest level
        fine, coarse = widths[-2 - i], widths[-1 - i]
        conv(f"up_blocks.{i}.0", coarse, fine, 1)
        conv(f"skip_blocks.{i}", fine, fine, 1)
        blocks(f"right_blocks.{i}", fine)
    blocks("bottom_block", widths[-1])
    return shapes


def original_state(base_channels, num_scales, seed=0):
    """Random values of the size that a trained network has, with statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in original_shapes(base_channels, num_scales).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(50000)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 5:
            fan_in = shape[1] * shape[2] ** 3
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        else:
            state[name] = 0.3 * torch.randn(shape, generator=generator) + name.endswith(".weight")
    return state


def original_features(state, image):
    """The pyramid of the predecessors' backbone, functional and in float64."""
    state = {name: value.double() for name, value in state.items()}
    num_scales = 1 + len({name.split(".")[1] for name in state if name.startswith("down_blocks")})

    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.conv3d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name, x):
        mean, variance, weight, bias = (
            state[f"{name}.{entry}"].view(1, -1, 1, 1, 1) for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def blocks(name, x):
        for j in range(2):
            y = conv(f"{name}.layers.{j}.layers.2", norm(f"{name}.layers.{j}.layers.0", x).relu())
            x = x + conv(f"{name}.layers.{j}.layers.5", norm(f"{name}.layers.{j}.layers.3", y).relu())
        return x

    x, left = conv("first_conv", image.double()), []
    for i in range(num_scales - 1):
        x = blocks(f"left_blocks.{i}", x)
        left.append(x)
        # pad to even with what no maximum takes, instead of ceil_mode
        padding = [n for size in reversed(x.shape[2:]) for n in (0, size % 2)]
        x = conv(f"down_blocks.{i}.1", F.max_pool3d(F.pad(x, padding, value=-torch.inf), 2))
    pyramid = [blocks("bottom_block", x)]
    for i in range(num_scales - 1):
        finer, x = left.pop(), conv(f"up_blocks.{i}.0", pyramid[0])
        for axis, size in enumerate(finer.shape[2:], start=2):
            x = x.index_select(axis, torch.arange(size) // 2)
        pyramid.insert(0, blocks(f"right_blocks.{i}", x + conv(f"skip_blocks.{i}", finer)))
    return pyramid


def assert_same_features(backbone, state, tolerance=1e-5, size=(37, 18, 5)):
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(9))
    expected = original_features(state, image)
    with torch.no_grad():
        found = backbone(image)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert (a - b).abs().max() < tolerance * b.abs().max()


def with_prefix(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def lightning_checkpoint(state):
    """What the predecessors' trainings write: the state dict among plain containers."""
    heads = {"proj_head.0.weight": torch.zeros(3, 3), "rest_head.bias": torch.zeros(1)}
    return {
        "epoch": 499,
        "global_step": 50000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": {**with_prefix("backbone.", state), **heads},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 500}}}},
        "callbacks": {"ModelCheckpoint{'every_n_epochs': 25}": {"best_model_score": torch.tensor(1.0), "dirpath": "a"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"base_channels": 16, "num_scales": 6, "proj_dim": 128, "temp": 0.1, "lr": 3e-4},
    }


@pytest.fixture
def saved(tmp_path):
    def save(content, name="original.ckpt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(("base_channels", "num_scales"), [(2, 6), (4, 5), (4, 1)])
def test_features_equal_the_originals_to_float32_rounding(saved, tmp_path, base_channels, num_scales):
    state = original_state(base_channels, num_scales)
    record = import_backbone(saved(lightning_checkpoint(state)), tmp_path / "model.pt")
    assert (record["base_channels"], record["num_scales"], record["in_channels"]) == (base_channels, num_scales, 1)
    assert (record["entries"], record["skipped"]) == (len(state), ["proj_head.0.weight", "rest_head.bias"])
    assert_same_features(load_backbone(tmp_path / "model.pt"), state)


@pytest.mark.parametrize(("base_channels", "num_scales", "millions"), [(16, 6, 47.62), (32, 5, 47.57)])
def test_the_published_sizes_have_the_same_names_and_shapes(base_channels, num_scales, millions):
    shapes = original_shapes(base_channels, num_scales)
    with torch.device("meta"):
        network = FPN3d(1, base_channels, num_scales)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [shape for name, shape in shapes.items() if not name.endswith(statistics)]
    assert round(sum(torch.Size(shape).numel() for shape in parameters) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "model.backbone.", "module.", "module.backbone.", "backbone.module."]
)
def test_wrappers_names_do_not_matter(saved, tmp_path, prefix):
    state = original_state(2, 3)
    content = {**with_prefix(prefix, state), "heads.1.bottom_block.layers.0.weight": torch.ones(2)}
    record = import_backbone(saved(content), tmp_path / "model.pt")
    assert record["skipped"] == ["heads.1.bottom_block.layers.0.weight"]
    imported = read_weights(tmp_path / "model.pt")
    assert imported.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in imported.items())


def test_a_momentum_copy_is_not_taken_for_the_backbone(saved, tmp_path):
    state, copy = original_state(2, 2), original_state(2, 2, seed=1)
    content = {**with_prefix("backbone.", state), **with_prefix("momentum_backbone.", copy)}
    record = import_backbone(saved(content), tmp_path / "model.pt")
    assert len(record["skipped"]) == len(copy)
    assert torch.equal(read_weights(tmp_path / "model.pt")["first_conv.bias"], state["first_conv.bias"])
    content = {**with_prefix("student.", state), **with_prefix("teacher.", copy)}
    with pytest.raises(WeightsError, match="several backbones.*'student.', 'teacher.'"):
        import_backbone(saved(content), tmp_path / "model.pt")


def test_the_file_holds_float32_and_nothing_but_the_backbone(saved, tmp_path):
    state = {name: value.half() if value.is_floating_point() else value for name, value in original_state(2, 2).items()}
    # a view of something larger, as optimisers with flat parameters leave behind
    state["first_conv.bias"] = torch.zeros(100_000)[:2]
    record = import_backbone(saved(state), tmp_path / "model.pt")
    imported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {value.dtype for value in imported.values()} == {torch.float32, torch.int64}
    assert record["precision"] == "float32"
    assert (tmp_path / "model.pt").stat().st_size < 100_000


def test_half_precision_is_there_for_the_asking(saved, tmp_path):
    state = original_state(4, 3)
    import_backbone(saved(state), tmp_path / "model.pt")
    import_backbone(saved(state), tmp_path / "half.pt", half=True)
    assert read_weights(tmp_path / "half.pt")["first_conv.weight"].dtype == torch.float16
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * (tmp_path / "model.pt").stat().st_size
    assert_same_features(load_backbone(tmp_path / "half.pt"), state, tolerance=1e-2)


def test_values_that_cannot_be_stored_are_told(saved, tmp_path):
    state = original_state(2, 2)
    state["bottom_block.layers.0.layers.0.running_var"][1] = 1e6
    import_backbone(saved(state), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="running_var has values that are too large for torch.float16"):
        import_backbone(saved(state), tmp_path / "model.pt", half=True)
    state["first_conv.bias"][0] = torch.nan
    with pytest.raises(WeightsError, match="first_conv.bias has values that are not finite"):
        import_backbone(saved(state), tmp_path / "model.pt")


def test_an_imported_file_is_pretrained_for_a_segmentation_network(saved, tmp_path):
    state = original_state(2, 3)
    import_backbone(saved(lightning_checkpoint(state)), tmp_path / "model.pt")
    network = SegmentationNetwork(2, base_channels=2, num_scales=3)
    load_pretrained_backbone(network, tmp_path / "model.pt")
    assert_same_features(network.backbone.eval(), state, size=(9, 6, 5))
    with pytest.raises(WeightsError, match="base_channels=2, num_scales=3, but the network has base_channels=4"):
        load_pretrained_backbone(SegmentationNetwork(2, base_channels=4, num_scales=3), tmp_path / "model.pt")


def test_a_file_that_needs_unpickling_is_refused_with_a_command_that_helps(saved, tmp_path):
    state = original_state(2, 2)
    path = saved({**lightning_checkpoint(state), "hyper_parameters": {"log_dir": Path("here")}}, "it's pickled.ckpt")
    with pytest.raises(WeightsError, match=r"pathlib\S*Path.*only plain tensors are loaded; if you trust") as refusal:
        import_backbone(path, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
    command = str(refusal.value).split("out with: ")[1].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, timeout=300)
    import_backbone(tmp_path / "it's pickled_plain.pt", tmp_path / "model.pt")
    assert_same_features(load_backbone(tmp_path / "model.pt"), state, size=(3, 4, 5))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1"])
@pytest.mark.parametrize("name", ["original.pt", "original.safetensors"])
def test_a_web_page_or_a_pointer_under_the_name_of_weights_is_told(tmp_path, content, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="is not a readable (PyTorch|safetensors) file"):
        import_backbone(tmp_path / name, tmp_path / "model.pt")


def test_a_missing_entry_is_told(saved, tmp_path):
    state = original_state(2, 3)
    del state["skip_blocks.1.bias"]
    with pytest.raises(WeightsError, match=r"original.ckpt: 1 of the backbone's.*first: skip_blocks.1.bias"):
        import_backbone(saved(with_prefix("backbone.", state)), tmp_path / "model.pt")


def test_other_architectures_are_told(saved, tmp_path):
    output = tmp_path / "model.pt"
    with pytest.raises(WeightsError, match=r"original.ckpt: the state dict has no 'first_conv.weight'"):
        import_backbone(saved({"encoder.conv.weight": torch.ones(2, 1, 3, 3, 3)}), output)
    with pytest.raises(WeightsError, match=r"original.ckpt: 'first_conv.weight' has shape \(2, 1, 3, 3\)"):
        import_backbone(saved({"first_conv.weight": torch.ones(2, 1, 3, 3)}), output)
    deeper = {**original_state(2, 2), "left_blocks.0.layers.2.layers.0.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match="1 entries more than FPN3d.*deeper variant"):
        import_backbone(saved(deeper), output)
    # told before a network of that size is built
    endless = {**original_state(2, 2), **{f"down_blocks.{i}.1.bias": torch.ones(1) for i in range(30)}}
    with pytest.raises(WeightsError, match="no bottom block for 2 channels x 31 scales"):
        import_backbone(saved(endless), output)
    with pytest.raises(WeightsError, match="holds no state dict"):
        import_backbone(saved({0: torch.ones(1)}), output)
    assert not output.exists()


def test_an_output_that_cannot_be_meant_is_told(saved, tmp_path):
    path = saved(original_state(2, 2), "original.pt")
    with pytest.raises(WeightsError, match="is the file to import"):
        import_backbone(path, tmp_path / "." / "original.pt")
    with pytest.raises(WeightsError, match="must be a file that ends in .pt or .safetensors"):
        import_backbone(path, tmp_path / "model.json")


def test_files_of_one_stem_keep_records_of_their_own(saved, tmp_path):
    for seed in range(2):
        import_backbone(saved(original_state(2, 2, seed), "vox2vec.ckpt"), tmp_path / "vox2vec.pt")
    assert torch.equal(
        read_weights(tmp_path / "vox2vec.pt")["first_conv.bias"], original_state(2, 2, seed=1)["first_conv.bias"]
    )


def test_safetensors_go_in_and_out_without_a_change(saved, tmp_path):
    pytest.importorskip("safetensors")
    state = original_state(2, 3)
    import_backbone(saved(state), tmp_path / "model.safetensors")
    import_backbone(tmp_path / "model.safetensors", tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        imported = read_weights(tmp_path / name)
        assert imported.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in imported.items())
    assert_same_features(load_backbone(tmp_path / "model.safetensors"), state, size=(9, 6, 5))
    network = FPN3d(1, 2, 2).eval()
    half = read_weights(save_weights(network, tmp_path / "half.safetensors"))["first_conv.weight"]
    assert torch.equal(half, network.first_conv.weight.half())


def test_without_the_package_safetensors_a_sentence_says_so(saved, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    path = saved(original_state(2, 2))
    (tmp_path / "original.safetensors").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    for source, output in ((path, "model.safetensors"), (tmp_path / "original.safetensors", "model.pt")):
        with pytest.raises(WeightsError, match="pip install safetensors"):
            import_backbone(source, tmp_path / output)
    import_backbone(path, tmp_path / "model.pt")


def test_a_record_that_is_no_json_is_told(saved, tmp_path):
    path = saved(original_state(2, 2), "original.pt")
    path.with_suffix(".json").write_text("[1, 2]")
    import_backbone(path, tmp_path / "model.pt")
    path.with_suffix(".json").write_text("<html>")
    with pytest.raises(WeightsError, match="original.json: is not JSON"):
        import_backbone(path, tmp_path / "model.pt")


def test_the_command_says_what_it_did_and_how_to_use_it(saved, tmp_path, capsys):
    output = tmp_path / "new folder" / "model.pt"
    import_weights(str(saved(lightning_checkpoint(original_state(2, 3)))), str(output))
    printed = capsys.readouterr().out
    assert "2 channels x 3 scales" in printed
    assert f"{len(original_shapes(2, 3))} matched, 2 skipped (proj_head, rest_head)" in printed
    assert f"--pretrained '{output}' --base_channels 2 --num_scales 3" in printed
    digest = subprocess.run(["sha256sum", str(output)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert f"SHA-256 {digest}" in printed


def test_the_command_ends_with_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="import_weights: .*none.pt: no such weight file"):
        import_weights(str(tmp_path / "none.pt"), str(tmp_path / "model.pt"))


def test_features_need_an_imported_backbone_alone_and_heads_are_asked_for_elsewhere(tmp_path):
    state = original_state(4, 3)
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "theirs.ckpt")
    import_backbone(tmp_path / "theirs.ckpt", tmp_path / "model.pt")
    network = DenseSSLNetwork(base_channels=4, num_scales=3, projection_channels=0)
    load_weights(network, tmp_path / "model.pt", backbone_only=True)
    assert torch.equal(network.backbone.first_conv.weight, state["first_conv.weight"])
    for whole in (network, SegmentationNetwork(2, base_channels=4, num_scales=3)):
        with pytest.raises(
            WeightsError, match="model.pt: a network with its heads .* holds a backbone alone; start a tr"
        ):
            load_weights(whole, tmp_path / "model.pt")
