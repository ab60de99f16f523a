"""Options of the grids that cannot be meant, told before anything is trained."""

import pytest

from custom_components.errors import InputError
from scripts.ablation import ablation
from scripts.label_efficiency import label_efficiency


@pytest.mark.parametrize("grid", [label_efficiency, ablation])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, "--learning_rat: no such setting in .*; did you mean --learning_rate"),
        ({"seed": 3}, "--seed: is another one in every training of a grid; give --seeds"),
        ({"pretrained": "model.pt"}, "--pretrained: .*; give --backbones"),
    ],
)
def test_an_option_that_no_config_has_is_refused(grid, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        grid(output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path), **settings)
    assert not (tmp_path / "out").exists()


def test_a_setting_of_one_backbone_is_looked_at_too(tmp_path):
    with pytest.raises(InputError, match="--intensity_rang"):
        label_efficiency(
            output_dir=str(tmp_path / "out"),
            dataset_dir=str(tmp_path),
            bundle="head_neck_ct_segmentation",
            backbone_settings={"vox2vec": {"intensity_rang": [0, 1]}},
        )
