"""The server process through its life: loading, keys, a full queue, slow clients, draining, a killed engine, two signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from serving import ROOT, ServerProcess, echo_server

SLOW = {"step_s": 0.02}
KEYS = ["sk-0123456789abcdef", "sk-fedcba9876543210"]


class Stream:
    """A streaming completion read in a thread: `begun` is set by its first event, `lines` is all of it at the end."""

    def __init__(self, url: str, **body: object) -> None:
        self.begun = threading.Event()
        self.lines: list[str] = []
        self.status = 0
        self._body = {"prompt": "on and on", "max_tokens": 100, "stream": True, **body}
        self._url = url
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=self._body, timeout=60) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    if line:
                        self.lines.append(line)
                    self.begun.set()
        except httpx.HTTPError as error:
            self.lines.append(f"cut: {type(error).__name__}")
        self.begun.set()

    def end(self) -> list[str]:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.lines


def begin(server: ServerProcess, **body: object) -> Stream:
    stream = Stream(server.url, **body)
    assert stream.begun.wait(30)
    return stream


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW) as server:
        stream = begin(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("^draining")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        lines = stream.end()
        assert lines[-1] == "data: [DONE]" and json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert not _is_alive(server.engine_pid)


def test_a_second_signal_stops_now(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW) as server:
        stream = begin(server, max_tokens=2000)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("^draining")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        assert stream.end()[-1] != "data: [DONE]"
        assert not _is_alive(server.engine_pid)


def test_a_drain_has_a_limit(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW, server={"drain_s": 0.2}) as server:
        stream = begin(server, max_tokens=2000)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        last = stream.end()[-1]
        assert "engine_unavailable" in last, last  # the stream says that it was cut


def test_a_killed_engine_fails_its_requests_and_health(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW) as server:
        stream = begin(server, max_tokens=2000)
        os.kill(server.engine_pid, signal.SIGKILL)
        assert "engine_unavailable" in stream.end()[-1]
        server.wait_for("event=engine_ended")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        assert server.metrics()["ridgepoint:engine_up"] == 0
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_the_engine_does_not_outlive_a_killed_server(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW) as server:
        begin(server, max_tokens=2000)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert _ends(server.engine_pid)


def test_a_full_queue_answers_429(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, echo=SLOW, engine={"max_num_seqs": 2, "max_waiting": 2}) as server:
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        streams = [begin(server, max_tokens=60) for _ in range(2)]
        queued = [Stream(server.url, max_tokens=2) for _ in range(2)]
        server.wait_for_metric("ridgepoint:num_requests_in_flight", 4)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0).completions.create(
                model="echo", prompt="a"
            )
        for stream in streams + queued:
            assert stream.end()[-1] == "data: [DONE]"


def test_keys_and_their_caches(tiny_folder: Path) -> None:
    with echo_server(tiny_folder, server={"api_keys": KEYS}) as server:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()

        def cached(key: str) -> int:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key)
            usage = client.completions.create(model="echo", prompt=list(range(3, 103)), max_tokens=1).usage
            assert usage is not None and usage.prompt_tokens_details is not None
            return usage.prompt_tokens_details.cached_tokens or 0

        assert [cached(KEYS[0]), cached(KEYS[0]), cached(KEYS[1]), cached(KEYS[1])] == [0, 96, 0, 96]
        assert not any(key in line for key in KEYS for line in server.lines)


def _raw(url: str, *parts: bytes) -> bytes:
    """Send bytes and read until the server hangs up."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_slow_and_broken_clients_are_hung_up_on(tiny_folder: Path) -> None:
    limits = {"head_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 1}
    with echo_server(tiny_folder, limits=limits) as server:
        assert _raw(server.url).startswith(b"HTTP/1.1 408")  # says nothing
        assert _raw(server.url, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n").startswith(b"HTTP/1.1 408")
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        )
        answer = _raw(server.url, head + b'{"prompt"')
        assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer
        answer = _raw(server.url, b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400") and b'{"error"' in answer
        answer = _raw(server.url, b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000)
        assert answer.startswith(b"HTTP/1.1 400")
        assert _raw(server.url, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")  # then idle


def test_cors_is_off_unless_asked_for(tiny_folder: Path, echo: ServerProcess) -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{echo.url}/v1/completions", headers=ask).headers
    with echo_server(tiny_folder, server={"cors_origins": ["https://app.example"], "api_keys": KEYS}) as server:
        allowed = httpx.options(f"{server.url}/v1/completions", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        denied = httpx.get(f"{server.url}/v1/models", headers={"origin": "https://app.example"})
        assert denied.status_code == 401 and "access-control-allow-origin" in denied.headers
        other = httpx.options(f"{server.url}/v1/completions", headers=ask | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_port_in_use_is_one_line(tiny_folder: Path, echo: ServerProcess) -> None:
    port = urlsplit(echo.url).port
    code = (
        "from ridgepoint.server.config import ServerConfig; from ridgepoint.server.run import bind;"
        f"bind(ServerConfig(model_name='m', port={port}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr.splitlines()[-1]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _ends(pid: int) -> bool:
    """Wait for a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select

    with os.fdopen(descriptor):
        return bool(select.select([descriptor], [], [], 30)[0])
