"""`ridgepoint train`: one recipe to one run. Talks on stderr; stdout gets where the results are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(
        "train",
        short_help="Train a model by a recipe.",
        help="Train a model by a recipe. A run that was stopped goes on where it was, to the same weights.",
        epilog="Example: ridgepoint train recipes/stdlib.toml --out runs/stdlib-moe",
    )(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.", metavar="RECIPE")],
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder (default: runs/NAME).")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads; the weights do not depend on it.")
    ] = None,
    steps_now: Annotated[int | None, typer.Option("--stop-after", min=1, help="Save and stop after this step.")] = None,
    export_only: Annotated[
        bool, typer.Option("--export-only", help="Export the newest checkpoint, train nothing.")
    ] = False,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Put these figures in the cards: the JSON of benchmarks/stdlib_bits_per_byte.py."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the recipe makes, train nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.train/1).")] = False,
) -> None:
    # one core a product: the parallelism is microbatches, and must be set before torch starts its threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import torch  # noqa: F401
    except ImportError:
        from ridgepoint.errors import MissingExtraError

        raise MissingExtraError("torch", "train", "training") from None
    import msgspec

    from ridgepoint.train.card import read_evaluation
    from ridgepoint.train.finish import export_run
    from ridgepoint.train.flops import parameter_counts
    from ridgepoint.train.loop import run
    from ridgepoint.train.recipe import load_recipe

    loaded = load_recipe(recipe)
    figures = None if evaluation is None else read_evaluation(evaluation)
    if workers is not None:
        loaded = msgspec.structs.replace(loaded, run=msgspec.structs.replace(loaded.run, workers=workers))
    folder = out or Path("runs") / loaded.name
    total, active = parameter_counts(loaded)
    facts: dict[str, object] = {
        "schema": "ridgepoint.train/1",
        "name": loaded.name,
        "parameters": total,
        "active_parameters": active,
        "steps": loaded.run.steps,
        "tokens": loaded.run.steps * loaded.run.tokens_per_step,
        "folder": str(folder),
    }
    if not dry_run:
        if not export_only:
            result = run(loaded, folder, stop_after=steps_now)
            facts |= {"step": result.step, "finished": result.finished, "checkpoint": str(result.checkpoint)}
        facts["exported"] = {name: str(path) for name, path in export_run(loaded, folder, figures).items()}
    if json_:
        print(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            if key != "schema":
                print(f"{key}: {value}")
    if not dry_run and not export_only and not result.finished:
        typer.echo(f"stopped at step {result.step}; go on with the same command", err=True)
        raise typer.Exit(130)
