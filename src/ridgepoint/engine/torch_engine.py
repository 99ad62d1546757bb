"""An engine around a checkpoint: device, dtype, memory for KV, and every other choice left open, each with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ridgepoint.cost.following import FollowingTimer
from ridgepoint.engine.build import make_scheduler
from ridgepoint.engine.core import EngineCore, ModelFacts
from ridgepoint.engine.device_executor import DeviceExecutor, device_executor
from ridgepoint.engine.early import dtype_name
from ridgepoint.engine.executor import HostExecutor
from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.kv_dtype import kv_dtype_of
from ridgepoint.engine.machine import available_bytes, keep_freed_memory, usable_cores
from ridgepoint.engine.nvml import joule_counter
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.prediction import choose_timer
from ridgepoint.engine.sampler import Sampler
from ridgepoint.engine.startup import Startup
from ridgepoint.engine.step_size import usual_mixed_tokens, usual_step_tokens
from ridgepoint.engine.text import TokenBytes
from ridgepoint.engine.tokenizer import load_tokenizer
from ridgepoint.errors import CheckpointError, ConfigError
from ridgepoint.kernels import native
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache, block_bytes
from ridgepoint.models.source import read_config, resolve
from ridgepoint.models.step import lift_runs, load_for_serving, make_step
from ridgepoint.sched.ahead import InTurn, OneAhead, Pace
from ridgepoint.sched.prefix import root_key
from ridgepoint.sched.step import StepTimer
from ridgepoint.units import si

KV_SHARE = 0.5  # of the memory that is free once the weights are loaded


def build_torch_engine(options: EngineOptions, announce: Callable[[str], None]) -> EngineCore:
    folder = resolve(options.model)
    startup = Startup()
    decoder = load_decoder(folder, options, announce, startup)
    core = engine_around(
        decoder, options, announce, name=options.model, eos_ids=eos_ids_of(folder, decoder.spec.eos_ids),
        timer=choose_timer(options, decoder, announce), startup=startup,
        read_tokens=lambda: load_tokenizer(folder).tokens,
    )  # fmt: skip
    announce(startup.line())
    return core


def load_decoder(
    folder: Path, options: EngineOptions, announce: Callable[[str], None], startup: Startup | None = None
) -> Decoder:
    """The checkpoint as the kernels of the chosen device want it."""
    startup = startup or Startup()
    device = _choose_device(options, announce)
    dtype = _choose_dtype(options, read_config(folder), announce)
    if device.type == "cpu":
        threads = options.threads or usable_cores()
        torch.set_num_threads(threads)
        announce(f"threads {threads}: " + ("as asked" if options.threads else "every core this process may use"))
        if not keep_freed_memory():
            announce("warning: malloc cannot be told to keep freed memory here, so steps will be slower")
    if device.type == "cpu" and native.available():
        native.set_num_threads(threads)
    with startup.part("load"):
        return load_for_serving(
            folder, dtype, device, options.weight_format, announce, max_context=options.max_context,
            weight_cache=options.weight_cache,
        )  # fmt: skip


def engine_around(
    decoder: Decoder,
    options: EngineOptions,
    announce: Callable[[str], None],
    *,
    name: str,
    eos_ids: tuple[int, ...],
    timer: StepTimer | None = None,
    startup: Startup | None = None,
    read_tokens: Callable[[], TokenBytes] | None = None,
) -> EngineCore:
    """An engine around a decoder that is already there; without `read_tokens` it cannot constrain its output."""
    startup = startup or Startup()
    device = decoder.embed.weight.device
    dtype = decoder.compute_dtype
    resolved = resolve_memory(options, decoder, device, announce)
    assert resolved.num_blocks and resolved.max_context and resolved.max_step_tokens
    kv_dtype = kv_dtype_of(resolved, decoder)
    announce(
        f"kv_dtype {str(kv_dtype).removeprefix('torch.')}: " + ("as asked" if options.kv_dtype else "the activations'")
    )
    scheduler = make_scheduler(resolved, timer)
    executor: HostExecutor | DeviceExecutor
    if device.type == "cpu":
        cache = KVCache(decoder.spec, resolved.num_blocks, resolved.block_tokens, kv_dtype, device)
        sampler = Sampler(resolved.max_num_seqs, decoder.spec.vocab_size)
        step, why = make_step(
            decoder,
            cache,
            sampler,
            max_tokens=resolved.max_step_tokens,
            max_seqs=resolved.max_num_seqs,
            max_context=resolved.max_context,
        )
        announce(why)
        if step.recorded is not None:
            torch.set_num_threads(
                1
            )  # it has nothing left to do, and its threads must not spin on the cores of the pool
        executor = HostExecutor(step, cache, sampler)
        pace: Pace = InTurn(executor)
    else:
        executor = device_executor(
            decoder,
            num_blocks=resolved.num_blocks,
            block_tokens=resolved.block_tokens,
            max_seqs=resolved.max_num_seqs,
            max_tokens=resolved.max_step_tokens,
            max_context=resolved.max_context,
            announce=announce,
            startup=startup,
            tune_s=resolved.tune_s,
        )
        pace = OneAhead(executor, scheduler.advance)
    cache = executor.cache
    layout = f"{resolved.block_tokens} tokens, {cache.block_bytes} bytes"
    facts = ModelFacts(
        name=name,
        vocab_size=decoder.spec.vocab_size,
        max_context=resolved.max_context,
        eos_ids=eos_ids,
        root_of=lambda salt: root_key(model=name, layout=layout, dtype=f"{dtype}, KV {kv_dtype}", tenant=salt),
        whole_runs=lift_runs(decoder, cache) if device.type == "cpu" else (),
    )
    return EngineCore(
        facts, scheduler, executor, pace=pace, startup=startup, joules=joule_counter(device),
        follower=timer if isinstance(timer, FollowingTimer) else None,
        grammars=None if read_tokens is None else Grammars(read_tokens, decoder.spec.vocab_size, eos_ids),
    )  # fmt: skip


def resolve_memory(
    options: EngineOptions, decoder: Decoder, device: torch.device, announce: Callable[[str], None]
) -> EngineOptions:
    """Options with nothing left open about memory and step size."""
    spec, size = decoder.spec, options.block_tokens
    per_block = block_bytes(spec, size, kv_dtype_of(options, decoder), device)
    if options.num_blocks is not None:
        num_blocks, why = options.num_blocks, "as asked"
    elif options.kv_bytes is not None:
        num_blocks, why = options.kv_bytes // per_block, f"{si(options.kv_bytes, 'B')} as asked"
    else:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
        share = math.floor(KV_SHARE * free) // per_block
        useful = options.max_num_seqs * -(-(options.max_context or spec.max_context) // size)
        num_blocks = min(share, useful)
        why = (
            f"all that {options.max_num_seqs} sequences of full length can use" if useful <= share
            else f"{KV_SHARE:.0%} of the {si(free, 'B')} that are free"
        )  # fmt: skip
    if num_blocks < 1:
        raise ConfigError(
            f"the KV memory holds no block: one of {size} tokens takes {si(per_block, 'B')}", hint="raise kv_bytes"
        )
    announce(f"num_blocks {num_blocks} ({si(num_blocks * per_block, 'B')}, {num_blocks * size} tokens): {why}")
    max_context = options.max_context or spec.max_context
    if options.max_context is None and num_blocks * size + 1 < max_context:
        max_context = num_blocks * size + 1
        announce(f"max_context {max_context}: what the KV memory holds, below the model's {spec.max_context}")
    elif options.max_context is None:
        announce(f"max_context {max_context}: the model's")
    max_step_tokens, mixed_prompt_tokens = options.max_step_tokens, options.mixed_prompt_tokens
    if max_step_tokens is None:
        max_step_tokens = usual_step_tokens(device.type, options.max_num_seqs)
        announce(f"max_step_tokens {max_step_tokens}: usual for {device.type}")
        runs = lift_runs(decoder, KVCache(spec, 1, size, kv_dtype_of(options, decoder), device))
        if mixed_prompt_tokens is None and (mixed := usual_mixed_tokens(decoder, runs)) is not None:
            mixed_prompt_tokens, why = mixed
            announce(f"mixed_prompt_tokens {mixed_prompt_tokens}: {why}")
    return replace(
        options, num_blocks=num_blocks, kv_bytes=None, max_context=max_context, max_step_tokens=max_step_tokens,
        mixed_prompt_tokens=mixed_prompt_tokens,
    )  # fmt: skip


def _choose_device(options: EngineOptions, announce: Callable[[str], None]) -> torch.device:
    if options.device is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
        announce(f"device {name}: " + ("a GPU is here" if name == "cuda" else "no GPU is here"))
        return torch.device(name)
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ConfigError(f"device {options.device!r} is not known; allowed: cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {options.device!r} is not supported; allowed: cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {options.device!r} was asked for, but torch sees no GPU")
    return device


def _choose_dtype(options: EngineOptions, config: dict, announce: Callable[[str], None]) -> torch.dtype:
    name, why = dtype_name(options, config)
    if options.dtype is None:
        announce(f"dtype {name}: {why}")
    return getattr(torch, name)


def eos_ids_of(folder: Path, from_config: tuple[int, ...]) -> tuple[int, ...]:
    """Ids that end a text: the config's and, since chat models add theirs there, generation_config.json's."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return from_config
    try:
        value = json.loads(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    extra = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) for token in extra):
        raise CheckpointError(f"{path}: eos_token_id is {value!r}; allowed: an id or a list of ids")
    return tuple(dict.fromkeys((*from_config, *extra)))
