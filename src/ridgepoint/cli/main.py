"""`ridgepoint`: builds the command line from one file per noun and prints errors as one line."""

from __future__ import annotations

import sys

import typer

from ridgepoint.errors import RidgepointError

app = typer.Typer(add_completion=False, no_args_is_help=True)


def _register() -> None:
    from ridgepoint.cli import kv_hold, numbers, plan, prices

    for noun in (plan, prices, kv_hold, numbers):
        noun.register(app)


def main() -> None:
    _register()
    try:
        app()
    except RidgepointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
