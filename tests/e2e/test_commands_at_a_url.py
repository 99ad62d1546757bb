"""`complete`, `chat` and `bench serve` against a running server, as processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from commands import run, start
from serving import ServerProcess


def test_complete_prints_only_the_text(echo: ServerProcess) -> None:
    out, err = run("complete", "Hello 🦊 ", "--url", echo.url, "--stop", " He")
    assert (out, err) == ("Hello 🦊", "")
    out, _ = run("complete", "-", "--url", echo.url + "/v1", "--max-tokens", "7", "--echo", stdin="abc")
    assert out == "abc" + "abcabca"
    out, _ = run("complete", "abc", "--url", echo.url, "--max-tokens", "3", "--json")
    found = json.loads(out)
    assert found["text"] == "abc" and found["finish_reason"] == "length" and found["completion_tokens"] == 3
    assert found["model"] == "echo" and found["schema"] == "ridgepoint.complete/1"


def test_complete_refused_is_one_line(echo: ServerProcess) -> None:
    out, err = run("complete", "a", "--url", echo.url, "--max-tokens", "100000", code=2)
    assert out == "" and "context_length" not in err and "maximum context length is 2048" in err
    assert len(err.strip().splitlines()) == 1


def test_complete_into_a_closed_pipe(echo: ServerProcess) -> None:
    process = start("complete", "never ends", "--url", echo.url, "--max-tokens", "1500")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(5) == "never"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 0
    echo.wait_for_metric("ridgepoint:num_requests_in_flight", 0)


def test_ctrl_c_cancels_and_exits_130(slow_echo: ServerProcess) -> None:
    process = start("complete", "never ends", "--url", slow_echo.url, "--max-tokens", "1900")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(5) == "never"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    slow_echo.wait_for_metric("ridgepoint:num_requests_in_flight", 0)
    slow_echo.wait_for_metric("ridgepoint:kv_blocks_used", 0)


def test_chat_keeps_the_conversation(echo: ServerProcess) -> None:
    out, err = run("chat", "--url", echo.url, "--max-tokens", "14", "--temperature", "0", stdin="one\n\ntwo\n")
    assert len(out.splitlines()) >= 4 and out.startswith("user\none\n")
    assert "echo" in err
    # the second answer repeats the whole conversation, so it begins as the first did
    assert out.count("user\none") == 2


def bench(echo: ServerProcess, *arguments: str, code: int = 0) -> dict:
    out, _ = run("bench", "serve", "--url", echo.url, "--json", *arguments, code=code)
    return json.loads(out)


def test_bench_closed_loop(echo: ServerProcess, tmp_path: Path) -> None:
    saved, requests = tmp_path / "report.json", tmp_path / "requests.jsonl"
    found = bench(
        echo, "--num-requests", "12", "--concurrency", "4", "--input-tokens", "40", "--output-tokens", "8",
        "--shared-tokens", "32", "--vocab-size", "300", "--goal-ttft-s", "30", "--save", str(saved),
        "--save-requests", str(requests), "--api-key", "sk-secret-secret",
    )  # fmt: skip
    assert found == json.loads(saved.read_text())
    assert (found["num_completed"], found["num_errors"], found["goodput_frac"]) == (12, 0, 1.0)
    assert found["output_tokens"] == 96 and found["prompt_tokens"] == 480
    assert found["cached_tokens"] >= 32 * 8  # all but the first few find the shared prefix
    assert found["ttft_s"]["p50"] > 0 and found["tpot_s"]["p99"] > 0 and found["itl_s"]["mean"] > 0
    assert len(requests.read_text().splitlines()) == 12
    assert "sk-secret-secret" not in saved.read_text()


def test_bench_open_loop_and_trace(echo: ServerProcess, tmp_path: Path) -> None:
    found = bench(echo, "--num-requests", "6", "--rate", "200", "--output-tokens", "4", "--vocab-size", "300")
    assert found["num_completed"] == 6 and found["arrivals"] == "poisson 200/s"
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp,input_len,output_len\n0,20,3\n0.05,30,5\n")
    assert bench(echo, "--trace", str(trace), "--vocab-size", "300")["output_tokens"] == 8
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    assert bench(echo, "--num-requests", "2", "--text-file", str(text))["num_completed"] == 2


def test_bench_counts_errors(echo: ServerProcess) -> None:
    found = bench(echo, "--num-requests", "3", "--vocab-size", "100000", code=1)
    assert found["num_errors"] == 3 and found["ttft_s"] is None
    assert all("token id" in message for message in found["errors"])


def test_bench_for_people(echo: ServerProcess) -> None:
    out, _ = run("bench", "serve", "--url", echo.url, "--num-requests", "2", "--vocab-size", "300")
    assert "time to first token" in out and "tokens/s" in out
    with pytest.raises(ValueError):
        json.loads(out)
