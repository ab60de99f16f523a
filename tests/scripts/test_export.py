import pytest
import torch

from custom_components.networks import SegmentationNetwork, load_weights
from scripts.export import export

from ..bundles.conftest import BUNDLES

BUNDLE = BUNDLES / "hippocampus_mri_segmentation"


@pytest.mark.slow
def test_a_released_network_is_written_as_onnx(tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    export(str(BUNDLE), output_dir=str(tmp_path))
    assert f"wrote {tmp_path / 'model.onnx'}: image (N, 1, H, W, D) of any size to pred" in capsys.readouterr().out
    network = SegmentationNetwork(2, base_channels=16, num_scales=4).eval()
    load_weights(network, BUNDLE / "models" / "model.pt")
    image = torch.rand(1, 1, 35, 51, 37)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert abs(session.run(None, {"image": image.numpy()})[0] - network(image).numpy()).max() < 1e-4


def test_a_folder_that_is_no_bundle_is_told(tmp_path):
    with pytest.raises(SystemExit, match="export: .*is not the folder of a bundle"):
        export(str(tmp_path), output_dir=str(tmp_path))


def test_missing_weights_are_told(tmp_path):
    with pytest.raises(SystemExit, match="export: .*none.pt: no such weight file"):
        export(str(BUNDLE), output_dir=str(tmp_path), weights=str(tmp_path / "none.pt"))
