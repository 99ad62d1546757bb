"""How `chat` and `complete` find who answers: --url for a running server, else an engine of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ridgepoint.server.backends import Backend


def find_backend(model: str | None, url: str | None, api_key: str | None, max_context: int | None = None) -> Backend:
    """`model` is a name at `url`, or else a folder or hub id (None: the embedded model)."""
    if url is not None:
        from ridgepoint.server.backends import RemoteBackend

        return RemoteBackend(url, model=model, api_key=api_key or os.environ.get("OPENAI_API_KEY"))
    from ridgepoint.engine.options import EngineOptions
    from ridgepoint.engine.source import find_model
    from ridgepoint.errors import ConfigError
    from ridgepoint.server.backends import LocalBackend

    if api_key is not None:
        raise ConfigError("--api-key belongs to --url", hint="without a URL the engine is yours")
    source = find_model(model)
    return LocalBackend(source, EngineOptions(model=str(source.folder), max_context=max_context, max_num_seqs=4))
