import sys

import numpy as np
import pytest
import torch
from torch import nn

from custom_components.errors import InputError
from custom_components.networks import DenseSSLNetwork, export_onnx

from .test_folding import SHAPES, trained_network


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("kind", ["nonlinear", "representation"])
def test_the_file_gives_what_torch_gives_for_every_size(onnxruntime, tmp_path, kind):
    network = trained_network(kind) if kind != "representation" else DenseSSLNetwork(1, 4, 3).eval()
    difference = export_onnx(network, tmp_path / "new" / "model.onnx", (16, 12, 8))
    session = onnxruntime.InferenceSession(str(tmp_path / "new" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert difference < 1e-4
    for shape in SHAPES:
        image = torch.rand(shape)
        with torch.no_grad():
            expected = network(image).numpy()
        found = session.run(["pred"], {"image": image.numpy()})[0]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]


def test_a_file_that_differs_is_not_written(onnxruntime, tmp_path):
    (tmp_path / "model.onnx").write_text("an earlier one")
    with pytest.raises(InputError, match="model.onnx: not written, because it differs from PyTorch by"):
        export_onnx(nn.Conv3d(1, 4, 3, padding=1), tmp_path / "model.onnx", (8, 8, 8), tolerance=-1.0)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.onnx", "an earlier one")]


def test_a_missing_package_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="export to ONNX needs the package onnx, which is not installed; pip install"):
        export_onnx(trained_network(), tmp_path / "model.onnx", (8, 8, 8))
