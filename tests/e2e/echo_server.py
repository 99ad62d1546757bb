"""A real server process over the engine's echo executor: `python echo_server.py FOLDER JSON` (options by section)."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from ridgepoint.engine.client import EngineClient
from ridgepoint.engine.options import EchoOptions, EngineOptions
from ridgepoint.engine.tokenizer import load_tokenizer
from ridgepoint.server.config import Limits, ServerConfig
from ridgepoint.server.run import serve


def main(folder: str, options: dict) -> int:
    echo = EchoOptions(**{"vocab_size": 400, "max_context": 2048, "eos_id": 0, **options.get("echo", {})})
    engine = EngineClient(EngineOptions(model="echo", echo=echo, **options.get("engine", {})))
    config = ServerConfig(
        model_name="echo", port=0, limits=Limits(**options.get("limits", {})),
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.get("server", {}).items()},
    )  # fmt: skip

    def tell(line: str) -> None:
        print(f"{line} engine_pid={engine.pid}", file=sys.stderr, flush=True)

    tokenizer = load_tokenizer(Path(folder))
    assert "torch" not in sys.modules, "the server process never imports torch"
    number = serve(config, tokenizer, engine, announce=tell)
    assert "torch" not in sys.modules, "the server process never imports torch"
    return 130 if number is signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
