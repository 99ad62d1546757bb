"""The GPU suite's sections on whole steps: what launching one costs, and whole models against their floor and their prediction.

Weights are random and made on the device. Steps run through the engine's own executor, made as serving makes it.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from gpu_inputs import packs_weights, reads_packed_weights
from gpu_report import Run
from gpu_timing import host_us, relative_error
from ridgepoint.catalog.hardware import Accelerator, accelerator_from_table
from ridgepoint.catalog.models import catalog_model
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.calibration import ROOFLINE
from ridgepoint.cost.engine_fit import fit_engine, predictor, worth_measuring
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.step import step_cost
from ridgepoint.cost.timer import batch_of
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.device_executor import DeviceExecutor, device_executor
from ridgepoint.engine.nvml import joule_counter
from ridgepoint.engine.prediction import precision_of
from ridgepoint.engine.startup import Startup
from ridgepoint.engine.step_times import shapes_within, time_steps
from ridgepoint.models.checkpoint import materialise
from ridgepoint.models.decoder import Block, Decoder
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.models.step import CapturedOrEager, EagerStep
from ridgepoint.nn.ffn import MoeFfn
from ridgepoint.nn.linear import replace_weight
from ridgepoint.sched.ahead import OneAhead
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import StepShape

BLOCK = 16
TUNE_S = 15.0  # as serving has it
SMOKE_SHAPES = [StepShape([1] * batch, [context] * batch, batch) for batch in (1, 2, 4) for context in (8, 32)] + [
    StepShape([8], [0], 1),
    StepShape([32], [0], 1),
]
SHOWN_STEPS = 14  # of those measured; the others judge the fit


# ---------------------------------------------------------------- one step


def step(run: Run) -> None:
    """What the host pays for a captured step, whether it ever waits, and how much of it shows one step ahead."""
    decoder = random_decoder(small_spec(run.smoke), run.device)
    sizes = (1, 4) if run.smoke else (1, 16, 64)
    startup = Startup()
    executor = executor_around(decoder, run, startup, max_seqs=sizes[-1], max_context=512, max_tokens=2048)
    run.note(startup.line())
    for size in sizes:
        inputs, columns = decode_inputs(executor, size, 64), executor.sampler.columns([])

        back = torch.zeros(size, dtype=torch.int64, pin_memory=run.device.type == "cuda")

        def launch(inputs: HostInputs = inputs, columns: np.ndarray = columns, back: torch.Tensor = back) -> None:
            executor.step.run(executor.staging.stage(executor.step.pad(inputs), columns))
            back.copy_(executor.sampler.ids_R[: len(back)], non_blocking=True)

        with torch.inference_mode():
            launch()
            run.figure(f"launch_us_{size}", host_us(launch, run.device, 3 if run.smoke else 200), "us")
    with run.apart("a replay beside the layers"):
        run.figure("captured_error", captured_error(executor, decoder, sizes[-1]), "")
    with run.apart("waits of launches"):
        run.figure("syncs", count_syncs(executor, sizes[-1], run.device), "")
    with run.apart("one step ahead"):
        wall_s, device_s = steps_one_ahead(executor, sizes[-1], 6 if run.smoke else 150)
        facts = {"wall_us": wall_s * 1e6, "device_us": device_s * 1e6}
        run.figure(f"ahead_over_device_{sizes[-1]}", wall_s / device_s, "x", **facts)


def captured_error(executor: DeviceExecutor, decoder: Decoder, size: int) -> float:
    """Logits of a replay against the same step layer by layer."""
    inputs, columns = executor.step.pad(decode_inputs(executor, size, 64)), executor.sampler.columns([])
    with torch.inference_mode():
        replayed = executor.step.run(executor.staging.stage(inputs, columns)).clone()
        eager = EagerStep(decoder, executor.cache, executor.sampler)
        return relative_error(replayed, eager.run(executor.staging.stage(inputs, columns)))


def count_syncs(executor: DeviceExecutor, size: int, device: torch.device) -> int:
    """Launches that made the host wait for the device, among those of a few decoding steps."""
    if device.type != "cuda":
        return 0
    found = 0
    submit = executor.submit

    def watched(batch):  # type: ignore[no-untyped-def]
        nonlocal found
        torch.cuda.set_sync_debug_mode("error")
        try:
            return submit(batch)
        except RuntimeError as error:
            found += 1
            print(f"a launch waited: {error}")
            torch.cuda.set_sync_debug_mode("default")
            return submit(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    executor.submit = watched  # type: ignore[method-assign]
    try:
        steps_one_ahead(executor, size, 20)
    finally:
        executor.submit = submit  # type: ignore[method-assign]
    return found


def steps_one_ahead(executor: DeviceExecutor, num_seqs: int, steps: int) -> tuple[float, float]:
    """Median seconds from step to step, and of the device's work, when `num_seqs` sequences decode one step ahead."""
    context = 32
    limits = Limits(
        num_blocks=executor.cache.num_blocks - 1, block_tokens=BLOCK, max_num_seqs=num_seqs, max_step_tokens=max(512, num_seqs),
        max_context=context + steps + 8, max_waiting=num_seqs,
    )  # fmt: skip
    scheduler = Scheduler(limits)
    pace = OneAhead(executor, scheduler.advance)
    for number in range(num_seqs):
        prompt = [(number * 31 + place) % 250 + 1 for place in range(context)]
        params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
        scheduler.add(Request(str(number), prompt, params, seed=number))
    ends_s, device_s = [], []
    while not scheduler.idle or pace.in_flight:
        for batch, result in pace.push(scheduler.next_batch(time.monotonic())):
            scheduler.commit(batch, result)
            if batch.num_tokens == len(batch.segments) == num_seqs:
                ends_s.append(time.perf_counter())
                device_s.append(result.seconds)
    between = np.diff(ends_s)
    return float(np.median(between)), statistics.median(device_s)


# ---------------------------------------------------------------- whole models


def model(run: Run) -> None:
    """A random 30B-A3B: start, decoding and prompts against the floor, then the prediction of steps it was not fitted to."""
    spec = small_spec(True) if run.smoke else catalog_model("qwen3-30b-a3b").spec
    startup = Startup()
    with startup.part("load"):
        decoder = random_decoder(spec, run.device)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
    most, context, longest = (4, 40, 64) if run.smoke else (256, 1024, 8192)
    executor = executor_around(decoder, run, startup, max_seqs=most, max_context=longest + 64, max_tokens=longest,
                               tune_s=TUNE_S, num_blocks=most * -(-(context + 64) // BLOCK))  # fmt: skip
    run.figure("start_s", sum(startup.seconds.values()), "s", **startup.seconds, **startup.configurations)
    for kv in executor.cache.layers:
        kv.normal_()
    decodes = [
        StepShape([1] * batch, [context] * batch, batch) for batch in ((1, 4) if run.smoke else (1, 16, 64, 256))
    ]
    prompts = [StepShape([length], [0], 1) for length in ((32,) if run.smoke else (2048, 8192))]
    chip, precision = measured_chip(run), precision_of(decoder)
    for what, shapes in (("decoding", decodes), ("prompts", prompts)):
        with run.apart(what):
            seconds = time_steps(executor, BLOCK, spec.vocab_size, shapes, repeats=1 if run.smoke else 5)
            for shape, taken_s in zip(shapes, seconds, strict=True):
                _against_floor(run, spec, chip, precision, shape, taken_s)
    with run.apart("energy"):
        _energy(run, executor, spec, decodes[-2])
    with run.apart("calibration"):
        _calibration(run, executor, spec, chip, precision)


def _against_floor(
    run: Run, spec: ModelSpec, chip: Accelerator, precision: Precision, shape: StepShape, taken_s: float
) -> None:
    floor_s = float(step_cost(spec, chip, Layout(), precision, batch_of(shape), ROOFLINE).floor_s)
    decoding = max(shape.new_tokens) == 1
    name = f"decode_{len(shape.new_tokens)}" if decoding else f"prefill_{shape.new_tokens[0]}"
    facts = {"ms": taken_s * 1e3, "floor_ms": floor_s * 1e3, "tok_per_s": sum(shape.new_tokens) / taken_s}
    run.figure(f"{name}_floor_frac", floor_s / taken_s, "", **facts)
    if decoding and len(shape.new_tokens) == 1:
        run.figure(f"{name}_over_floor", taken_s / floor_s, "x", **facts)


def _energy(run: Run, executor: DeviceExecutor, spec: ModelSpec, shape: StepShape) -> None:
    """Joules per token of a burst of equal steps, by the device's own counter."""
    joules = joule_counter(run.device)
    if joules is None:
        run.note("no energy counter here")
        return
    before, repeats = joules(), 100
    time_steps(executor, BLOCK, spec.vocab_size, [shape], repeats=repeats)
    used = joules() - before
    num_tokens = (repeats + 1) * sum(shape.new_tokens)
    run.figure(f"decode_{len(shape.new_tokens)}_joules_per_token", used / num_tokens, "J", joules=used)


def _calibration(run: Run, executor: DeviceExecutor, spec: ModelSpec, chip: Accelerator, precision: Precision) -> None:
    limits = Limits(
        num_blocks=executor.cache.num_blocks - 1, block_tokens=BLOCK, max_num_seqs=executor.staging.max_seqs,
        max_step_tokens=executor.staging.max_tokens, max_context=executor.staging.max_tokens, max_waiting=0,
    )  # fmt: skip
    start = calibration_for(chip, "serving")
    candidates = SMOKE_SHAPES if run.smoke else shapes_within(limits)
    shown = worth_measuring(spec, chip, precision, start, candidates, min(SHOWN_STEPS, len(candidates) - 2))
    order = [*shown, *(i for i in range(len(candidates)) if i not in set(shown))]
    shapes = [candidates[i] for i in order]
    seconds = time_steps(executor, BLOCK, spec.vocab_size, shapes, repeats=1 if run.smoke else 3)
    fit = fit_engine(spec, chip, precision, start, shapes, seconds, range(len(shown)))
    predicted = np.exp(predictor(spec, chip, precision, start, shapes)(fit.calibration))
    steps = [
        {"new_tokens": sum(shape.new_tokens), "sequences": len(shape.new_tokens), "cached_tokens": sum(shape.cached_tokens),
         "measure_s": measured, "predict_s": float(guess), "shown": place < len(shown)}
        for place, (shape, measured, guess) in enumerate(zip(shapes, seconds, predicted, strict=True))
    ]  # fmt: skip
    run.figure(
        "median_error_frac", fit.median_error_frac, "", section="calibration", constants=fit.constants(), steps=steps
    )


def gpt_oss(run: Run) -> None:
    """The shape of gpt-oss-120b with experts in MXFP4: time per token at 4 sequences, tokens per second at 64, 1k in and 1k out."""
    if not packs_weights() or not reads_packed_weights(run.device):
        run.note("no packed weights for this device in this tree")
        return
    spec = small_spec(True) if run.smoke else catalog_model("gpt-oss-120b").spec
    decoder = random_decoder(spec, run.device, experts="mxfp4")
    most, context, prompt = (4, 40, 32) if run.smoke else (64, 1536, 1024)
    executor = executor_around(decoder, run, Startup(), max_seqs=most, max_context=2 * context, max_tokens=max(prompt, most),
                               num_blocks=most * -(-(context + 64) // BLOCK))  # fmt: skip
    for kv in executor.cache.layers:
        kv.normal_()
    chip, precision = measured_chip(run), precision_of(decoder)

    def seconds_of(shape: StepShape) -> float:
        return time_steps(executor, BLOCK, spec.vocab_size, [shape], repeats=1 if run.smoke else 5)[0]

    with run.apart("4 sequences"):
        few = StepShape([1] * 4, [context] * 4, 4)
        few_s = seconds_of(few)
        run.figure("tpot_ms_4", few_s * 1e3, "ms", context=context)
        _against_floor(run, spec, chip, precision, few, few_s)
    with run.apart(f"{most} sequences"):
        many = StepShape([1] * most, [context] * most, most)
        many_s, prompt_s = seconds_of(many), seconds_of(StepShape([prompt], [0], 1))
        each_s = (
            prompt * many_s + most * prompt_s
        )  # a round: every sequence's prompt, and as many steps as it has tokens
        run.figure(f"tok_per_s_{most}", most * prompt / each_s, "tok/s", step_ms=many_s * 1e3, prompt_ms=prompt_s * 1e3)
        _against_floor(run, spec, chip, precision, many, many_s)


# ---------------------------------------------------------------- what they are made of


def small_spec(tiny: bool) -> ModelSpec:
    """Qwen3's layers in a model of a few megabytes, or of a few hundred kilobytes."""
    spec = catalog_model("qwen3-30b-a3b").spec
    layer = spec.layers[0]
    width, heads, experts, top_k, depth = (64, 4, 8, 2, 2) if tiny else (512, 8, 32, 4, 2)
    mixer = dataclasses.replace(layer.mixer, num_heads=heads, num_kv_heads=heads // 2)  # type: ignore[type-var, arg-type]
    if tiny:
        rope = dataclasses.replace(mixer.rope, rotary_dim=16)  # type: ignore[union-attr]
        mixer = dataclasses.replace(mixer, head_dim=16, v_head_dim=16, scale=0.25, rope=rope)
    ffn = dataclasses.replace(layer.ffn, num_experts=experts, top_k=top_k, width=width // 2)  # type: ignore[type-var, arg-type]
    small = dataclasses.replace(layer, mixer=mixer, ffn=ffn)
    return dataclasses.replace(
        spec, d_model=width, vocab_size=300 if tiny else 32_000, layers=(small,) * depth, max_context=1024
    )


def random_decoder(spec: ModelSpec, device: torch.device, experts: str | None = None) -> Decoder:
    """A decoder of `spec` with random bf16 weights, its experts packed as `experts` layer by layer: the whole never exists in bf16."""
    decoder = Decoder(spec, torch.bfloat16, device="meta")
    if experts is None:
        decoder = materialise(decoder, device)
        decoder.initialise(seed=0)
        return _as_published(decoder)
    packer = _expert_packer(experts)
    for layer in decoder.layers:
        assert isinstance(layer, Block)
        layer.to_empty(device=device)
        _initialise(layer)
        if isinstance(layer.ffn, MoeFfn):
            packer(layer.ffn)
    for module in (decoder.embed, decoder.norm, *([decoder.head] if decoder.head is not None else [])):
        module.to_empty(device=device)
        _initialise(module)
    decoder.reset_rotary(device)
    return _as_published(decoder)


def _as_published(decoder: Decoder) -> Decoder:
    """Routers of bf16 numbers, as checkpoints store them; nothing to train."""
    decoder.eval().requires_grad_(False)
    for _, moe in decoder.moe_layers():
        moe.router.weight.copy_(moe.router.weight.bfloat16())
    return decoder


def _initialise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
        for buffer in module.buffers():
            buffer.zero_()


def _expert_packer(fmt: str) -> Callable[[MoeFfn], None]:
    """Packs the first layer's experts; later layers get fresh random codes in the same layout, which is quicker."""
    from ridgepoint.kernels.device_weight import DeviceWeight, pack_for_device

    templates: dict[str, DeviceWeight] = {}

    def pack(ffn: MoeFfn) -> None:
        for name, glu in (("w_gate_up_E2FD", True), ("w_down_EDF", False)):
            if name not in templates:
                templates[name] = pack_for_device(getattr(ffn.experts, name), fmt, glu=glu)
                packed = templates[name]
            else:
                like = templates[name]
                codes = torch.randint(
                    -(2**31), 2**31 - 1, like.codes.shape, dtype=torch.int32, device=like.codes.device
                )
                packed = dataclasses.replace(like, codes=codes.view(like.codes.dtype), scales=like.scales.clone())
            replace_weight(ffn.experts, name, packed)

    return pack


def run_again(body: Callable[[], None]) -> Callable[[], None]:
    """A capture where there are no graphs: a replay is the body once more."""
    body()
    return body


def executor_around(
    decoder: Decoder,
    run: Run,
    startup: Startup,
    *,
    max_seqs: int,
    max_context: int,
    max_tokens: int,
    num_blocks: int | None = None,
    tune_s: float = 0.0,
) -> DeviceExecutor:
    """The executor that serving builds, and a note of how it runs steps; on a GPU it must be captured."""
    told: list[str] = []
    executor = device_executor(
        decoder, num_blocks=num_blocks or max_seqs * -(-max_context // BLOCK), block_tokens=BLOCK, max_seqs=max_seqs,
        max_tokens=max_tokens, max_context=max_context, announce=told.append, startup=startup, tune_s=tune_s,
        capture=run_again if run.smoke else None,
    )  # fmt: skip
    for line in told:
        run.note(line)
    if run.device.type == "cuda" and not isinstance(executor.step, CapturedOrEager):
        raise AssertionError(f"decoding is not captured: {told}")
    return executor


def decode_inputs(executor: DeviceExecutor, num_seqs: int, context: int) -> HostInputs:
    """A decode step of sequences that each have blocks of their own."""
    per_seq = -(-context // BLOCK)
    tables = np.arange(num_seqs * per_seq).reshape(num_seqs, per_seq) % (executor.cache.num_blocks - 1)
    position = np.full(num_seqs, context - 1)
    return HostInputs(
        token_ids_T=np.arange(num_seqs) % 250, positions_T=position, slots_T=tables[:, -1] * BLOCK + position % BLOCK,
        query_starts_B1=np.arange(num_seqs + 1), context_lens_B=position + 1, block_tables_BN=tables,
        logit_rows_R=np.arange(num_seqs),
    )  # fmt: skip


def measured_chip(run: Run) -> Accelerator:
    """The device as this run measured it."""
    return chip_of(run.rates, source="measure_: this run")


def chip_of(rates: dict[str, float], source: str = "as foreseen") -> Accelerator:
    table = {name: [value, source] for name, value in chip_facts(rates).items()}
    return accelerator_from_table(
        "measured", {"name": "measured", "kind": "gpu", "vendor": "NVIDIA", "launch_year": 2024, **table}
    )


def chip_facts(rates: dict[str, float]) -> dict[str, float]:
    flops = {
        f"flops_per_s_{kind}": rates[f"{kind}_flops_per_s"]
        for kind in ("fp32", "bf16", "fp8")
        if f"{kind}_flops_per_s" in rates
    }
    return {**flops, "memory_bytes_per_s": rates["memory_bytes_per_s"]}
