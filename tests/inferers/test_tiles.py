import itertools
import math

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch.utils._python_dispatch import TorchDispatchMode

from custom_components.errors import InputError
from custom_components.inferers import TiledInferer, choose_tile, tiles
from custom_components.networks import SegmentationNetwork
from custom_components.transforms.restore import logits_to_label


class Recorder:
    """A network that gives its input, and remembers the sizes of what it was called with."""

    def __init__(self):
        self.sizes = []

    def __call__(self, tile):
        self.sizes.append(tuple(tile.shape[2:]))
        return tile.clone()


def single(*args, **kwargs):
    """An inferer that keeps single precision, to compare with what is exact."""
    return TiledInferer(*args, dtype=torch.float32, **kwargs)


def segmentation_network(seed=0):
    torch.manual_seed(seed)
    return SegmentationNetwork(3, base_channels=4, num_scales=3).eval()


def blobs(size, *boxes):
    """Zeros, and random positive values inside the boxes."""
    image = torch.zeros(1, 1, *size)
    for box in boxes:
        image[(..., *box)] = 0.1 + torch.rand(image[(..., *box)].shape)
    return image


def box(*ranges):
    return tuple(slice(*r) for r in ranges)


@pytest.mark.parametrize("tile", ["auto", (8, 8, 8), (16, 8, 24), (11, 9, 13)])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 8, 9), (40, 17, 9), (33, 20, 64), (8, 8, 50)])
def test_a_network_that_gives_its_input_gives_the_scan(size, tile):
    image = torch.stack(torch.meshgrid(*(torch.arange(float(length)) for length in size), indexing="ij"))[None]
    logits = single((8, 8, 8), tile)(image, Recorder())
    assert torch.allclose(logits, image, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "tile"), [((40, 33, 50), (24, 16, 32)), ((20, 40, 9), (16, 16, 16)), ((9, 7, 5), (16,) * 3)]
)
def test_tiles_give_what_monai_s_sliding_window_gives(size, tile):
    network, image = segmentation_network(), torch.rand(2, 1, *size)
    crop = tuple(min(16, t) for t in tile)
    with torch.no_grad():
        # MONAI pads up to the window, so that no window may be larger than the scan where the crop is not
        window = tuple(max(c, min(t, s)) for c, t, s in zip(crop, tile, size))
        expected = SlidingWindowInferer(window, 4, overlap=0.25, mode="gaussian")(image, network)
    assert torch.allclose(single(crop, tile)(image, network), expected, atol=1e-5)


def test_a_scan_that_fits_the_memory_is_run_once_and_whole():
    network, image = segmentation_network(), torch.rand(1, 1, 37, 20, 51)
    recorder = Recorder()
    single((16, 16, 16))(image, recorder)
    assert recorder.sizes == [(37, 20, 51)]
    with torch.no_grad():
        assert torch.allclose(single((16, 16, 16))(image, network), network(image), atol=1e-5)


@pytest.mark.parametrize("tile", ["auto", (16, 16, 16)])
def test_mirrored_inference_gives_the_mirror_image_for_the_mirror_image(tile):
    network, image = segmentation_network(), torch.rand(1, 1, 24, 16, 16)
    inferer = single((16, 16, 16), tile, mirrored=[0, 2, 1])
    with torch.no_grad():
        logits = inferer(image, network)
        mirrored = inferer(image.flip(2), network)
        assert torch.allclose(mirrored.flip(2)[:, [0, 2, 1]], logits, atol=1e-5)
        if tile == "auto":
            expected = (network(image) + network(image.flip(2)).flip(2)[:, [0, 2, 1]]) / 2
            assert torch.allclose(logits, expected, atol=1e-5)
            assert not torch.allclose(logits, network(image), atol=1e-2)


def test_a_scan_smaller_than_the_training_crop_is_padded_on_both_sides():
    image, recorder = torch.rand(1, 1, 5, 30, 8) + 1, Recorder()
    seen = []
    logits = single((8, 16, 16))(image, lambda tile: seen.append(tile) or recorder(tile))
    assert torch.equal(logits, image) and recorder.sizes == [(8, 30, 16)]
    assert torch.equal(seen[0][:, :, 1:6, :, 4:12], image) and (seen[0] > 0).sum() == image.numel()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(40, 40, 40), (100, 40, 30), (17, 90, 64)])
@pytest.mark.parametrize("voxels", [1, 9_000, 40_000, 10**9])
def test_the_tile_is_that_of_all_in_the_budget_with_which_the_fewest_voxels_are_computed(size, voxels, overlap):
    least, multiple = (16, 16, 16), 8

    def computed(tile):
        # half a crop, which is 8 voxels, is the least overlap
        step = [t if t == s else max(1, min(int(t * (1 - overlap)), t - 8)) for t, s in zip(tile, size)]
        return len(dense_patch_slices(size, tile, step)) * math.prod(tile)

    every = [sorted({*range(16, length, multiple), length}) for length in size]
    costs = [computed(tile) for tile in itertools.product(*every) if math.prod(tile) <= voxels]
    tile = choose_tile(size, least, multiple, overlap, voxels)
    assert computed(tile) == min(costs, default=computed(least))
    assert math.prod(tile) <= max(voxels, math.prod(least))
    assert all(t == s or t % multiple == 0 for t, s in zip(tile, size))


def test_the_memory_at_hand_decides_on_the_tile(monkeypatch):
    image = torch.rand(1, 1, 64, 32, 32)
    for free, expected in ((2 * 65_536 * 100, (64, 32, 32)), (2 * 65_535 * 100, (40, 32, 32)), (1, (16, 16, 16))):
        monkeypatch.setattr(tiles, "free_memory", lambda device, free=free: free)
        recorder = Recorder()
        TiledInferer((16, 16, 16), multiple=8, bytes_per_voxel=100, memory_share=0.5)(image, recorder)
        # where there are tiles, a crop tells how much memory their logits take
        first = [] if expected == (64, 32, 32) else [(16, 16, 16)]
        assert recorder.sizes[: len(first)] == first and set(recorder.sizes[len(first) :]) == {expected}


def test_the_logits_of_the_scan_count_in_the_memory_that_tiles_may_take(monkeypatch):
    image, channels = torch.rand(1, 1, 64, 32, 32), 5
    logits = channels * 65_536 * 2
    for left, expected in ((40 * 32 * 32, (40, 32, 32)), (40 * 32 * 32 - 1, (64, 32, 16))):
        monkeypatch.setattr(tiles, "free_memory", lambda device, left=left: 2 * (left * 100 + logits))
        recorder = Recorder()
        inferer = TiledInferer((16, 16, 16), multiple=8, bytes_per_voxel=100, memory_share=0.5)
        inferer(image, lambda tile, recorder=recorder: recorder(tile).repeat(1, channels, 1, 1, 1))
        assert recorder.sizes[0] == (16, 16, 16) and set(recorder.sizes[1:]) == {expected}


@pytest.mark.parametrize(("free", "device"), [(4 * 32_768, "meta"), (4 * 32_768 - 1, "cpu")])
def test_logits_that_take_more_than_half_of_a_gpu_s_share_are_kept_in_main_memory(monkeypatch, free, device):
    # a device without memory stands for the GPU
    monkeypatch.setattr(tiles, "free_memory", lambda device: free)
    image = torch.zeros(1, 1, 16, 16, 16, device="meta")
    inferer = TiledInferer((16, 16, 16), bytes_per_voxel=1, memory_share=0.5)
    assert inferer(image, lambda tile: torch.zeros(1, 4, 16, 16, 16, device=device)).device.type == device


def test_a_gpu_whose_memory_the_logits_fill_is_tried_again_with_logits_in_main_memory():
    calls = []

    def network(tile):
        calls.append(tile)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return torch.ones(1, 4, 16, 16, 16)

    logits = TiledInferer((16, 16, 16))(torch.zeros(1, 1, 16, 16, 16, device="meta"), network)
    assert len(calls) == 2 and logits.device.type == "cpu" and (logits == 1).all()


def test_a_device_that_runs_out_of_memory_gets_smaller_tiles():
    recorder = Recorder()

    def network(tile):
        if tile.numel() > 20_000:
            raise torch.OutOfMemoryError
        return recorder(tile)

    image = torch.rand(1, 1, 48, 48, 48)
    assert torch.allclose(single((16, 16, 16), multiple=8)(image, network), image, atol=1e-6)
    assert 4096 < math.prod(recorder.sizes[0]) <= 20_000
    with pytest.raises(torch.OutOfMemoryError):
        TiledInferer((32, 32, 32), multiple=8)(image, network)


def test_only_the_box_around_what_is_not_air_is_run():
    image = blobs((64, 60, 50), box((20, 30), (3, 41), (44, 50)))
    recorder = Recorder()
    logits = single((8, 8, 8), air=0, multiple=8)(image, recorder)
    inside = box((8, 40), (0, 56), (32, 50))  # a margin of one multiple, but not beyond the scan
    assert recorder.sizes == [(32, 56, 18)]
    assert torch.equal(logits[(..., *inside)], image[(..., *inside)])
    logits[(..., *inside)] = -20
    assert (logits == -20).all()


def test_tiles_of_air_are_not_run_and_stand_for_no_class():
    size, tile = (64, 64, 40), (16, 16, 16)
    image = blobs(size, box((0, 9), (1, 10), (2, 8)), box((60, 64), (50, 64), (33, 40)))
    recorder = Recorder()
    logits = single(tile, tile, air=0)(image, recorder)
    covered, count = torch.zeros(size, dtype=torch.bool), 0
    for place in dense_patch_slices(size, tile, (12, 12, 12)):
        if image[(0, 0, *place)].max() > 0:
            covered[place], count = True, count + 1
    assert len(recorder.sizes) == count < len(dense_patch_slices(size, tile, (12, 12, 12)))
    # where a tile that was run meets one that was not, it alone decides
    assert torch.allclose(logits[0, 0][covered], image[0, 0][covered], atol=1e-6)
    assert (logits[0, 0][~covered] == -20).all() and (~covered).any()
    assert (logits_to_label(logits[0])[0][~covered] == 0).all()


def test_a_scan_of_nothing_but_air_costs_one_crop_and_has_every_class():
    network, sizes = segmentation_network(), []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    logits = single((16, 16, 16), air=0)(torch.zeros(1, 1, 40, 40, 10), network)
    assert sizes == [(16, 16, 16)] and logits.shape == (1, 3, 40, 40, 10)
    assert (logits[..., 16:, :, :] == -20).all()


def test_without_air_everything_is_run():
    recorder = Recorder()
    logits = single((8, 8, 8), (8, 8, 8))(torch.zeros(1, 1, 16, 16, 16), recorder)
    assert len(recorder.sizes) == 27 and (logits == 0).all()


def test_the_metadata_of_the_scan_are_kept_and_the_type_is_as_asked():
    image = MetaTensor(torch.rand(1, 1, 9, 9, 9), affine=torch.eye(4) * 2, meta={"filename_or_obj": "a.nii.gz"})
    logits = TiledInferer((8, 8, 8))(image, lambda tile: tile.half())
    assert logits.dtype == torch.float16 and torch.equal(logits.affine, image.affine)
    assert logits.meta["filename_or_obj"] == "a.nii.gz"
    assert single((8, 8, 8), (8, 8, 8))(image, lambda tile: tile.half()).dtype == torch.float32


@pytest.mark.parametrize("mirrored", [None, [0, 2, 1]])
@pytest.mark.parametrize("tile", ["auto", (16, 16, 16), (32, 16, 24)])
def test_half_precision_rounds_the_logits_and_leaves_their_labels(tile, mirrored):
    network, image = segmentation_network(), blobs((40, 33, 50), box((3, 20), (0, 33), (5, 40)))
    with torch.no_grad():
        network.head.layers[0].bias.zero_()  # else no logit is positive
        exact = single((16, 16, 16), tile, air=0, multiple=4, mirrored=mirrored)(image, network)
        half = TiledInferer((16, 16, 16), tile, air=0, multiple=4, mirrored=mirrored)(image, network)
    run = exact > -20
    # each of the tiles that cover a voxel adds its own rounding
    assert (half.float() - exact)[run].abs().max() < 2**-8 * exact[run].abs().max()
    assert torch.equal(half[~run], torch.full_like(half[~run], -20)) and (~run).any()
    labels, expected = logits_to_label(half[0]), logits_to_label(exact[0])
    assert (labels != expected).float().mean() < 1e-3 and 1000 < (expected > 0).sum() < expected.numel() - 1000


class LargeTensors(TorchDispatchMode):
    """Remembers the memory of tensors with at least `numel` elements that are made while it is entered."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.made = numel, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.numel:
            self.made[result.untyped_storage().data_ptr()] = result.dtype
        return result


@pytest.mark.parametrize("size", [(48, 48, 48), (48, 10, 48)])
def test_the_logits_of_a_whole_scan_exist_once_and_in_half_precision(size):
    image = blobs(size, box((20, 40), (2, 48), (17, 40)))
    with LargeTensors(4 * math.prod(size)) as large:
        TiledInferer((16, 16, 16), (16, 16, 16), air=0, multiple=8)(image, lambda tile: tile.repeat(1, 4, 1, 1, 1))
    assert list(large.made.values()) == [torch.float16]


def test_new_weights_are_used_and_unchanged_ones_are_not_prepared_again():
    inferer, image = single((16, 16, 16)), torch.rand(1, 1, 20, 20, 20)
    network = segmentation_network()
    with torch.no_grad():
        first = inferer(image, network)
        prepared = inferer._fast.of(network)
        assert inferer._fast.of(network) is prepared
        network.load_state_dict(segmentation_network(seed=1).state_dict())
        second = inferer(image, network)
        assert torch.allclose(second, network(image), atol=1e-5) and not torch.allclose(first, second, atol=1e-3)
        network.head = segmentation_network(seed=2).head
        assert torch.allclose(inferer(image, network), network(image), atol=1e-5)
        other = segmentation_network(seed=3)
        assert torch.allclose(inferer(image, other), other(image), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1.0}, "overlap must be at least 0 and smaller than 1, but is 1.0"),
        ({"tile_size": "large"}, "tile_size must be auto or three sizes in voxels, but is 'large'"),
        ({"tile_size": [64, 64]}, "tile_size must be auto or three sizes"),
        ({"air": "some"}, "air must be a number or none, but is 'some'"),
    ],
)
def test_impossible_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        TiledInferer((8, 8, 8), **settings)


def test_an_unknown_backend_is_told():
    with pytest.raises(InputError, match="backend must be one of torch, openvino, but is 'onnx'"):
        TiledInferer((16, 16, 16), backend="onnx")(torch.rand(1, 1, 16, 16, 16), segmentation_network())


def test_none_as_a_word_runs_the_air_too():
    assert TiledInferer((8, 8, 8), air="none").air is None
