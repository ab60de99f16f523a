import importlib
import os

import custom_components


def test_large_tensors_get_large_pages_unless_the_user_decided(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    importlib.reload(custom_components)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    importlib.reload(custom_components)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
