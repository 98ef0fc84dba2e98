"""Run a job: parse its command line, configure logging, load the configuration, report errors."""

import argparse
import io
import logging
import shlex
import sys
from collections.abc import Callable, Sequence

from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.jobs.command.arguments import JobCommand, add_job_arguments
from storage import StorageError

logger = logging.getLogger(__name__)

FAILED = 1
USAGE_ERROR = 2
COMMAND = "command: "  # begins the line of a log that says how its job was started


def run_job(
    command: JobCommand,
    job: Callable[[Config, argparse.Namespace], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Run a job that reads a configuration; see `run_command`."""

    def configured(args: argparse.Namespace) -> int | None:
        mapping = getattr(args, "mapping", None)
        return job(load_config(args.config, args.overrides, mapping=mapping), args)

    return run_command(command, configured, argv)


def run_command(
    command: JobCommand,
    job: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Run a job with the arguments in `argv` and return its exit code.

    The code is 2 after a ConfigError, 1 after another error of lesioncast or of storage, and else
    what the job returns, with None for 0. Other exceptions are bugs and pass through.
    """
    parser = argparse.ArgumentParser(
        prog=f"lesioncast {command.name}",
        description=command.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_arguments(parser, command)
    args = parser.parse_args(argv)
    configure_logging()
    given = sys.argv[1:] if argv is None else argv
    logger.info("%s%s", COMMAND, shlex.join(["lesioncast", command.name, *given]))
    try:
        return job(args) or 0
    except ConfigError as error:
        parser.print_usage(sys.stderr)
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except (LesioncastError, StorageError) as error:
        # An error that a Ray task raised comes with the remote traceback; its cause does not.
        logger.error("%s", getattr(error, "cause", error))
        return FAILED


def configure_logging() -> None:
    """Log plain lines to standard output. Only entry points call this."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack a character, and a folder's name may not be text at all.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
