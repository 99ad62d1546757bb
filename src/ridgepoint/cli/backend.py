"""How `chat` and `complete` find who answers: --url for a running server, else an engine of their own, and the options both
have for the latter."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ridgepoint.errors import ConfigError

if TYPE_CHECKING:
    from ridgepoint.server.backends import Backend

WeightFormat = Annotated[str | None, typer.Option(help="How weights are kept, int8 or int4-32 say; none: as stored.")]
WeightCache = Annotated[
    str | None, typer.Option(help="Folder for packed weights between starts, or off; none: the user's cache.")
]
Verbose = Annotated[bool, typer.Option(help="Tell what the engine chose and why, on stderr.")]


def find_backend(
    model: str | None,
    url: str | None,
    api_key: str | None,
    *,
    weight_format: str | None = None,
    weight_cache: str | None = None,
    verbose: bool = False,
) -> Backend:
    """`model` is a name at `url`, or else a folder or hub id (None: the embedded model), served as the rest says."""
    if url is not None:
        if weight_format is not None or weight_cache is not None:
            raise ConfigError("--weight-format and --weight-cache are for an engine of your own, not for --url")
        from ridgepoint.server.backends import RemoteBackend

        return RemoteBackend(url, model=model, api_key=api_key or os.environ.get("OPENAI_API_KEY"))
    from ridgepoint.engine.options import EngineOptions
    from ridgepoint.engine.source import find_model
    from ridgepoint.server.backends import LocalBackend

    if api_key is not None:
        raise ConfigError("--api-key belongs to --url", hint="without a URL the engine is yours")
    source = find_model(model)
    options = EngineOptions(
        model=str(source.folder), max_num_seqs=4, weight_format=weight_format, weight_cache=weight_cache
    )
    return LocalBackend(source, options, verbose=verbose)
