"""Engine options from a plan: what `ridgepoint plan --json` chose, as far as one process on one device can be it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ridgepoint.errors import ConfigError

SCHEMA = "ridgepoint.plan/1"
DEGREES = ("tp", "dp_attention", "ep", "pp")


def options_of_plan(file: Path) -> dict[str, Any]:
    """Values for `EngineOptions` by name. Raises `ConfigError` for a file that is no plan, a plan that meets no goal, and a
    choice this engine cannot be: several devices, separate prefill, speculation."""
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"plan {file} cannot be read: {error}") from error
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise ConfigError(f"{file} is not a plan of schema {SCHEMA}", hint="write one with: ridgepoint plan ... --json")
    if not plan["feasible"]:
        missed = ", ".join(sorted({str(failure["metric"]) for failure in plan["failures"]}))
        raise ConfigError(
            f"plan {file} meets no goal (missed: {missed})", hint="plan again with a goal that can be met"
        )
    choice = plan["choice"]
    serve = choice["serve"]
    if choice["mode"] != "together":
        raise ConfigError(
            f"plan {file} prefills on {choice['prefill']['hardware']} apart from decoding, which this server cannot",
            hint="plan with --no-disaggregate",
        )
    spread = [f"{name} {serve[name]}" for name in DEGREES if serve[name] != 1]
    if spread:
        raise ConfigError(
            f"plan {file} spreads the model over several devices ({', '.join(spread)}); this server runs on one",
            hint="plan with --chips 1",
        )
    if serve["draft_tokens"]:
        raise ConfigError(f"plan {file} drafts {serve['draft_tokens']} tokens a step, which this server cannot")
    return {
        "max_num_seqs": serve["max_sequences"],
        "max_step_tokens": max(serve["chunk_tokens"], serve["max_sequences"]),
        "step_budget_s": serve["step_interval_s"],
        "hardware": choice["decode"]["hardware"],
    }
