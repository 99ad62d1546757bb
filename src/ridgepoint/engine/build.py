"""From options to an engine that can step: the one place where model, memory, scheduler and executor meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.options import EngineOptions
from ridgepoint.errors import ConfigError
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import StepTimer


def build_engine(options: EngineOptions, *, announce: Callable[[str], None]) -> EngineCore:
    """`announce` is told, line by line, what was chosen for every option left open and why."""
    if options.echo is not None:
        return _build_echo(options)
    from ridgepoint.engine.torch_engine import build_torch_engine

    return build_torch_engine(options, announce)


def make_scheduler(options: EngineOptions, timer: StepTimer | None = None) -> Scheduler:
    """A scheduler for options that leave nothing open."""
    assert options.num_blocks and options.max_step_tokens and options.max_context
    return Scheduler(
        Limits(
            num_blocks=options.num_blocks,
            block_tokens=options.block_tokens,
            max_num_seqs=options.max_num_seqs,
            max_step_tokens=options.max_step_tokens,
            max_context=options.max_context,
            max_waiting=options.max_waiting,
            mixed_prompt_tokens=options.mixed_prompt_tokens,
            step_budget_s=options.step_budget_s,
            prefix_cache=options.prefix_cache,
        ),
        timer,
    )


def _build_echo(options: EngineOptions) -> EngineCore:
    from ridgepoint.engine.echo import EchoExecutor, echo_facts

    echo = options.echo
    assert echo is not None
    if options.max_context is not None and options.max_context > echo.max_context:
        raise ConfigError(f"max_context {options.max_context} is above the model's {echo.max_context}")
    resolved = replace(
        options,
        max_step_tokens=options.max_step_tokens or max(512, options.max_num_seqs),
        max_context=options.max_context or echo.max_context,
        num_blocks=options.num_blocks or options.max_num_seqs * -(-echo.max_context // options.block_tokens),
        kv_bytes=None,
    )
    return EngineCore(echo_facts(echo, options.model), make_scheduler(resolved), EchoExecutor(echo))
