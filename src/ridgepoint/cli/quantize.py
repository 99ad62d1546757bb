"""`ridgepoint quantize`: a checkpoint to one of fewer bits per weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ridgepoint.catalog.families import CheckpointConfig
    from ridgepoint.models.source import Source
    from ridgepoint.quantize.convert import Method

_SEQUENCE_TOKENS = 512
# Of the library's modules: those the embedded model was not trained on are not calibrated on either.
_HOLD_OUT_ONE_IN = 24
_FORMATS = Literal["int8", "int8-g128", "int4-g32", "int4-g128", "fp8-block", "mxfp4"]


def register(app: typer.Typer) -> None:
    app.command(
        "quantize",
        short_help="Write a checkpoint in fewer bits.",
        help="Write the checkpoint SOURCE (folder, hub id, or 'stdlib-moe' for the embedded model) to the new folder OUT "
        "in fewer bits. Norms, embeddings and routers stay as they are.",
        epilog="Example: ridgepoint quantize stdlib-moe /tmp/stdlib-int4 --format int4-g32",
    )(quantize)


def quantize(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint, or 'stdlib-moe'.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    format_: Annotated[_FORMATS, typer.Option("--format", help="What matrices become.")],
    method: Annotated[
        Literal["rtn", "activation-aware"],
        typer.Option(help="Round to nearest, or lose least on what calibration text makes of the model's layers."),
    ] = "rtn",
    calibration_text: Annotated[
        Path | None, typer.Option(help="Text file to calibrate with; none: this Python's standard library sources.")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=1, help="How much of it.")] = 32_768,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave matrices of this name as they are; * matches, repeat for more.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.quantize/1).")] = False,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ridgepoint.engine.source import find_model
    from ridgepoint.errors import ConfigError
    from ridgepoint.quantize.convert import RoundToNearest, convert
    from ridgepoint.quantize.formats import format_named

    found = find_model(source, revision=revision)
    if method == "rtn" and calibration_text is not None:
        raise ConfigError("--calibration-text is for --method activation-aware")
    ids = calibration_ids(found.folder, calibration_text, calibration_tokens) if method == "activation-aware" else None

    def make_method(source: Source, config: CheckpointConfig) -> Method:
        if ids is None:
            return RoundToNearest()
        from ridgepoint.quantize.calibrate import ActivationAware, sequences

        return ActivationAware(source, config, sequences(ids, min(_SEQUENCE_TOKENS, config.spec.max_context)))

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{found.name} to {format_}", total=None)
        report = convert(
            found.folder, out, format_named(format_), exclude=exclude or (),
            make_method=make_method, progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if json_:
        print(json.dumps(report, indent=2))
    else:
        _show(report)


def calibration_ids(folder: Path, text: Path | None, num_tokens: int) -> list[int]:
    """At most `num_tokens` ids of the model's own tokenizer; the library's files in the order of their names' hashes."""
    import hashlib

    from ridgepoint.engine.tokenizer import load_tokenizer
    from ridgepoint.errors import ConfigError
    from ridgepoint.train.corpus import read_corpus

    if text is not None:
        try:
            texts = [text.read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--calibration-text {text} cannot be read: {error}") from error
    else:
        corpus = read_corpus(one_in=_HOLD_OUT_ONE_IN, exclude=("encodings/", "pydoc_data/"))
        library = [file for file in corpus.files if file.part == "library"]
        texts = [file.text for file in sorted(library, key=lambda file: hashlib.sha256(file.path.encode()).digest())]
    tokenizer, ids = load_tokenizer(folder), list[int]()
    for one in texts:
        ids += tokenizer.encode(one)
        if len(ids) >= num_tokens:
            return ids[:num_tokens]
    if not ids:
        raise ConfigError("the calibration text has no tokens")
    return ids


def _show(report: dict[str, Any]) -> None:
    from ridgepoint.units import seconds, si

    print(
        f"{report['target']}: {report['format']} by {report['method']}, {si(report['source_bytes'], 'B')} to "
        f"{si(report['target_bytes'], 'B')}, {report['bits_per_quantised_weight']:.2f} bits per quantised weight, "
        f"in {seconds(report['seconds'])}"
    )
    print("relative rms error of the weights: " + ", ".join(
        f"{role} {error:.2%}" for role, error in report["relative_rms_error"].items()
    ))  # fmt: skip
    if "relative_output_loss" in report:
        print("squared error of the outputs: " + ", ".join(
            f"{role} {loss:.2%}" for role, loss in report["relative_output_loss"].items()
        ))  # fmt: skip
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
