"""The front end's side of the engine process: start it, submit to it, and never wait for the dead.

    client = EngineClient(EngineOptions(model="..."))
    await client.start()
    stream = client.submit(Submit(request_id="r1", prompt_ids=[1, 2, 3], params=SamplingParams(max_tokens=16)))
    async for output in stream:      # the last one has a finish_reason
        ...
    await client.drain()

Speaks `engine.protocol` over one zmq pair socket in a private folder. Invariant: every stream ends, with an output that
has a `finish_reason`, a `RequestError` or an `EngineError`, whatever happens to the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import (
    Cancel,
    Drain,
    Fatal,
    FromEngine,
    Output,
    Ready,
    Refused,
    Shutdown,
    StepReport,
    Stopped,
    Submit,
    ToEngine,
)
from ridgepoint.errors import EngineError, MissingExtraError, RequestError, StartError
from ridgepoint.sched.limits import check_fits

EXIT_GRACE_S = 5.0  # between asking the process to exit and killing it


class OutputStream:
    """The outputs of one submission, in order. Iterate it once; leaving it early (`aclose`, `async with`) cancels."""

    def __init__(self, client: EngineClient, request_id: str) -> None:
        self.request_id = request_id
        self._client = client
        self._outputs: deque[Output] = deque()
        self._error: Exception | None = None
        self._finished = False  # nothing more will arrive
        self._wake = asyncio.Event()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        """The next output. Raises `RequestError` when the engine refused it, `EngineError` when the process died."""
        while not self._outputs:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._finished:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._outputs.popleft()

    async def __aenter__(self) -> OutputStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening; a sequence that still runs is cancelled and its blocks are free before the next step."""
        if not self._finished:
            self._client.cancel(self.request_id)
        self._end(None)
        self._outputs.clear()

    def _put(self, output: Output) -> None:
        if not self._finished:
            self._outputs.append(output)
            self._finished = output.finish_reason is not None
            self._wake.set()

    def _end(self, error: Exception | None) -> None:
        if not self._finished:
            self._finished, self._error = True, error
            self._wake.set()


class EngineClient:
    """One engine process. Use from one event loop. `quiet` keeps what it chose, and why, to itself; warnings are told.

    `stats` is the latest `StepReport` (None before the first); `on_step` is called with each one as it arrives.
    """

    def __init__(
        self, options: EngineOptions, *, on_step: Callable[[StepReport], None] | None = None, quiet: bool = False
    ) -> None:
        self.options, self._quiet = options, quiet
        self.stats: StepReport | None = None
        self._on_step = on_step
        self._ready: Ready | None = None
        self._streams: dict[str, OutputStream] = {}  # until the engine's last word on each, even if nobody listens
        self._failure: str | None = None
        self._mendable = False
        self._draining = False
        self._stopped = False
        self._started: asyncio.Event = asyncio.Event()
        self._ended: asyncio.Event = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None

    # ------------------------------------------------------------ state

    @property
    def ready(self) -> Ready:
        """What the engine said when the model was loaded: vocabulary, context and block counts."""
        if self._ready is None:
            raise EngineError("the engine has not started", hint="await client.start() first")
        return self._ready

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None before `start`."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Loaded and able to take work."""
        return self._ready is not None and not self._ended.is_set() and not self._draining

    @property
    def in_flight(self) -> int:
        """Submissions that have not had their last output, queued ones included."""
        return len(self._streams)

    @property
    def room(self) -> int:
        """How many more submissions are taken before one is refused with status 429."""
        return max(0, self.options.max_num_seqs + self.options.max_waiting - len(self._streams))

    # ------------------------------------------------------------ life

    async def start(self) -> Ready:
        """Spawn the process and wait until the model is loaded. Raises `EngineError` with the reason if it cannot."""
        try:
            import zmq
            import zmq.asyncio
        except ImportError as error:
            raise MissingExtraError("pyzmq", "serve", "the engine process") from error
        if self._process is not None:
            raise EngineError("the engine was already started")
        self._folder = Path(tempfile.mkdtemp(prefix="ridgepoint-"))  # mode 0700: nobody else connects
        address = f"ipc://{self._folder}/engine"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)  # bounded by `room`, not by zmq: a send never blocks the event loop
        self._socket.linger = 0
        self._socket.bind(address)
        # The child reads its options from stdin and exits when stdin closes, so it cannot outlive this process. A terminal's
        # Ctrl-C is not for it, not even before it can say so: hence a process group of its own.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ridgepoint.engine.worker", address, *(["--quiet"] if self._quiet else []),
            stdin=asyncio.subprocess.PIPE, stdout=2, process_group=0,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self.options) + b"\n")
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]
        try:
            await self._started.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._ready is None:
            failure = self._failure or "the engine process ended before it was ready"
            await self.close()
            raise StartError(failure) if self._mendable else EngineError(failure)
        return self._ready

    async def drain(self, timeout_s: float | None = None) -> None:
        """Refuse new work, let what runs finish, then end the process. What still runs after `timeout_s` ends with
        an `EngineError`."""
        if not self._ended.is_set() and self._ready is not None:
            self._draining = True
            self._post(Drain())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout_s)
        await self.close()

    async def close(self, grace_s: float = EXIT_GRACE_S) -> None:
        """End the process now, or when it has written what it keeps, but within `grace_s`. Streams that are still open end
        with an `EngineError`. Safe to call twice."""
        self._draining = True
        process = self._process
        if process is not None and process.returncode is None:
            if self._ready is not None:  # one that still loads hears nothing and has nothing to keep
                self._post(Shutdown())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), grace_s)
            if process.returncode is None:
                process.kill()
                await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._ended.set()
        self._started.set()  # whoever waits for the start waits no longer
        self._fail_streams("the engine was shut down")
        if self._folder is not None:
            self._socket.close()
            self._context.term()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def failure(self) -> str | None:
        """What the engine died of; None while it lives, and after a drain or close."""
        return self._failure

    async def wait_ended(self) -> EngineError | None:
        """Wait until the process ends: None after a drain or close, else the error it died of."""
        await self._ended.wait()
        return EngineError(self._failure) if self._failure else None

    # ------------------------------------------------------------ work

    def submit(self, submit: Submit) -> OutputStream:
        """Start one sequence; it is sent before this returns. `request_id` must not be in flight.

        Raises `RequestError` with status 429 when the queue is full, 503 while draining, 400 when the prompt is empty
        or the sequence cannot fit; `EngineError` when the process is gone. `params` must be valid already; what only
        the engine can know (a token id past the vocabulary) is raised by the stream.
        """
        if self._ended.is_set():
            raise EngineError(self._failure or "the engine has ended")
        if self._draining:
            raise RequestError("the server is shutting down", status=503, code="shutting_down")
        ready = self.ready
        if submit.request_id in self._streams:
            raise EngineError(f"request id {submit.request_id!r} is already in flight")
        if self.room == 0:
            raise RequestError(
                f"the queue is full: {len(self._streams)} requests are running or waiting",
                status=429, code="queue_full", hint="try again later",
            )  # fmt: skip
        kv_tokens = ready.num_blocks * ready.block_tokens
        check_fits(len(submit.prompt_ids), submit.params.max_tokens, max_context=ready.max_context, kv_tokens=kv_tokens)
        stream = self._streams[submit.request_id] = OutputStream(self, submit.request_id)
        self._post(submit)
        return stream

    def cancel(self, request_id: str) -> None:
        """Stop a sequence: its stream ends with `finish_reason="cancelled"`. Ids that are not in flight are ignored."""
        if request_id in self._streams and not self._ended.is_set():
            self._post(Cancel(request_id=request_id))

    # ------------------------------------------------------------ messages

    def _post(self, message: ToEngine) -> None:
        if self._folder is not None:
            self._socket.send(msgspec.msgpack.encode(message))  # no high-water mark: done when this returns

    async def _receive(self) -> None:
        decoder = msgspec.msgpack.Decoder(list[FromEngine])
        try:
            while True:
                for message in decoder.decode(await self._socket.recv()):
                    self._handle(message)
        except Exception as error:  # without its reader the process is as good as dead, so end it and say so
            self._failure = f"the engine's messages cannot be handled: {error!r}"
            assert self._process is not None
            if self._process.returncode is None:
                self._process.kill()
            raise

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Output(request_id=request_id, finish_reason=reason):
                stream = self._streams.get(request_id)
                if stream is not None:
                    stream._put(message)
                    if reason is not None:
                        del self._streams[request_id]
            case StepReport():
                self.stats = message
                if self._on_step is not None:
                    self._on_step(message)
            case Refused(request_id=request_id):
                stream = self._streams.pop(request_id, None)
                if stream is not None:
                    stream._end(
                        RequestError(
                            message.message,
                            status=message.status, param=message.param, code=message.code, hint=message.hint,
                        )
                    )  # fmt: skip
            case Ready():
                self._ready = message
                self._started.set()
            case Fatal():
                self._failure, self._mendable = message.message, message.mendable
            case Stopped():
                self._stopped = True

    async def _watch(self) -> None:
        """Turn the end of the process into the end of every stream."""
        assert self._process is not None
        code = await self._process.wait()
        while await self._socket.poll(50):  # what it said before it died
            await asyncio.sleep(0.001)
        if self._failure is None and not self._stopped and not self._draining:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
            self._failure = f"the engine process {how}"
        self._ended.set()
        self._started.set()
        self._fail_streams(self._failure or "the engine was shut down")

    def _fail_streams(self, message: str) -> None:
        for stream in self._streams.values():
            stream._end(EngineError(message))
        self._streams.clear()
