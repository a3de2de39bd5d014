"""The command line: verbs only. Whatever is heavy is imported inside the verb that needs it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from medkd import __version__
from medkd.cli import about, losses, reports, runs, scores, use
from medkd.cli.terminal import fail
from medkd.errors import UserError

app = typer.Typer(
    name="medkd",
    help="Distil 3-D CT and MRI segmentation networks into one small network.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for verb in (
    *(runs.run, runs.check, use.predict, scores.evaluate, use.export, reports.report, reports.gate),
    *(losses.methods, losses.conformance, about.schema),
):
    app.command()(verb)
app.add_typer(about.data)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medkd {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Distil 3-D CT and MRI segmentation networks into one small network."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and leave: 0, 2 for a mistake of the user's, 130 for Ctrl-C, 1 for one of ours."""
    if not sys.warnoptions:  # other people's deprecations are for us, not for who trains a network; -W shows them
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # worker processes too
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run the command line with these arguments and return its exit code."""
    try:
        code = app(arguments, prog_name="medkd", standalone_mode=False)
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted", code=130)
    except typer.Abort:
        return fail("interrupted", code=130)
    except BrokenPipeError:  # `medkd methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # Typer brings its own copy of Click, and older ones do not: a usage error is known by what it can do.
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        return fail(f"{told().rstrip('.')}; see medkd --help")
    return code if isinstance(code, int) else 0
