"""How a decoder runs a step: recorded where every operator is native, captured where none needs the host, else layer by
layer. Decides once, and says why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import dispatch, native
from ridgepoint.kernels.mla_attention.lifts import lift_run
from ridgepoint.kernels.tensor_call import NotRecordableError
from ridgepoint.models import checkpoint
from ridgepoint.models.captured import CapturableEnds, Capture, CapturedStep, Ends, GraphCapture, ladder
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.host_inputs import HostInputs, StepSizes
from ridgepoint.models.kept import cache_folder
from ridgepoint.models.load_packed import load_planned, plan, summary
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.recorded import RecordedStep
from ridgepoint.models.rooms import DeviceRooms
from ridgepoint.models.staging import Staging
from ridgepoint.models.weight_cache import load_cached
from ridgepoint.nn.attention import MlaAttention


class DeviceStep(Protocol):
    """A step on an accelerator, which embeds and samples by itself."""

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """`logits_RV` float32 of the wanted rows, valid until the next call."""
        ...

    def pad(self, inputs: HostInputs) -> HostInputs:
        """The inputs at a size that the step runs best."""
        ...


class EagerStep:
    """Layer by layer, between `ends` where they sample."""

    def __init__(self, decoder: Decoder, cache: KVCache, ends: Ends | None = None) -> None:
        self._decoder, self._cache, self._ends = decoder, cache, ends

    def run(self, inputs: StepInputs) -> torch.Tensor:
        ids_T = inputs.token_ids_T if self._ends is None else self._ends.enter(inputs.token_ids_T)
        rows_R = inputs.logit_rows_R
        x_RD = self._decoder.hidden(ids_T, PagedContext(self._cache, inputs), lambda x: x.index_select(0, rows_R))
        if len(rows_R) == 0:
            return x_RD.new_empty(0, self._decoder.spec.vocab_size, dtype=torch.float32)
        logits_RV = self._decoder.logits(x_RD)
        if self._ends is not None:
            self._ends.leave(logits_RV)
        return logits_RV

    def pad(self, inputs: HostInputs) -> HostInputs:
        return inputs


class HostStep:
    """A step on the host, which finds its inputs in `room`: the recording for every step that fits it, layers for the rest (a
    prompt scored token by token, say) and where nothing is recorded."""

    def __init__(self, room: HostInputs, eager: EagerStep, recorded: RecordedStep | None = None) -> None:
        self.room, self.recorded, self._eager = room, recorded, eager

    def run(self, sizes: StepSizes) -> torch.Tensor:
        """`logits_RV` float32, valid until the next call; the first `sizes.num_logit_rows` rows are this step's."""
        if self.recorded is not None and self.recorded.fits(sizes):
            return self.recorded.run(sizes)
        with torch.inference_mode():
            return self._eager.run(self.room.first(sizes).tensors())


class CapturedOrEager:
    """Graphs for steps that only decode, layers for the rest: prompts, and prompts among decoding sequences."""

    def __init__(self, captured: CapturedStep, eager: EagerStep) -> None:
        self.captured, self._eager = captured, eager

    def pad(self, inputs: HostInputs) -> HostInputs:
        return self.captured.pad(inputs)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        return self.captured.run(inputs) if self.captured.runs(inputs) else self._eager.run(inputs)


def load_for_serving(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    fmt: str | None,
    announce: Callable[[str], None],
    *,
    max_context: int | None = None,
    weight_cache: str | None = None,
) -> Decoder:
    """The checkpoint as the fastest kernels here want it: packed for them as it is read, or plain where they cannot serve it.

    `fmt` None keeps what is stored. `weight_cache`: a folder, `off`, or None for the usual place.
    """
    if device.type != "cpu":
        return load_on_device(folder, dtype, DeviceRooms(device), fmt, announce, max_context=max_context)
    plain = dtype in (torch.bfloat16, torch.float32)
    if fmt is None and not (plain and native.available()):
        decoder = checkpoint.load(folder, dtype, device=device, max_context=max_context, progress=True)
        announce(f"kernels torch: native kernels {native.load_error() if plain else f'not for {dtype}'}")
        return decoder
    if not plain:
        raise ConfigError(f"weights are packed for bf16 and f32 on the cpu, not for {dtype}")
    native.library()
    place = cache_folder(weight_cache)
    loaded = load_cached(folder, dtype, fmt, place, announce, max_context=max_context, progress=True)
    announce(
        f"kernels native: {native.isa()}, {native.num_threads()} threads, weights packed as {summary(loaded.targets)}"
    )
    return loaded.decoder


def load_on_device(
    folder: Path,
    dtype: torch.dtype,
    rooms: DeviceRooms,
    fmt: str | None,
    announce: Callable[[str], None],
    *,
    max_context: int | None = None,
) -> Decoder:
    """`load_for_serving` for an accelerator: straight from the files, every time."""
    source, config = checkpoint.open_checked(folder, max_context)
    targets = plan(source, config, dtype, fmt, rooms)
    announce(
        f"weight cache off: it keeps what the CPU's kernels read; those of {rooms.device.type} come from the checkpoint"
    )
    decoder = load_planned(source, config, dtype, fmt, targets, rooms, progress=True)
    kernels = "triton" if dispatch.triton_installed() else "torch: Triton is not installed"
    announce(f"kernels {kernels}, weights as {summary(targets)}")
    return decoder


def lift_runs(decoder: Decoder, cache: KVCache) -> tuple[int, ...]:
    """For layers that lift whole runs of a prompt's latents: of how many tokens. One number, unless their shapes differ; none over
    blocks that are not the native kernels' (of 24 tokens, say)."""
    mixers = [(block.mixer, kv) for block, kv in zip(decoder.layers, cache.layers, strict=True)]
    runs = {lift_run(kv, m.w_uk_HNC, m.w_uv_HVC) for m, kv in mixers if isinstance(m, MlaAttention)}
    return tuple(sorted(run for run in runs if run is not None))


def make_step(
    decoder: Decoder, cache: KVCache, ends: Ends, *, max_tokens: int, max_seqs: int, max_context: int
) -> tuple[HostStep, str]:
    """The fastest way `decoder` can run steps over `cache`, sampled by `ends`, and one line that says which and why."""
    room = HostInputs.room(max_tokens, max_seqs, -(-max_context // cache.block_tokens))
    eager = EagerStep(decoder, cache, ends)
    if not native.available():
        return HostStep(room, eager), "step eager: recording needs the native kernels"
    try:
        recorded = RecordedStep(decoder, cache, room, ends)
    except NotRecordableError as error:
        return HostStep(room, eager), f"step eager: {error.message}"
    return HostStep(room, eager, recorded), f"step recorded: {len(recorded.recording)} operators in one native call"


def make_device_step(
    decoder: Decoder,
    cache: KVCache,
    staging: Staging,
    ends: CapturableEnds,
    *,
    max_seqs: int,
    max_context: int,
    scratch_block: int,
    capture: Capture | None = None,
    timed: Callable[[str], AbstractContextManager[None]] = lambda part: nullcontext(),
) -> tuple[DeviceStep, str]:
    """`make_step` for an accelerator, where the device embeds and samples by itself (`ends`). `capture` is CUDA's graphs
    unless another is given; `timed` is told what the start spends its time on."""
    eager = EagerStep(decoder, cache, ends)
    waiting = _ops_that_wait(decoder)
    if waiting:
        return eager, "step eager: the host must read numbers for " + ", ".join(waiting)
    if cache.must_clear:
        return eager, "step eager: the attention path needs cleared blocks"
    device = cache.layers[0].device
    if capture is None and device.type != "cuda":
        return eager, f"step eager: there are no graphs on {device.type}"
    sizes = ladder(max_seqs)
    captured = CapturedStep(
        decoder, cache, staging, ends, sizes=sizes, max_blocks_per_seq=-(-max_context // cache.block_tokens),
        scratch_block=scratch_block, capture=capture or GraphCapture(device, timed),
    )  # fmt: skip
    why = f"step captured: {len(sizes)} sizes of decode steps from 1 to {max_seqs}; prompts run layer by layer"
    return CapturedOrEager(captured, eager), why


def _ops_that_wait(decoder: Decoder) -> list[str]:
    """The decoder's operators whose path makes the host wait for the device, with that path."""
    device = decoder.embed.weight.device
    probes = [torch.empty(0, dtype=dtype, device=device) for dtype in {decoder.dtype, decoder.compute_dtype}]
    used = {"paged_attention"}  # its plans serve both kinds of attention
    used |= {"mla_attention"} if any(isinstance(module, MlaAttention) for module in decoder.modules()) else set()
    used |= {"moe_experts"} if decoder.moe_layers() else set()
    return [
        dispatch.explain(op, device.type) + (f", torch's for {probe.dtype}" if dispatch.leaves(op, probe) else "")
        for op in sorted(used)
        for probe in probes
        if dispatch.reads_on_host(op, probe)
    ]
