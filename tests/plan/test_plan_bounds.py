"""Whatever is asked, the planner answers or refuses by one line, and the work it does is bounded: counted in rows, not by a clock."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ridgepoint.catalog import plausible
from ridgepoint.catalog.families import spec_from_config
from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import catalog_models
from ridgepoint.catalog.spec import LayerSpec
from ridgepoint.cli.main import main
from ridgepoint.errors import CatalogError, ConfigError
from ridgepoint.plan import layouts, pair, search, sweep
from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.search import MOST_SEARCHES, Question
from ridgepoint.plan.workload import MOST, Goal, Workload

CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip
MOST_ROWS = 600_000  # priced by one search of one pool; 39,000 for the largest model of the catalogue, 527,000 here with every draft length


def answer(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@contextlib.contextmanager
def counted_rows() -> Iterator[list[int]]:
    """Rows of every table that is priced while this is open, before any is dropped."""
    found: list[int] = []
    real = sweep.flatten

    def flatten(shape: tuple[int, ...], *rest: Any, **columns: Any) -> Any:
        size = 1
        for side in shape:
            size *= side
        found.append(size)
        assert sum(found) <= MOST_ROWS
        return real(shape, *rest, **columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "flatten", flatten)
        patch.setattr(pair, "flatten", flatten)
        yield found


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_experts", 10**7, "num_experts 10,000,000 is implausible; allowed: at most 16,384"),
        ("num_hidden_layers", 10**9, "num_hidden_layers 1,000,000,000 is implausible; allowed: at most 1,000"),
        ("vocab_size", 10**12, "vocab_size 1,000,000,000,000 is implausible"),
        ("hidden_size", 10**12, "hidden_size 1,000,000,000,000 is implausible"),
        ("moe_intermediate_size", 10**8, "width 100,000,000 is implausible"),
        ("max_position_embeddings", 10**12, "max_position_embeddings 1,000,000,000,000 is implausible"),
        ("num_attention_heads", 10**6, "num_heads 1,000,000 is implausible"),
        ("head_dim", 10**400, "head_dim of 401 digits is implausible"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_config_that_claims_too_much_is_refused_by_one_line(key: str, value: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**CONFIG, key: value}))
    code, out, err = answer("plan", str(file), "--hardware", "h200")
    assert code == 2 and out == "" and err.count("\n") == 1 and "internal" not in err
    assert said in err and "hint:" in err


@pytest.mark.parametrize("text", ['{"num_experts": ' + "9" * 5000 + "}", "[" * 100_000, "\x00"])
def test_json_that_cannot_be_read_is_the_users_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    code, _, err = answer("plan", str(file), "--hardware", "h200")
    assert code == 2 and "not valid JSON" in err and len(err) < 400


def test_layers_beyond_the_bound_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LayerSpec] = []
    monkeypatch.setattr(LayerSpec, "__post_init__", made.append, raising=False)
    with pytest.raises(CatalogError, match="num_hidden_layers"):
        spec_from_config({**CONFIG, "num_hidden_layers": 10**9})
    assert len(made) <= 2  # one of each kind


def test_every_catalogue_model_is_far_inside_the_bounds() -> None:
    for model in catalog_models().values():
        spec = model.spec
        assert 4 * len(spec.layers) <= plausible.MOST_LAYERS and 16 * spec.d_model <= plausible.MOST_WIDTH
        assert 16 * spec.vocab_size <= plausible.MOST_VOCABULARY and 16 * spec.max_context <= plausible.MOST_CONTEXT
        experts = [getattr(layer.ffn, "num_experts", 0) for layer in spec.layers]
        assert 8 * max(experts) <= plausible.MOST_EXPERTS and 4 * sum(experts) <= plausible.MOST_EXPERTS_IN_ALL


@pytest.mark.parametrize("experts", [128, 16_383, 16_384])
def test_the_layouts_of_the_largest_shape_are_few(experts: int) -> None:
    layers = plausible.MOST_EXPERTS_IN_ALL // experts // 2
    spec = spec_from_config({**CONFIG, "num_experts": experts, "num_hidden_layers": min(layers, plausible.MOST_LAYERS)})
    found = layouts.enumerate_layouts(spec, accelerator("gb200-nvl72"), 512)
    assert 0 < len(found) < 5_000


# ---------------------------------------------------------------- questions


def test_a_hundred_pools_are_refused() -> None:
    pools = tuple(parse_pool(f"h200:{count}", "fp8") for count in range(1, 101))
    model = named_model("qwen3-30b-a3b")
    with pytest.raises(ConfigError, match="10,100 searches; allowed: at most 320"):
        Question(model=model, pools=pools, workload=Workload(), goal=Goal())
    kept = Question(model=model, pools=pools[:16], workload=Workload(), goal=Goal())
    assert kept.num_searches == 16 + 16 * 16 <= MOST_SEARCHES
    assert Question(model=model, pools=pools, workload=Workload(), goal=Goal(), disaggregate=False).num_searches == 100


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_a_workload_beyond_its_bound_is_refused(name: str, most: float) -> None:
    for value in (int(most) + 1, 10**400, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"{name} must be at most"):
            Workload(**{"acceptance": 0.5, name: value})


WHOLE = st.one_of(st.integers(-2, 10), st.integers(1, 10**6), st.integers(10**6, 10**40))
REAL = st.one_of(st.floats(0.001, 1e4), st.floats(allow_nan=True, allow_infinity=True))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=25, deadline=None)
@example(options={"--users": 10**12}, count=None)
@example(options={"--users": 10**10, "--chips": 10**30}, count=10**30)
@example(options={"--context": 10**9}, count=1)
@example(options={"--draft-tokens": 10**9, "--acceptance": 0.5}, count=1)
@example(options={"--acceptance": 0.5}, count=None)
@example(options={"--requests-per-s": float("inf")}, count=1)
@example(options={"--requests-per-s": 1e10, "--think-time-s": float("nan")}, count=1)
@example(options={"--requests-per-s": 1e-300}, count=1)
@example(options={"--requests-per-s": 1e-9}, count=None)
@example(options={"--users": 7, "--think-time-s": 3e9}, count=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            **{f"--{name}": WHOLE for name in ("users", "input-tokens", "output-tokens", "thinking-tokens", "rollouts", "draft-tokens", "chips", "context")},
            **{f"--{name}": REAL for name in ("requests-per-s", "think-time-s", "acceptance", "tpot-ms", "ttft-ms", "wait-ms", "interval-ms", "usd-per-mtok", "watts", "prefix-hit", "confidence")},
        },
    ),
    count=st.one_of(st.none(), WHOLE),
)  # fmt: skip
def test_any_question_is_answered_or_refused_within_bounded_work(options: dict[str, float], count: int | None) -> None:
    chip = "h200" if count is None else f"h200:{count}"
    # `--name=value`, so that a minus sign is a value's
    arguments = [f"{name}={value}" for name, value in options.items()]
    with counted_rows():
        code, out, err = answer("plan", "qwen3-30b-a3b", "--hardware", chip, "--json", *arguments)
    assert code in (0, 2, 3), err
    if code == 2:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "internal" not in err
    else:
        assert json.loads(out)["feasible"] is (code == 0)


def test_the_largest_question_that_is_allowed_stays_bounded() -> None:
    """Every draft length, users without number, any number of chips."""
    with counted_rows() as rows:
        pool = parse_pool("gb200-nvl72", "fp8")
        workload = Workload(users=10**10, input_tokens=30_000)
        search.plan(Question(model=named_model("deepseek-v3"), pools=(pool,), workload=workload, goal=Goal()))
    assert sum(rows) > 10_000
