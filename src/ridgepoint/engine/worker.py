"""The engine process: `python -m ridgepoint.engine.worker ADDRESS [--quiet]`, options as one line of JSON on stdin.

Talks to its parent over one zmq pair socket and lives exactly as long as it: stdin stays open while the parent lives,
and its end ends the process, whatever the parent died of. SIGINT is the parent's to handle; SIGTERM drains, because
service managers send it to the whole group.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import zmq

from ridgepoint.engine.core import run
from ridgepoint.engine.early import fetch_early
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Drain, Fatal, FromEngine, ToEngine
from ridgepoint.errors import EngineError, RidgepointError

SIGNAL_POLL_MS = 200  # an idle wait resumes after a signal, so the flag it set is looked at this often
LINGER_MS = 2000  # to hand over the last messages; the parent may be gone


class SocketLink:
    """The parent's end of the socket, as the core's loop wants it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = LINGER_MS
        self._socket.connect(address)
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()
        self._drain = False

    def request_drain(self) -> None:
        """Ask for a drain from a signal handler: the next `receive` returns it."""
        self._drain = True

    def receive(self, wait: bool) -> list[ToEngine]:
        while wait and not self._drain and not self._socket.poll(SIGNAL_POLL_MS):
            pass
        messages: list[ToEngine] = []
        with suppress(zmq.Again):
            while True:
                messages.append(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))
        if self._drain:
            self._drain = False
            messages.append(Drain())
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        if messages:
            self._socket.send(self._encoder.encode(messages))

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def exit_with_parent(stdin_fd: int) -> None:
    """End this process when the parent's end of stdin closes."""

    def watch() -> None:
        while os.read(stdin_fd, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def read_line(fd: int) -> bytes:
    """One line without reading past it: what follows belongs to `exit_with_parent`."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            raise SystemExit(0)
        line += byte
    return line


def announcer(quiet: bool) -> Callable[[str], None]:
    """Tells the person on stderr; quietly, only warnings."""

    def announce(line: str) -> None:
        if not quiet or line.startswith("warning"):
            print(line, file=sys.stderr, flush=True)

    return announce


def main(address: str, quiet: bool) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = msgspec.json.decode(read_line(0), type=EngineOptions)
    exit_with_parent(0)
    link = SocketLink(address)

    def drain(signum: int, frame: Any) -> None:
        link.request_drain()

    signal.signal(signal.SIGTERM, drain)
    try:
        started_s = time.monotonic()
        fetch_early(options)
        from ridgepoint.engine.build import build_engine  # imports torch: after the parent watch is up

        core = build_engine(options, announce=announcer(quiet))
        gc.collect()
        gc.freeze()  # what the start made stays: walking over it would stop a step for tenths of a second
        link.send([core.ready(time.monotonic() - started_s)])
        run(core, link)
        return 0
    except RidgepointError as error:
        link.send([Fatal(message=str(error), mendable=not isinstance(error, EngineError))])
        return 1
    except Exception as error:
        traceback.print_exc()
        link.send([Fatal(message=f"the engine failed: {type(error).__name__}: {error}")])
        return 1
    finally:
        link.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], quiet="--quiet" in sys.argv[2:]))
