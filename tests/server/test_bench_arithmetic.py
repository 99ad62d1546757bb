"""Arrivals and reports of the load generator, on data whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgepoint.errors import ConfigError
from ridgepoint.server.bench.arrivals import poisson, read_trace
from ridgepoint.server.bench.drive import Outcome, Prompts
from ridgepoint.server.bench.report import Goals, distribution, summarise


def test_poisson_arrivals_repeat_and_keep_their_rate() -> None:
    first, second = (poisson(2000, 4.0, 10, 5, seed=3) for _ in range(2))
    assert first == second != poisson(2000, 4.0, 10, 5, seed=4)
    times = [one.at_s for one in first]
    assert times[0] == 0 and times == sorted(times)
    assert times[-1] == pytest.approx(2000 / 4.0, rel=0.1)
    for rate in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="rate"):
            poisson(1, rate, 1, 1, seed=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "timestamp,input_len,output_len,extra\n12.5,30,4,x\n10,20,3,y\n"),
        (
            "t.jsonl",
            '{"timestamp": 12.5, "input_len": 30, "output_len": 4}\n\n{"timestamp": 10, "input_len": 20, "output_len": 3}\n',
        ),
    ],
)
def test_traces(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = [(one.at_s, one.input_tokens, one.output_tokens) for one in read_trace(tmp_path / name, speed=2)]
    assert found == [(0.0, 20, 3), (1.25, 30, 4)]
    assert len(read_trace(tmp_path / name, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "", "no rows"),
        ("t.csv", "timestamp,input_len\n1,2\n", "output_len"),
        ("t.csv", "timestamp,input_len,output_len\n1,0,2\n", "line 2"),
        ("t.csv", "timestamp,input_len,output_len\n1,x,2\n", "line 2"),
        ("t.csv", "timestamp,input_len,output_len\nnan,1,2\n", "line 2"),
        ("t.jsonl", "{", "line 1: not JSON"),
        ("t.jsonl", "[1]", "an object"),
    ],
)
def test_bad_traces_name_the_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_trace(tmp_path / name)


def test_prompts_repeat_share_and_have_the_length_asked_for() -> None:
    prompts = Prompts(seed=1, vocab_size=50, shared_tokens=6)
    first, second = prompts.prompt(0, 10), prompts.prompt(1, 10)
    assert first == Prompts(seed=1, vocab_size=50, shared_tokens=6).prompt(0, 10)
    assert len(first) == len(second) == 10 and first[:6] == second[:6] and first[6:] != second[6:]
    assert len(prompts.prompt(2, 3)) == 3 and max(first) < 50
    assert len(Prompts(seed=1, vocab_size=50, text="abc" * 100).prompt(0, 5)) == 20


def test_percentiles_are_linear_between_ranks() -> None:
    found = distribution([3.0, 1.0, 2.0, 4.0, 5.0])
    assert found is not None
    assert (found["mean"], found["p50"], found["min"], found["max"]) == (3.0, 3.0, 1.0, 5.0)
    assert found["p90"] == pytest.approx(4.6)
    assert distribution([]) is None


def test_a_report_by_hand() -> None:
    outcomes = [
        # due at 1, sent at 2 (the server was behind): first text 3 s after it was due
        Outcome(due_s=1, sent_s=2, ended_s=7, text_times_s=[4, 5, 7], prompt_tokens=10, output_tokens=4, finish_reason="length"),
        Outcome(due_s=2, sent_s=2, ended_s=4, text_times_s=[3], prompt_tokens=10, cached_tokens=8, output_tokens=1),
        Outcome(due_s=3, sent_s=3, ended_s=3.5, error="the server answered 429: full"),
    ]  # fmt: skip
    found = summarise(outcomes, Goals(ttft_s=2.0))
    assert (found["num_completed"], found["num_errors"]) == (2, 1)
    assert found["errors"] == {"the server answered 429: full": 1}
    assert found["duration_s"] == 5 and found["output_tokens_per_s"] == 1.0 and found["requests_per_s"] == 0.4
    assert found["ttft_s"]["max"] == 3 and found["ttft_s"]["min"] == 1
    assert found["tpot_s"]["mean"] == 1.0  # (7 - 4) / 3; one token has none
    assert found["itl_s"]["mean"] == 1.5
    assert found["e2e_s"]["max"] == 6
    assert found["goodput_frac"] == pytest.approx(1 / 3) and found["cached_tokens"] == 8
    assert summarise(outcomes, Goals())["goodput_frac"] is None
