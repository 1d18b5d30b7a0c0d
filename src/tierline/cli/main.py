"""`tierline`: the entry point. Every error of ours becomes one sentence on stderr and an exit code, never a traceback.

Exit codes: 0 done; 1 the job waited for did not complete; 2 bad input or refused; 3 no daemon answers; 130 Ctrl-C.
Command modules import only Typer at their top, so that `tierline --help` answers at once; what a command needs (httpx,
numpy, the server) it imports when it runs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tierline.cli import (
    calibrate,
    chat,
    data,
    doctor,
    hold,
    kernels,
    load,
    logs,
    policies,
    ps,
    replay,
    serve,
    simulate,
    stop,
    submit,
    sweep,
    top,
    up,
    why,
)
from tierline.cli import (
    run as run_command,
)
from tierline.core.errors import DaemonUnavailable, TierlineError

EXIT_BAD_INPUT = 2
EXIT_NO_DAEMON = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="tierline",
    help="Schedule deep-learning jobs by the training utility that a GPU-second buys.\n\n"
    "A first session: `tierline up --slots 2 --detach`, then `tierline submit -- python train.py`, `tierline ps`, "
    "`tierline why JOB`, `tierline logs -f JOB`. Every command has its own `--help` with an example.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from tierline import __version__

        typer.echo(f"tierline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options that stand before any command."""


MODULES = (
    up, submit, sweep, ps, why, logs, stop, hold, top, serve, chat, load, run_command, kernels, calibrate, policies, simulate,
    data, replay, doctor,
)  # fmt: skip
for module in MODULES:
    module.register(app)


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="tierline", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except DaemonUnavailable as error:
        hint = "" if "tierline up" in str(error) else " Start one with `tierline up`."
        return _complain(f"{error}{hint}", EXIT_NO_DAEMON)
    except TierlineError as error:
        return _complain(str(error), EXIT_BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the prompt shall not stand behind the terminal's ^C
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Typer brings its own Click or uses an installed one, by version: its usage errors are told by their shape.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "tierline"
        said = _plain(" ".join(message().split()))
        if not said:  # a group of commands without a command has shown its help
            return EXIT_BAD_INPUT
        return _complain(f"{said.rstrip('.')} (see `{where} --help`).", EXIT_BAD_INPUT)


def _plain(message: str) -> str:
    """Typer's words for a value that does not fit, in ours.

    >>> _plain("Invalid value for '--steps': Input should be a valid integer, unable to parse string as an integer")
    "Invalid value for '--steps': a whole number is needed"
    """
    for theirs, ours in (
        (r"Input should be a valid integer.*", "a whole number is needed"),
        (r"Input should be a valid number.*", "a number is needed"),
        (r"Input should be a valid boolean.*", "true or false is needed"),
        (r"Input should be greater than or equal to (\S+)", r"\1 or more is allowed"),
        (r"Input should be less than or equal to (\S+)", r"\1 at most is allowed"),
    ):
        message = re.sub(theirs, ours, message)
    return message


def _complain(sentence: str, code: int) -> int:
    print(f"tierline: {sentence}", file=sys.stderr)
    return code


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
