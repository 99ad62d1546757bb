"""How long does a plan take, by how much it searches?

Each question is planned `--rounds` times in one process, after one plan that loads the catalogue; the median counts. A plan is
the whole answer: layouts, batches, chunks, step intervals and pool ratios priced, filtered, ranked, and what would change the choice.

    python benchmarks/plan_sweep.py --json benchmarks/results/plan_sweep.json
    python benchmarks/plan_sweep.py --smoke
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import provenance
from ridgepoint.plan.named import named_drafter, named_model
from ridgepoint.plan.pools import default_precision, parse_pool
from ridgepoint.plan.search import DRAFT_LENGTHS, Plan, Question, plan
from ridgepoint.plan.workload import Goal, Workload


@dataclass(frozen=True, kw_only=True)
class Case:
    """`pools` as HARDWARE, HARDWARE:COUNT or HARDWARE/prefill, each in its usual precision; `drafts` searches draft lengths too."""

    name: str
    model: str
    pools: tuple[str, ...]
    users: int | None = None
    disaggregate: bool = True
    drafts: bool = False

    def question(self) -> Question:
        model = named_model(self.model)
        pools = [(text.partition("/")[0], text.partition("/")[2] or "any") for text in self.pools]
        return Question(
            model=model,
            pools=tuple(parse_pool(text, default_precision(self.model, text), role) for text, role in pools),
            workload=Workload(users=self.users, draft_tokens=max(DRAFT_LENGTHS), acceptance=0.8)
            if self.drafts
            else Workload(users=self.users),
            goal=Goal(tpot_s=0.05),
            disaggregate=self.disaggregate,
            drafter=named_drafter("mtp", model) if self.drafts else None,
            draft_lengths=DRAFT_LENGTHS if self.drafts else (),
        )


CASES = (
    Case(name="one pool, together", model="deepseek-v3", pools=("h200",), disaggregate=False),
    Case(name="one pool, apart too", model="deepseek-v3", pools=("h200",)),
    Case(name="a rack, 5,000 users", model="minimax-m2", pools=("gb200-nvl72",), users=5000),
    Case(name="one pool, seven draft lengths", model="deepseek-v3", pools=("h200",), drafts=True),
    Case(
        name="decode on H200, prompts on A100 and V100",
        model="deepseek-v3", pools=("h200", "a100-sxm-80/prefill", "v100-sxm2-32/prefill"),
    ),
    Case(
        name="six kinds mixed",
        model="deepseek-v3", pools=("h100", "h200", "b200", "gb200-nvl72", "mi300x", "a100-sxm-80/prefill"),
    ),
)  # fmt: skip


def measure(case: Case, rounds: int) -> dict[str, object]:
    found: list[Plan] = [plan(case.question()) for _ in range(rounds)]
    return {
        "name": case.name,
        "model": case.model,
        "pools": list(case.pools),
        "seconds": [one.seconds for one in found],
        "num_priced": found[0].choice.num_priced,
        "feasible": found[0].choice.feasible,
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = [f"{'question':<44}{'priced':>12}{'seconds':>10}"]
    for row in rows:
        seconds: list[float] = row["seconds"]  # type: ignore[assignment]
        lines.append(f"{row['name']:<44}{row['num_priced']:>12,}{statistics.median(seconds):>10.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    parser.add_argument("--smoke", action="store_true", help="two questions once: does the benchmark still run?")
    arguments = parser.parse_args()
    cases = CASES[:2] if arguments.smoke else CASES
    plan(CASES[0].question())
    rows = [measure(case, 1 if arguments.smoke else arguments.rounds) for case in cases]
    result = {"schema": "ridgepoint.benchmark.plan_sweep/1", **provenance.provenance(__doc__), "rows": rows}
    provenance.save(arguments.json, result)
    print(table(rows))


if __name__ == "__main__":
    main()
