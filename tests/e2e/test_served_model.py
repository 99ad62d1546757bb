"""`ridgepoint serve` on a real checkpoint: the same text as transformers, the same bytes for the same seed, nothing leaked."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serving import ROOT, ServerProcess, checkpoint_server
from tiny_moe import write_tiny_moe

PROMPT = "def read_json(path):"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return write_tiny_moe(tmp_path_factory.mktemp("tiny-moe") / "tiny-moe")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[ServerProcess]:
    with checkpoint_server(folder) as server:
        yield server


def test_greedy_text_and_logprobs_are_those_of_transformers(folder: Path, served: ServerProcess) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    with torch.no_grad():
        whole = torch.cat([ids[0], output])
        logprobs = model(whole[None]).logits[0].log_softmax(-1)[ids.shape[1] - 1 : -1]
    body = {"prompt": PROMPT, "max_tokens": 48, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    choice = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    assert choice["text"] == tokenizer.decode(output, skip_special_tokens=True)
    expected = logprobs.gather(-1, output[:, None])[:, 0].tolist()
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)


def test_echoed_logprobs_are_those_of_transformers(folder: Path, served: ServerProcess) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logprobs = model(ids).logits[0].log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1}
    found = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)


def test_sixty_four_streams_with_equal_seeds_agree_to_the_byte(served: ServerProcess) -> None:
    """Eight prompts with a seed each, eight times over, a third cut short: alone or in company, the same text."""

    async def stream(client: openai.AsyncOpenAI, index: int, cut: int | None) -> str:
        events = await client.completions.create(
            model="tiny-moe",
            prompt=f"{PROMPT} {index % 8}",
            max_tokens=40,
            seed=index % 8,
            temperature=1.0,
            stream=True,
        )
        text, num_pieces = "", 0
        async for event in events:
            text += event.choices[0].text
            num_pieces += 1
            if num_pieces == cut:
                await events.close()
                break
        return text

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            alone = [await stream(client, index, None) for index in range(8)]
            cuts = [3 + index % 5 if index % 3 == 0 else None for index in range(64)]
            texts = await asyncio.gather(*(stream(client, index, cuts[index]) for index in range(64)))
        assert len(set(alone)) == 8
        for index, (text, cut) in enumerate(zip(texts, cuts, strict=True)):
            assert alone[index % 8].startswith(text) if cut else text == alone[index % 8]

    asyncio.run(asyncio.wait_for(run(), 120))
    served.wait_for_metric("ridgepoint:num_requests_in_flight", 0)
    served.wait_for_metric("ridgepoint:kv_blocks_used", 0)


def test_a_chat_and_its_bench(served: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        answers = {
            client.chat.completions.create(
                model="tiny-moe", messages=[{"role": "user", "content": "hi"}], max_tokens=12, seed=5
            ).choices[0].message.content
            for _ in range(2)
        }  # fmt: skip
        assert len(answers) == 1
    done = command("bench", "serve", "--url", served.url, "--num-requests", "4", "--vocab-size", "400", "--json",
                   "--input-tokens", "20", "--output-tokens", "6")  # fmt: skip
    assert json.loads(done.stdout)["output_tokens"] == 24


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ridgepoint.cli.main", *arguments], input=stdin, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def test_complete_with_an_engine_of_its_own(folder: Path) -> None:
    found = json.loads(command("complete", PROMPT, "--model", str(folder), "--max-tokens", "10", "--json").stdout)
    assert found["text"] and found["model"] == "tiny-moe" and found["completion_tokens"] == 10


def test_chat_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(slow_echo: ServerProcess) -> None:
    """A pseudo-terminal, as a person has it: an answer is cut by Ctrl-C, the next one comes, Ctrl-D ends it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ridgepoint.cli.main", "chat", "--url", slow_echo.url, "--max-tokens", "1900"],
        stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    os.close(slave)
    assert process.stdout is not None and process.stderr is not None
    os.write(master, b"first\n")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    said = b""
    while b"(stopped)" not in said:
        part = os.read(process.stderr.fileno(), 4096)
        assert part, said
        said += part
    os.write(master, b"\x04")
    deadline_s = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline_s:
        process.stdout.read1(4096)  # type: ignore[attr-defined]
    os.close(master)
    assert process.wait(30) == 0
    assert b"Traceback" not in process.stderr.read()
    slow_echo.wait_for_metric("ridgepoint:num_requests_in_flight", 0)


def test_chat_with_a_model_that_cannot(tmp_path: Path, folder: Path) -> None:
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    done = command("chat", str(plain), "--max-tokens", "5", stdin="class Stack:\n")
    assert done.stdout.strip() and "no chat template" in done.stderr


def test_a_damaged_checkpoint_ends_serve_with_one_reason(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    assert "unheard_of" in _refused_start(broken)
    (broken / "config.json").write_text(json.dumps(config))
    os.truncate(broken / "model.safetensors", 1000)  # which the engine's process finds out
    assert "truncated" in _refused_start(broken)


def _refused_start(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ridgepoint.cli.main", "serve", str(folder), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]
