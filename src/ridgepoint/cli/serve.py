"""`ridgepoint serve`: an OpenAI-compatible server for one model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ridgepoint.cli.defaults import from_config, from_plan
from ridgepoint.cli.help_sections import SectionedCommand

if TYPE_CHECKING:
    from ridgepoint.engine.options import EngineOptions
    from ridgepoint.engine.source import ModelSource
    from ridgepoint.server.config import ServerConfig

EXIT_INTERRUPTED = 130
KEY_VARIABLE = "RIDGEPOINT_API_KEY"
_LIMIT = "Limits of one request"
_ENGINE = "Engine"


def register(app: typer.Typer) -> None:
    app.command(
        "serve",
        short_help="Serve a model behind the OpenAI API.",
        cls=SectionedCommand,
        help="Serve MODEL behind the OpenAI API: a checkpoint folder, a hub id, or nothing for the embedded model.",
        epilog="Example: ridgepoint serve --port 8000",
    )(serve)


def serve(
    model: Annotated[str | None, typer.Argument(help="Checkpoint folder or hub id; none: the embedded model.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options by name; typed options win.", callback=from_config, is_eager=True),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Serve as this plan (ridgepoint plan --json) chose.", callback=from_plan, is_eager=True),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 lets the system choose.")] = 8000,
    port_file: Annotated[str | None, typer.Option(help="Write the port here once listening.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help=f"Key that callers must send; repeat for more. Better: {KEY_VARIABLE}.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one key per line.")] = None,
    served_name: Annotated[str | None, typer.Option(help="Name that clients use for the model.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja file that replaces the model's template.")] = None,
    reasoning: Annotated[
        Literal["auto", "off"],
        typer.Option(help="Tell reasoning apart where the chat template names its tags, or leave it in the text."),
    ] = "auto",
    cors_origin: Annotated[list[str] | None, typer.Option(help="Browser origin to allow; repeat, or '*'.")] = None,
    drain_s: Annotated[float, typer.Option(help="Longest wait for running requests at shutdown, seconds.")] = 60.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Least level logged.")
    ] = "info",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of weights and activations; none: what suits.", rich_help_panel=_ENGINE),
    ] = None,
    kv_dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8", "float8_e4m3fn"] | None,
        typer.Option(help="How KV is kept; none: as --dtype.", rich_help_panel=_ENGINE),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; none: the best there is.", rich_help_panel=_ENGINE)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to compute on.", rich_help_panel=_ENGINE)] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences run together.", rich_help_panel=_ENGINE)] = 64,
    max_waiting: Annotated[
        int, typer.Option(help="Sequences that may queue; past it 429.", rich_help_panel=_ENGINE)
    ] = 256,
    max_step_tokens: Annotated[int | None, typer.Option(help="Tokens per step.", rich_help_panel=_ENGINE)] = None,
    mixed_prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Of these, of prompts while others decode; none: what suits.", rich_help_panel=_ENGINE),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Predict steps for this catalogue id or hardware file (ridgepoint calibrate MODEL writes one).",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="Constants of the prediction where the hardware has none.", rich_help_panel=_ENGINE)
    ] = "serving",
    step_budget_s: Annotated[
        float | None, typer.Option(help="Predicted seconds a step may take.", rich_help_panel=_ENGINE)
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and output together.", rich_help_panel=_ENGINE)
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens per KV block.", rich_help_panel=_ENGINE)] = 16,
    kv_bytes: Annotated[int | None, typer.Option(help="Memory for KV, bytes.", rich_help_panel=_ENGINE)] = None,
    num_blocks: Annotated[int | None, typer.Option(help="The same in blocks.", rich_help_panel=_ENGINE)] = None,
    weight_format: Annotated[
        str | None,
        typer.Option(help="How weights are kept, int8 or int4-32 say; none: as stored.", rich_help_panel=_ENGINE),
    ] = None,
    weight_cache: Annotated[
        str | None,
        typer.Option(
            help="Folder for packed weights between starts, or off; none: the user's cache.", rich_help_panel=_ENGINE
        ),
    ] = None,
    tune_s: Annotated[
        float, typer.Option(help="Seconds a start may try a GPU's kernels; 0: none.", rich_help_panel=_ENGINE)
    ] = 15.0,
    prefix_cache: Annotated[bool, typer.Option(help="Reuse the KV of equal prefixes.", rich_help_panel=_ENGINE)] = True,
    max_body_bytes: Annotated[int, typer.Option(help="Request body.", rich_help_panel=_LIMIT)] = 8 << 20,
    max_prompts: Annotated[int, typer.Option(help="Prompts per request.", rich_help_panel=_LIMIT)] = 128,
    max_sequences: Annotated[int, typer.Option(help="Prompts x n per request.", rich_help_panel=_LIMIT)] = 128,
    max_logprobs: Annotated[int, typer.Option(help="Alternatives per token.", rich_help_panel=_LIMIT)] = 20,
    max_stops: Annotated[int, typer.Option(help="Stop strings.", rich_help_panel=_LIMIT)] = 16,
    head_timeout_s: Annotated[float, typer.Option(help="Seconds for request headers.", rich_help_panel=_LIMIT)] = 10.0,
    body_timeout_s: Annotated[float, typer.Option(help="Silence while a body arrives.", rich_help_panel=_LIMIT)] = 30.0,
    keep_alive_s: Annotated[float, typer.Option(help="Silence between requests.", rich_help_panel=_LIMIT)] = 30.0,
) -> None:
    from ridgepoint.engine.options import EngineOptions
    from ridgepoint.engine.source import find_model
    from ridgepoint.server.config import Limits, ServerConfig

    del config, plan  # their callbacks made them defaults of the other options
    source = find_model(model, revision=revision)
    options = EngineOptions(
        model=str(source.folder), dtype=dtype, kv_dtype=kv_dtype, device=device, threads=threads,
        max_num_seqs=max_num_seqs, max_waiting=max_waiting, max_step_tokens=max_step_tokens,
        mixed_prompt_tokens=mixed_prompt_tokens, hardware=hardware, calibration=calibration, step_budget_s=step_budget_s,
        max_context=max_context, block_tokens=block_tokens, kv_bytes=kv_bytes, num_blocks=num_blocks,
        prefix_cache=prefix_cache, weight_format=weight_format, weight_cache=weight_cache, tune_s=tune_s,
    )  # fmt: skip
    server_config = ServerConfig(
        model_name=served_name or source.name, host=host, port=port, port_file=port_file,
        api_keys=tuple(read_keys(api_key or [], api_key_file)), cors_origins=tuple(cors_origin or ()),
        drain_s=drain_s, log_level=log_level, reasoning=reasoning,
        limits=Limits(
            max_body_bytes=max_body_bytes, max_prompts=max_prompts, max_sequences=max_sequences,
            max_logprobs=max_logprobs, max_stops=max_stops, head_timeout_s=head_timeout_s,
            body_timeout_s=body_timeout_s, keep_alive_s=keep_alive_s,
        ),
    )  # fmt: skip
    if _run(source, options, server_config, chat_template) is signal.SIGINT:
        raise typer.Exit(EXIT_INTERRUPTED)


def _run(
    source: ModelSource, options: EngineOptions, config: ServerConfig, chat_template: Path | None
) -> signal.Signals | None:
    from ridgepoint.engine.client import EngineClient
    from ridgepoint.engine.tokenizer import load_tokenizer
    from ridgepoint.errors import ConfigError
    from ridgepoint.server.run import serve as run

    tokenizer = load_tokenizer(source.folder)
    if chat_template is not None:
        try:
            tokenizer = tokenizer.with_chat_template(chat_template.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {chat_template} cannot be read: {error}") from error
    has_template = tokenizer.chat_template is not None  # compiled now, so that a broken one is heard of now
    _tell(f"model {config.model_name}: {source.folder} ({source.reason})")
    _tell(
        f"chat {'on' if has_template else 'off'}: " + ("it has a chat template" if has_template else "no chat template")
    )
    _tell(f"keys {len(config.api_keys)}: " + ("callers must send one" if config.api_keys else "anyone may call"))
    if not config.is_loopback and not config.api_keys:
        _tell(f"warning: {config.host} is reachable by others and no API key is set (hint: --api-key-file)")
    return run(config, tokenizer, EngineClient(options), announce=_tell)


def read_keys(given: list[str], file: Path | None) -> list[str]:
    """Keys from the option, the file and the environment, in that order, without repeats."""
    from ridgepoint.errors import ConfigError

    keys = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"--api-key-file {file} has no key", hint="one key per line")
        keys += found
    keys += [key.strip() for key in os.environ.get(KEY_VARIABLE, "").split(",") if key.strip()]
    return list(dict.fromkeys(keys))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
