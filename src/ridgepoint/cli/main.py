"""`ridgepoint`: builds the command line from one file per noun, and is the one place where errors become exit codes.

Every module of this package that has `register(app)` adds its commands. Exit codes: 0 done; 2 the user can mend it (one
line on stderr says how); 3 a plan whose goal nothing keeps; 1 a bug; 130 Ctrl-C. A closed pipe (`| head`) ends the command quietly. stdout is data.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from typing import Annotated, Any, NoReturn

import typer

from ridgepoint import __version__
from ridgepoint.errors import EngineError, RidgepointError, StartError

EXIT_BUG, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130
_ORDER = ("serve", "chat", "complete", "models", "plan", "train", "bench")  # of the help; others follow by name

app = typer.Typer(
    name="ridgepoint",
    help="Plan, serve, prove and make Mixture-of-Experts language models at the ridge point of the roofline.",
    epilog="Example: ridgepoint complete 'def read_json(path):'",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: see help_sections
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def build() -> typer.Typer:
    """The app with every noun registered, once."""
    if not app.registered_commands and not app.registered_groups:
        import ridgepoint.cli

        names = [module.name for module in pkgutil.iter_modules(ridgepoint.cli.__path__) if module.name != "main"]
        rank = {name: index for index, name in enumerate(_ORDER)}
        for name in sorted(names, key=lambda name: (rank.get(name, len(rank)), name)):
            register = getattr(importlib.import_module(f"ridgepoint.cli.{name}"), "register", None)
            if register is not None:
                register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and exit."""
    code = 0
    try:
        command = typer.main.get_command(build())
        # Not `command()`, which would turn Ctrl-C and closed pipes into exit codes of its own.
        with command.make_context("ridgepoint", sys.argv[1:] if arguments is None else arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leave:
        code = leave.exit_code
    except BrokenPipeError:
        _leave_broken_pipe()
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except RidgepointError as error:
        _say(f"error: {error}")
        ours = isinstance(error, EngineError) and not isinstance(error, StartError)
        sys.exit(EXIT_BUG if ours else EXIT_USER)
    except OSError as error:  # a file that cannot be read or written, a full disk
        if os.environ.get("RIDGEPOINT_DEBUG"):
            raise
        _say(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error.strerror or error}")
        sys.exit(EXIT_USER)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error; its class moved between typer's versions
            _say(f"error: {_usage(error)} (hint: {_help_of(error)})")
            sys.exit(EXIT_USER)
        _fail_as_bug(error)
    sys.exit(code)


def _fail_as_bug(error: Exception) -> NoReturn:
    if os.environ.get("RIDGEPOINT_DEBUG"):
        raise error
    _say(f"error: internal: {type(error).__name__}: {error} (hint: RIDGEPOINT_DEBUG=1 shows where; please report it)")
    sys.exit(EXIT_BUG)


def _usage(error: Any) -> str:
    """What is wrong with the command line, and what came: pydantic, which newer typers check values with, tells only typer."""
    says = error.format_message().rstrip(".").replace("Value error, ", "")
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    got = f", got {details[0]['input']!r}" if details else ""
    return says if got[6:] in says else says + got


def _help_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context is not None else 'ridgepoint'} --help"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        print(" ".join(line.split()), file=sys.stderr)


def _leave_broken_pipe() -> None:
    """The reader left. Point stdout at nothing, so that the interpreter's last flush does not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
