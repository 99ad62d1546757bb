"""How many kernels does a decode step launch on a GPU, by layer and in all, and how many compilations do the sizes of steps need?

Needs no GPU. A decoder whose tensors have shapes and no memory runs the body that would be captured, its sampler included; each
of our launches is recorded instead of started, and each of torch's operators that would be a kernel is counted. A kernel in a
graph costs about 1.3 us of gap beside its work, and less where it is launched before the one before it has ended (assumed:
0.6 us), so what one layer launches bounds small batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.pop("TRITON_INTERPRET", None)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_compile import compiled_as, recorded
from provenance import provenance, save
from ridgepoint.catalog.models import catalog_model
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.engine.device_sampler import NUM_COLUMNS, DeviceSampler
from ridgepoint.kernels import dispatch
from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.kernels.spread import spread
from ridgepoint.models.captured import decode_body, ladder
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.narrow import narrow_routers
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs

GAP_US, OVERLAPPED_GAP_US = 1.3, 0.6
BLOCK, MAX_BLOCKS = 16, 64
MODELS = ("qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3")
NOT_KERNELS = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh")


class _Kernels(TorchDispatchMode):
    """Counts the operators of torch's that write something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NOT_KERNELS and "alias" not in name:
            self.found[f"torch.{name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Operators on tensors without memory take the paths that they would on a GPU."""
    dispatch.ORDER["meta"] = dispatch.ORDER["cuda"]
    try:
        with dispatch.forced(None):
            yield
    finally:
        del dispatch.ORDER["meta"]


class Model:
    """A decoder of `num_layers` layers without memory, with what a step runs between."""

    def __init__(self, spec: ModelSpec, num_layers: int, max_seqs: int) -> None:
        layers = spec.layers[-num_layers:]  # the first ones of some families are dense
        self.spec = dataclasses.replace(spec, layers=layers)
        self.decoder = Decoder(self.spec, torch.bfloat16, device="meta").eval().requires_grad_(False)
        narrow_routers(self.decoder, assume_exact=True)
        with as_on_a_gpu():
            self.cache = KVCache(self.spec, 8, BLOCK, torch.bfloat16, "meta")
        self.sampler = DeviceSampler(
            torch.empty(NUM_COLUMNS, max_seqs, dtype=torch.int64, device="meta"), spec.vocab_size
        )
        self.logits_RV = torch.empty(max_seqs, spec.vocab_size, device="meta")

    def inputs(self, num_tokens: int, num_seqs: int, width: int) -> StepInputs:
        def indices(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int64, device="meta")

        return StepInputs(
            token_ids_T=indices(num_tokens), positions_T=indices(num_tokens), slots_T=indices(num_tokens),
            query_starts_B1=indices(num_seqs + 1), context_lens_B=indices(num_seqs), block_tables_BN=indices(num_seqs, width),
            logit_rows_R=indices(num_seqs),
        )  # fmt: skip

    def decode(self, num_seqs: int, mode: str) -> tuple[Counter[str], list[Any]]:
        """Kernels of a captured step by name, and our launches."""
        self.sampler.mode = mode
        inputs = self.inputs(num_seqs, num_seqs, MAX_BLOCKS)
        width = torch.empty(1, dtype=torch.int64, device="meta")

        def body() -> None:
            spread(inputs.block_tables_BN.flatten(), width, inputs.block_tables_BN)
            decode_body(self.decoder, self.cache, self.sampler, inputs, self.logits_RV[:num_seqs])

        return self._run(body)

    def prompt(self, num_tokens: int) -> tuple[Counter[str], list[Any]]:
        """Of a prompt computed at once, up to the last norm of the row that is wanted."""
        known = Known(least_queries=num_tokens, most_cached=0)
        inputs = dataclasses.replace(self.inputs(num_tokens, 1, -(-num_tokens // BLOCK)), known=known)

        def wanted(x_TI: torch.Tensor) -> torch.Tensor:
            return x_TI.index_select(0, inputs.logit_rows_R)

        return self._run(lambda: self.decoder.hidden(inputs.token_ids_T, PagedContext(self.cache, inputs), wanted))

    def _run(self, body: Any) -> tuple[Counter[str], list[Any]]:
        with as_on_a_gpu(), recorded() as launches, torch.inference_mode(), _Kernels() as kernels:
            body()
        return kernels.found + Counter(launch.kernel.__name__ for launch in launches), launches


def launches_of(name: str, num_seqs: int, mode: str) -> dict[str, Any]:
    """Of a step, of one layer (what one more layer adds), and of what comes around the layers."""
    spec = catalog_model(name).spec
    (two, launches_of_two), (three, launches_of_three) = (
        Model(spec, count, num_seqs).decode(num_seqs, mode) for count in (2, 3)
    )
    layer = three - two
    around = two - layer - layer
    total = around.total() + layer.total() * len(spec.layers)
    in_two, in_three = (
        sum("launch_pdl" in launch.options for launch in found) for found in (launches_of_two, launches_of_three)
    )
    overlapped = in_two + (in_three - in_two) * (len(spec.layers) - 2)
    gaps_us = GAP_US * (total - overlapped) + OVERLAPPED_GAP_US * overlapped
    return {
        "model": name, "sequences": num_seqs, "mode": mode, "layer": dict(layer), "around": dict(around),
        "kernels_of_a_layer": layer.total(), "kernels_around": around.total(), "kernels": total, "overlapped": overlapped, "gaps_us": gaps_us,
    }  # fmt: skip


def compilations(name: str, max_seqs: int, prompts: list[int]) -> dict[str, int]:
    """Variants of each kernel that all sizes of decode steps and these lengths of prompts need together."""
    model = Model(catalog_model(name).spec, 2, max_seqs)  # the last layer of a prompt feeds one row forward
    needed: dict[str, set[str]] = {}
    for launches in (
        *(model.decode(size, mode)[1] for size in ladder(max_seqs) for mode in model.sampler.modes),
        *(model.prompt(length)[1] for length in prompts),
    ):
        for launch in launches:
            needed.setdefault(launch.kernel.__name__, set()).add(compiled_as(launch))
    return {kernel: len(keys) for kernel, keys in sorted(needed.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one model, few sizes")
    parser.add_argument("--out", type=Path, help="JSON result")
    args = parser.parse_args()
    steps = []
    for name in MODELS[:1] if args.smoke else MODELS:
        for num_seqs in (1, 64):
            for mode in ("greedy",) if args.smoke else DeviceSampler.modes:
                steps.append(launches_of(name, num_seqs, mode))
                print("{model:14} x{sequences:<3} {mode:6} {kernels_of_a_layer:3} a layer, {kernels_around:3} around, "
                      "{kernels:4} in all, {overlapped} overlapped: {gaps_us:.0f} us of gaps".format(**steps[-1]))  # fmt: skip
                if mode == "greedy" and num_seqs == 1:
                    print(f"  a layer: {steps[-1]['layer']}\n  around: {steps[-1]['around']}")
    max_seqs, prompts = (16, [40, 1000]) if args.smoke else (256, [17, 40, 500, 1000, 2048, 3073, 4096, 7778, 8192])
    needed = compilations(MODELS[0], max_seqs, prompts)
    print(f"compilations for every decode step to {max_seqs} and {len(prompts)} prompts: {needed}")
    save(args.out, provenance(__doc__) | {"steps": steps, "compilations": needed})


if __name__ == "__main__":
    main()
