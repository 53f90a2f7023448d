"""The command line: arguments in, exit code out; with its parts (cli_*, cluster_c*) all that prints."""

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from llenergymeasure import cli_compare, cli_reports, cli_run, cluster_changes, cluster_cli
from llenergymeasure.core.errors import ConfigError, TerminatedError, run_exit_code

app = typer.Typer(
    name="llem",
    help="Measure what a token costs in joules under different deployment choices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli_run.register(app)
cli_reports.register(app)
cli_compare.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from llenergymeasure import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    del version


@app.command()
def config(
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Measure each GPU's energy counter with a load: 1 to 3 minutes per GPU, longer where it ticks slowly.",
        ),
    ] = False,
) -> None:
    """Say what this machine has, what is missing and how to get it; never fails."""
    from llenergymeasure.machine import description

    print(description())
    if self_test:
        from llenergymeasure.self_test import run

        print("", run(), sep="\n")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="experiment, study or result.")] = "experiment",
) -> None:
    """Print a JSON schema."""
    from llenergymeasure.core import introspection
    from llenergymeasure.core.result import ExperimentResult

    kinds = {
        "experiment": introspection.experiment_schema,
        "study": introspection.study_schema,
        "result": ExperimentResult.model_json_schema,
    }
    if kind not in kinds:
        raise ConfigError(f"schema {kind!r} is unknown; valid: {', '.join(kinds)}")
    print(json.dumps(kinds[kind](), indent=2))


@app.command()
def experiment(
    config: Annotated[
        Path | None, typer.Option("--config", help="File; else the environment's LLEM_EXPERIMENT.")
    ] = None,
    result_fd: Annotated[int | None, typer.Option("--result-fd", help="File descriptor that gets the result.")] = None,
    result: Annotated[str | None, typer.Option("--result", help="Folder or file:// URI that gets the files.")] = None,
    run_uri: Annotated[
        str | None,
        typer.Option("--run-uri", help="Prefix of the run in a store (s3://…, file://…); else LLEM_RUN_URI."),
    ] = None,
) -> None:
    """Measure one experiment in this process: what every runner starts. JSON events go to stderr."""
    from llenergymeasure.experiment import Destination, run_as_child

    os.environ.setdefault(cli_run.NO_HUB_BARS, "1")
    code = run_as_child(config, Destination(result_fd, result, run_uri))
    if code:
        raise typer.Exit(code)


cluster_changes.register(app)
cluster_cli.register(app)


def main() -> None:
    """Entry point of `llem` and `kubectl-llem`: every error becomes a sentence on stderr and an exit code."""
    logging.basicConfig(level=logging.DEBUG if os.environ.get("LLEM_DEBUG") else logging.WARNING, format="%(message)s")
    try:
        app(args=_with_latest(sys.argv[1:]))
    except SystemExit as end:  # typer's own: a usage error, or Ctrl-C between two statements of ours
        if _is_experiment() and end.code in (2, 130):  # codes that say nothing about retries to what started us
            sys.exit(ConfigError.run_exit_code if end.code == 2 else TerminatedError.run_exit_code)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(TerminatedError.run_exit_code if _is_experiment() else 130)
    except Exception as err:  # noqa: BLE001  (the door of the command line)
        from llenergymeasure.report import error_text

        if {"-v", "--verbose"} & set(sys.argv):
            traceback.print_exc()
        print(f"error: {error_text(err)}", file=sys.stderr)
        sys.exit(_exit_code(err))


def _with_latest(words: list[str]) -> list[str]:
    """The command line, in which `--resume` without a path means the latest study: click has no optional values."""
    found = []
    for position, word in enumerate(words):
        found.append(word)
        following = words[position + 1 : position + 2]
        if word == "--resume" and (not following or following[0].startswith("-")):
            found.append(cli_run.LATEST)
    return found


def _is_experiment() -> bool:
    return sys.argv[1:2] == ["experiment"]


def _exit_code(err: Exception) -> int:
    from pydantic import ValidationError

    if _is_experiment():
        return run_exit_code(err)
    return 2 if isinstance(err, ValidationError) else int(getattr(err, "exit_code", 1))


if __name__ == "__main__":
    main()
