"""Console script `lesioncast`: one subcommand for each job, and `serve` for the service.

lesioncast simulate --config demo
lesioncast serve [SERVICE.yaml]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from lesioncast.jobs.command.arguments import COMMANDS, add_job_arguments

SERVE_REQUIREMENTS = ("httpx2", "python_multipart", "sqlalchemy")
SERVE_DESCRIPTION = """Start the forecast service: `serve run` with the settings in a file.

    lesioncast serve [SERVICE.yaml]

The default file serves the bundle of the demo to this machine alone. Its paths are relative to the
current folder. The service needs the extra `serve`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    if args.version:
        # Importing storage takes a second, which --help has not.
        from storage.version import installed_version

        print(f"lesioncast {installed_version()}")
        return 0
    if args.command is None:
        build_parser().print_help()
        return 2
    if args.command == "serve":
        serve(args.service)
    # Jobs import torch and Ray, which takes seconds: only the one that runs is imported.
    job = import_module(f"lesioncast.jobs.{args.command}")
    code: int = job.main(arguments[1:])
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the console script with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="lesioncast",
        description="Forecast where new multiple-sclerosis lesions will appear under each "
        "treatment. Research use only; not a medical device.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        job_parser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_job_arguments(job_parser, command)
    serve_parser = subparsers.add_parser(
        "serve",
        help="serve forecasts over HTTP",
        description=SERVE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve_parser.add_argument(
        "service", nargs="?", type=Path, help="settings (default: the file that is shipped)"
    )
    return parser


def serve(settings: Path | None) -> NoReturn:
    """Replace this process with `serve run`; exit with 1 if the service cannot be started."""
    if missing := [name for name in SERVE_REQUIREMENTS if find_spec(name) is None]:
        sys.exit(
            f"expected the packages of the extra serve, got no {', '.join(missing)}; "
            "run pip install 'lesioncast[serve]'"
        )
    path = settings or shipped_service()
    if path is None or not path.is_file():
        sys.exit(f"expected a file with the service's settings, got {path}; name one")
    # Importing it takes a second, which --help has not.
    from lesioncast.cluster.connection import prepare_token, set_ray_defaults

    set_ray_defaults()
    prepare_token()
    executable = Path(sys.executable).with_name("serve")
    print(f"The page will be at {page_address(path)} within about a minute.", flush=True)
    # Replaced instead of started as a child, so that signals reach Ray Serve itself.
    os.execv(executable, [str(executable), "run", str(path)])


def page_address(service: Path) -> str:
    """Return the address of the page of a service with the settings in the file `service`.

    Exit with 1 if the file is no YAML mapping. Defaults are those of Ray Serve.
    """
    import yaml  # the imports of --help take little time

    try:
        settings = yaml.safe_load(service.read_text(encoding="utf-8"))
        http = settings.get("http_options") or {}
        (application, *_) = settings["applications"]
        prefix = str(application.get("route_prefix") or "/")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
        sys.exit(
            f"{service}: expected settings of Ray Serve with a list of applications, got none; "
            "see serve/service.yaml"
        )
    host = http.get("host", "127.0.0.1")
    if host in ("0.0.0.0", "::"):  # noqa: S104, every interface: this machine's browser is at localhost
        host = "localhost"
    return f"http://{host}:{http.get('port', 8000)}/{prefix.strip('/')}"


def shipped_service() -> Path | None:
    """Return the service.yaml that lies in the `serve` package, if it is installed."""
    spec = find_spec("serve")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("service.yaml")


if __name__ == "__main__":
    sys.exit(main())
