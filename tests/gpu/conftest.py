"""Tests that need a CUDA device: `pytest tests/gpu`, or the GPU suite's section `tests`. Skipped where there is none.

They import nothing but torch, Triton and the package, so that they run from the source tree alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
