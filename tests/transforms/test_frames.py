from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from custom_components.transforms import OverlappingViews, OverlappingViewsd
from custom_components.transforms.frames import Frame, random_matrix, shared_voxels
from custom_components.transforms.views import cut_frame

SPACING = (3.5, 3.5, 2.5)


def frame(size=(9, 8, 7), centre=(10.0, 9.5, 11.25), rotate_range=0.6, scale_range=0.3, seed=0) -> Frame:
    matrix = random_matrix(rotate_range, scale_range, SPACING, np.random.RandomState(seed))
    return Frame(size, np.array(centre), matrix)


def smooth(shape) -> torch.Tensor:
    """A volume that trilinear interpolation gives exactly: a * x + b * y + c * z."""
    return torch.from_numpy(np.tensordot([1.0, 20.0, -5.0], np.indices(shape), 1)[None])


def test_a_matrix_turns_and_scales_in_mm():
    random = np.random.RandomState(3)
    for _ in range(20):
        matrix = random_matrix(0.5, 0.2, SPACING, random)
        in_mm = np.diag(SPACING) @ matrix @ np.diag(1 / np.array(SPACING))
        factors = np.linalg.norm(in_mm, axis=0)
        assert (np.abs(factors - 1) <= 0.2).all()
        turn = in_mm / factors
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        angles = Rotation.from_matrix(turn).as_euler("XYZ")
        assert np.linalg.det(turn) > 0 and (np.abs(angles) <= 0.5).all()


@pytest.mark.parametrize("size", [(9, 8, 7), (1, 5, 4), (1, 1, 1)])
def test_a_view_is_the_interpolated_scan(size):
    image = np.random.default_rng(0).random((24, 21, 25))
    grid = frame(size)
    offset = grid.centre - grid.matrix @ ((np.array(size) - 1) / 2)
    expected = affine_transform(image, grid.matrix, offset, size, order=1)
    np.testing.assert_allclose(cut_frame(torch.from_numpy(image[None]), grid)[0].numpy(), expected, atol=1e-5)


def test_outside_the_scan_stands_the_pad_value():
    view = cut_frame(torch.zeros(1, 5, 5, 5), frame((6, 6, 6), (40.0, 2.0, 2.0)), pad_value=-3.0)
    torch.testing.assert_close(view, torch.full_like(view, -3))


def test_grid_and_scan_positions_are_inverse_to_each_other():
    grid, voxels = frame(), np.random.default_rng(0).random((50, 3)) * 9
    np.testing.assert_allclose(grid.in_grid(grid.in_scan(voxels)), voxels, atol=1e-12)


@pytest.mark.parametrize("max_voxels", [7, 5000])
def test_shared_voxels_are_those_of_a_loop(max_voxels):
    body = np.random.default_rng(1).random((20, 19, 22)) < 0.6
    first, second = frame(seed=1), frame((8, 9, 6), (12.0, 10.0, 9.0), seed=2)
    expected = {}
    for voxel in np.ndindex(*first.size):
        position = first.matrix @ (np.array(voxel) - (np.array(first.size) - 1) / 2) + first.centre
        in_second = np.linalg.solve(second.matrix, position - second.centre) + (np.array(second.size) - 1) / 2
        nearest, other = np.rint(position).astype(int), np.rint(in_second).astype(int)
        in_body = ((nearest >= 0) & (nearest < body.shape)).all() and body[tuple(nearest)]
        if in_body and ((other >= 0) & (other < second.size)).all():
            expected[voxel] = tuple(int(o) for o in other)
    found = shared_voxels(body, first, second, max_voxels, np.random.default_rng(0))
    pairs = [(tuple(a), tuple(b)) for a, b in zip(found[0].tolist(), found[1].tolist(), strict=True) if a[0] >= 0]
    assert len(found[0]) == max_voxels
    assert all(expected[a] == b for a, b in pairs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert len(pairs) == len(set(expected.values())) if max_voxels > 1000 else 0 < len(pairs) <= max_voxels


def test_turned_views_show_the_same_voxels():
    image, body = smooth((60, 55, 50)), torch.zeros(1, 60, 55, 50)
    body[0, 2:-2, 2:-2, 2:-2] = 1  # between the scan's outermost voxels and the padding, nothing is linear
    views = OverlappingViews((16, 15, 14), 64, num_pairs=6, rotate_range=0.4, scale_range=0.2, spacing=SPACING)
    views.set_random_state(0)
    pairs = views(image, body)
    for pair, (_, matrix_2) in zip(pairs, views.matrices, strict=True):
        rows = pair.voxels_1[:, 0] >= 0
        values = [view[0][tuple(v[rows].T)] for view, v in zip(pair[:2], pair[2:4], strict=True)]
        assert rows.sum() > 10
        # the scan's intensity is linear, so that it says where a voxel lies
        expected = pair.positions[rows].double() @ torch.tensor([1.0, 20.0, -5.0], dtype=torch.float64)
        assert torch.allclose(values[0].double(), expected, atol=5e-3)
        half_a_voxel = 0.5 * np.abs([1.0, 20.0, -5.0] @ matrix_2).sum()  # along each axis of view 2, in intensity
        assert (values[0] - values[1]).abs().max() < half_a_voxel + 1e-3
        assert not torch.equal(values[0], values[1])


def test_a_scan_smaller_than_a_turned_view_is_padded():
    views = OverlappingViews((8, 8, 8), 16, rotate_range=0.3, spacing=SPACING)
    views.set_random_state(1)
    pair = views(torch.ones(1, 5, 1, 3), torch.ones(1, 5, 1, 3))[0]
    assert pair.view_1.shape == (1, 8, 8, 8) and torch.isfinite(pair.view_1).all()
    assert ((pair.voxels_1 >= -1) & (pair.voxels_1 < 8)).all()


@pytest.mark.parametrize("settings", [{"rotate_range": -0.1}, {"scale_range": 1.0}, {"scale_range": -0.1}])
def test_impossible_ranges_are_refused(settings):
    with pytest.raises(ValueError, match="rotate_range must not be negative"):
        OverlappingViewsd("image", crop_size=(8, 8, 8), **settings)
