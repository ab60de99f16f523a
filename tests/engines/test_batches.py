import torch

from custom_components.engines import prepare_views


def batch(**extra):
    views = {f"view_{i}": torch.full((2, 1, 3, 3, 3), float(i)) for i in (1, 2)}
    voxels = {f"voxels_{i}": torch.full((2, 5, 3), i) for i in (1, 2)}
    return {**views, **voxels, "positions": torch.rand(2, 5, 3), "scan": [4, 4], **extra}


def test_all_first_views_come_before_all_second_views():
    originals = {f"original_{i}": torch.full((2, 1, 3, 3, 3), -float(i)) for i in (1, 2)}
    given = batch(**originals)
    views, target, args, kwargs = prepare_views(given)
    assert views[:, 0, 0, 0, 0].tolist() == [1, 1, 2, 2] and args == ()
    assert target["original"][:, 0, 0, 0, 0].tolist() == [-1, -1, -2, -2]
    assert kwargs["voxels"][:, 0, 0].tolist() == [1, 1, 2, 2] and target["scan"].tolist() == [4, 4]
    assert torch.equal(target["positions"], given["positions"])


def test_views_that_the_loader_only_cuts_are_augmented_together_and_kept_as_they_were():
    seen = []

    def augmentation(views):
        seen.append(views.shape)
        return views + 10

    views, target, _, _ = prepare_views(batch(), augmentation=augmentation)
    assert seen == [(4, 1, 3, 3, 3)]
    assert views[:, 0, 0, 0, 0].tolist() == [11, 11, 12, 12]
    assert target["original"][:, 0, 0, 0, 0].tolist() == [1, 1, 2, 2]
