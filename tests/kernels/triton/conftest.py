"""Triton's kernels on whatever there is: a GPU if torch sees one, else Triton's interpreter over CPU tensors.

Triton decides when a kernel is decorated, so the variable is set before anything here imports it. Without Triton the
folder is not collected.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch

_spec = importlib.util.find_spec("triton")
if _spec is None or _spec.origin is None:  # a folder of that name is not the package
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "triton was imported before TRITON_INTERPRET could be set: run these tests in a process of their own"
        )
    os.environ["TRITON_INTERPRET"] = "1"

    import interpreter_repairs

    interpreter_repairs.install()
