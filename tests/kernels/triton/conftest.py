"""Triton's kernels in its interpreter over CPU tensors; where torch sees a GPU, on that, as far as tests put their tensors there.

Triton decides when a kernel is decorated, so the variable is set before anything here imports it. Without Triton the
folder is not collected.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import torch

_spec = importlib.util.find_spec("triton")
if _spec is None or _spec.origin is None:  # a folder of that name is not the package
    collect_ignore_glob = ["test_*.py"]
elif torch.cuda.is_available():  # compiled kernels cannot read the host's tensors
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if "DEVICE" not in file.read_text()]
else:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "triton was imported before TRITON_INTERPRET could be set: run these tests in a process of their own"
        )
    os.environ["TRITON_INTERPRET"] = "1"

    import interpreter_repairs

    interpreter_repairs.install()
