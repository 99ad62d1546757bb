"""The engine process from outside: it serves, cancels, drains, and nobody waits for the dead."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ridgepoint.engine.client import EngineClient
from ridgepoint.engine.options import EchoOptions, EngineOptions
from ridgepoint.engine.protocol import Output, StepReport, Submit
from ridgepoint.errors import EngineError, RequestError
from ridgepoint.sched.params import SamplingParams

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def child_finds_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SRC))


def options(step_s: float = 0.0, **overrides: Any) -> EngineOptions:
    echo = EchoOptions(vocab_size=100, max_context=4096, eos_id=0, step_s=step_s)
    return EngineOptions(model="echo", echo=echo, **({"max_num_seqs": 8, "max_waiting": 8} | overrides))


def submit(request_id: str, prompt: list[int], max_tokens: int, **params: Any) -> Submit:
    return Submit(request_id=request_id, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens, **params))


def within(coroutine: Coroutine[Any, Any, None], timeout_s: float = 30.0) -> None:
    """Run a scenario; a hang is a failure, not a wait."""
    asyncio.run(asyncio.wait_for(coroutine, timeout_s))


async def collect(stream: Any) -> list[Output]:
    return [output async for output in stream]


def test_it_generates_for_many_and_leaves_no_block_behind() -> None:
    reports: list[StepReport] = []

    async def scenario() -> None:
        idle = asyncio.Event()

        def on_step(report: StepReport) -> None:
            reports.append(report)
            if report.running == report.waiting == 0:
                idle.set()

        client = EngineClient(options(), on_step=on_step)
        ready = await client.start()
        assert (ready.vocab_size, ready.max_context, ready.block_tokens) == (100, 4096, 16)
        streams = [client.submit(submit(f"r{i}", [1 + i, 50, 60], 5 + i)) for i in range(12)]
        for i, outputs in enumerate(await asyncio.gather(*map(collect, streams))):
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == [[1 + i, 50, 60][j % 3] for j in range(5 + i)]
            assert [output.finish_reason for output in outputs] == [None] * (len(outputs) - 1) + ["length"]
            assert outputs[0].queue_s is not None and outputs[0].seed is not None
        await idle.wait()
        assert client.in_flight == 0 and client.stats is not None
        assert client.stats.used_blocks == 0
        await client.drain()
        assert not client.alive
        with pytest.raises(EngineError):
            client.submit(submit("late", [1], 1))

    within(scenario())


def test_a_process_that_loads_is_ended_at_once_and_hears_no_ctrl_c() -> None:
    async def scenario() -> None:
        client = EngineClient(options())
        starting = asyncio.create_task(client.start())
        while client.pid is None:
            await asyncio.sleep(0)
        os.kill(client.pid, signal.SIGSTOP)  # it answers nobody, as while it packs
        assert os.getpgid(client.pid) == client.pid  # so a terminal interrupts the parent alone
        await client.close(grace_s=1e6)
        with pytest.raises(EngineError):
            await starting

    within(scenario())


def test_cancel_and_closing_a_stream_free_the_sequence() -> None:
    """With room for one sequence, each runs only once the one before is gone; left alone, one lasts longer than we wait."""

    async def scenario() -> None:
        client = EngineClient(options(step_s=0.01, max_num_seqs=1))
        await client.start()
        cancelled = client.submit(submit("a", [1, 2], 4000))
        first = await anext(cancelled)
        assert first.token_ids == [1]
        client.cancel("a")
        assert (await collect(cancelled))[-1].finish_reason == "cancelled"
        async with client.submit(submit("b", [3], 4000)) as left:
            await anext(left)
        assert client.in_flight == 1  # "b" counts until the engine says it is gone
        assert (await collect(client.submit(submit("c", [4], 2))))[-1].finish_reason == "length"
        assert client.in_flight == 0
        client.cancel("never seen")
        await client.close()

    within(scenario())


def test_refusals_name_their_reason() -> None:
    async def scenario() -> None:
        client = EngineClient(options(step_s=0.002, max_num_seqs=1, max_waiting=1))
        await client.start()
        with pytest.raises(RequestError, match="no tokens") as empty:
            client.submit(submit("a", [], 1))
        assert (empty.value.status, empty.value.param) == (400, "prompt")
        with pytest.raises(RequestError, match="max_tokens"):
            client.submit(submit("a", [1], 4096))
        with pytest.raises(RequestError, match="token id 100") as unknown:
            await collect(client.submit(submit("a", [100], 1)))
        assert unknown.value.code == "invalid_token_id"
        held = [client.submit(submit(f"r{i}", [1], 4000)) for i in range(2)]
        assert client.room == 0
        with pytest.raises(RequestError) as full:
            client.submit(submit("r2", [1], 1))
        assert full.value.status == 429
        for stream in held:
            await stream.aclose()
        await client.close()

    within(scenario())


def test_killing_the_engine_is_an_error_for_everyone_waiting() -> None:
    async def scenario() -> None:
        client = EngineClient(options(step_s=0.001, max_num_seqs=2))
        await client.start()
        streams = [client.submit(submit(f"r{i}", [1], 4000)) for i in range(4)]  # two run, two wait
        await anext(streams[0])
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineError, match="SIGKILL"):
                await collect(stream)
        assert "SIGKILL" in str(await client.wait_ended())
        assert client.in_flight == 0 and not client.alive
        with pytest.raises(EngineError, match="SIGKILL"):
            client.submit(submit("late", [1], 1))
        await client.close()

    within(scenario())


@pytest.mark.parametrize("by_signal", [False, True])
def test_drain_finishes_what_runs(by_signal: bool) -> None:
    async def scenario() -> None:
        client = EngineClient(options(step_s=0.001))
        await client.start()
        stream = client.submit(submit("a", [7, 8], 50))
        await anext(stream)
        rest = asyncio.create_task(collect(stream))
        if by_signal:
            assert client.pid is not None
            os.kill(client.pid, signal.SIGTERM)
            assert await client.wait_ended() is None
        else:
            draining = asyncio.create_task(client.drain())
            await asyncio.sleep(0)
            with pytest.raises(RequestError) as refused:
                client.submit(submit("b", [1], 1))
            assert refused.value.status == 503
            await draining
        outputs = await rest
        assert sum(len(output.token_ids) for output in outputs) == 49 and outputs[-1].finish_reason == "length"
        await client.close()

    within(scenario())


def test_drain_with_a_deadline_ends_what_is_too_slow() -> None:
    async def scenario() -> None:
        client = EngineClient(options(step_s=0.05))
        await client.start()
        stream = client.submit(submit("a", [7], 4000))
        await anext(stream)
        await client.drain(timeout_s=0.2)
        with pytest.raises(EngineError):
            await collect(stream)

    within(scenario())


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    async def scenario() -> None:
        client = EngineClient(EngineOptions(model="/nonexistent/model"))
        with pytest.raises(EngineError, match="/nonexistent/model"):
            await client.start()

    within(scenario(), 60)


def test_the_engine_dies_with_its_parent() -> None:
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            textwrap.dedent("""
                import asyncio
                from ridgepoint.engine.client import EngineClient
                from ridgepoint.engine.options import EchoOptions, EngineOptions
                from ridgepoint.engine.protocol import Submit
                from ridgepoint.sched.params import SamplingParams

                async def main():
                    echo = EchoOptions(vocab_size=9, max_context=100000, eos_id=0, step_s=0.001)
                    client = EngineClient(EngineOptions(model="echo", echo=echo))
                    await client.start()
                    stream = client.submit(Submit(request_id="a", prompt_ids=[1], params=SamplingParams(max_tokens=90000)))
                    await anext(stream)
                    print(client.pid, flush=True)
                    await asyncio.Event().wait()

                asyncio.run(main())
            """),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    engine_pid = int(parent.stdout.readline())
    engine = os.pidfd_open(engine_pid)
    parent.kill()
    parent.wait()
    try:
        assert select.select([engine], [], [], 20)[0], "the engine outlived its parent"
    finally:
        os.close(engine)
