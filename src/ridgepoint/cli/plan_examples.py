"""The worked examples of `ridgepoint plan`: each is a command line and why one would ask it. A page is that command's own output.

`docs/plans/*.md` are these pages; a test regenerates them and fails when they are no longer what the command prints.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import typer

from ridgepoint.errors import RidgepointError


@dataclass(frozen=True, kw_only=True)
class Example:
    title: str
    asks: str
    command: str


EXAMPLES = {
    "minimax-m2-gb200": Example(
        title="MiniMax-M2 (230B, 10B active) for 5,000 users on GB200 NVL72",
        asks="Five thousand people hold a request at once and want 50 tokens a second and a first token within a second. How many racks, "
        "how much of a rack per instance, prompts apart or together with answers, and what does a million tokens cost?",
        command="plan minimax-m2 --hardware gb200-nvl72 --users 5000 --input-tokens 4000 --output-tokens 1000 --prefix-hit 0.5 "
        "--tpot-ms 20 --ttft-ms 1000 --explain",
    ),
    "gpt-oss-120b-h200": Example(
        title="gpt-oss-120b on one H200",
        asks="One accelerator, the released 4-bit experts, and 64 users of a reasoning model: what do they get, and what would the next "
        "dollar buy?",
        command="plan gpt-oss-120b --hardware h200:1 --users 64 --input-tokens 2000 --output-tokens 400 --thinking-tokens 800 "
        "--tpot-ms 40 --ttft-ms 2000 --explain",
    ),
    "deepseek-v3-old-prefill": Example(
        title="DeepSeek-V3: H200 decodes, eight-year-old V100 and A100 prefill",
        asks="Prefill is compute and cares little for memory bandwidth. Are the V100s of 2017 and the A100s of 2020 still worth their power "
        "as prefill chips beside H200s that decode, and for how many more years?",
        command="plan deepseek-v3 --hardware h200 --prefill-hardware v100:512 --prefill-hardware a100 --users 2000 "
        "--input-tokens 4000 --output-tokens 1000 --prefix-hit 0.5 --tpot-ms 50 --ttft-ms 6000 --rent v100=0.14 --explain",
    ),
    "qwen3-30b-a3b-cpu": Example(
        title="A 30B-A3B on two CPU cores",
        asks="Three billion active parameters in 4 bits are 1.6 GB per token: can two cores with 24 GB serve one person, and what binds?",
        command="plan qwen3-30b-a3b --hardware docs/plans/cpu-2core.toml:1 --precision int4_a8 --users 1 --input-tokens 400 --output-tokens 200 "
        "--prefix-hit 0.5 --explain",
    ),
    "olmoe-tpu-sram": Example(
        title="OLMoE (7B, 1B active) in the SRAM of TPU v5e chips",
        asks="A copilot wants more than a thousand tokens a second for each of sixteen users. Main memory is too slow for that however many "
        "chips share it; the 128 MiB of on-chip memory of 64 chips hold the whole model and its cache. What does that speed cost?",
        command="plan olmoe-1b-7b --hardware tpu-v5e:64 --precision int4 --users 16 --input-tokens 500 --output-tokens 200 --tpot-ms 1 --explain",
    ),
}  # fmt: skip

WIDTH = 150


def example_page(name: str) -> str:
    """Markdown: the question, the command and what it prints."""
    example = EXAMPLES[name]
    return (
        f"# {example.title}\n\n{example.asks}\n\n```\nridgepoint {example.command}\n```\n\nprints\n\n```text\n{_output(example.command)}```\n\n"
        "Made by `ridgepoint plan --example all --write docs/plans`.\n"
    )


def _output(command: str) -> str:
    from typer.testing import CliRunner

    from ridgepoint.cli import plan as noun

    app = typer.Typer(add_completion=False)
    app.callback()(lambda: None)
    noun.register(app)
    environment = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, shlex.split(command), env=environment)
    if isinstance(result.exception, RidgepointError):
        raise result.exception
    if result.exit_code != 0:
        raise RuntimeError(f"example {command!r} failed: {result.output}") from result.exception
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"
