"""Every family against `transformers` on the spot: logits of prefill, decode and a reused prefix, and greedy tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import parity
from ridgepoint.catalog.families import FAMILIES
from ridgepoint.kernels import native
from ridgepoint.models.checkpoint import load
from ridgepoint.nn.context import CausalContext


@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: case.name)
def test_a_family_computes_what_transformers_computes(case: parity.Case, tmp_path: Path) -> None:
    check(parity.compare(case, tmp_path))


FIRST_OF_EACH = list({case.model_type: case for case in reversed(parity.CASES)}.values())


@pytest.mark.skipif(not native.available(), reason="the native library is not built here")
@pytest.mark.parametrize("case", FIRST_OF_EACH, ids=lambda case: case.name)
def test_so_do_the_native_kernels_over_packed_weights(case: parity.Case, tmp_path: Path) -> None:
    check(parity.compare(case, tmp_path, packed=True))


def check(row: parity.Parity) -> None:
    assert row.prefill_error_frac <= parity.TOLERANCE_FRAC
    assert row.decode_error_frac <= parity.TOLERANCE_FRAC
    assert row.shared_prefix_error_frac <= parity.TOLERANCE_FRAC
    assert row.greedy_equal


def test_every_family_has_a_case() -> None:
    assert {case.model_type for case in parity.CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "phimoe, longrope, biases", "qwen2_moe", "minimax_m2"])
def test_no_parameter_could_be_forgotten_unseen(name: str, tmp_path: Path) -> None:
    """The parity above proves little unless each parameter moves the logits by more than the tolerance."""
    case = next(case for case in parity.CASES if case.name == name)
    theirs = parity.make_checkpoint(case, tmp_path)
    ours = load(tmp_path, torch.float32)
    ids = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        want = theirs(ids[None]).logits[0]
        spread = float(want.max() - want.min())
        stored = dict(ours.named_parameters()) | {n: b for n, b in ours.named_buffers() if n.endswith("correction_E")}
        for key, value in stored.items():
            kept = value.clone()
            value.mul_(-1.0)
            error_frac = float((ours(ids, CausalContext(1, len(ids))) - want).abs().max()) / spread
            value.copy_(kept)
            assert error_frac > parity.TOLERANCE_FRAC, key
