"""`throttled dashboard`: limits to watch and to try out, in a browser."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Final

import click

from throttled.cli.endings import CommandError
from throttled.cli.targets import STORE_VARIABLE, TOKEN_VARIABLE, lines_of, store_option

__all__ = ["dashboard"]

DASHBOARD_TOKEN_VARIABLE: Final = "THROTTLED_DASHBOARD_TOKEN"


@click.command()
@store_option()
@click.option("--policies", metavar="FILE", help="A policy file, whose keys may be looked at.")
@click.option(
    "--service", metavar="HOST:PORT", help="A service, whose counts and keys may be looked at."
)
@click.option(
    "--stats",
    metavar="URL",
    help="The /stats of a service, http://HOST:9464/stats by default.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    metavar="HOST:PORT",
    help="Where to answer; 127.0.0.1:8080 by default.",
)
@click.option(
    "--token",
    metavar="TEXT",
    help=f"What those have to present who reset keys; without, nobody can. Others may see it in "
    f"the list of processes; not so in {DASHBOARD_TOKEN_VARIABLE}, or in a file.",
)
@click.option("--token-file", metavar="FILE", help="Holds a token a line, each of which will do.")
@click.option(
    "--service-token-file",
    metavar="FILE",
    help=f"Holds what the service wants to be shown; {TOKEN_VARIABLE} by default.",
)
def dashboard(
    store: str | None,
    policies: str | None,
    service: str | None,
    stats: str | None,
    listen: str,
    token: str | None,
    token_file: str | None,
    service_token_file: str | None,
) -> int:
    """Watch limits and try them out, in a browser.

    With nothing to watch, it shows limits and traffic of its own. It ends upon Ctrl-C or SIGTERM.
    """
    for package in ("starlette", "uvicorn", "grpc", "grpc_health", "prometheus_client"):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"the dashboard needs the package {error.name}: "
                f"pip install 'throttled-core[dashboard]'"
            ) from None
    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file exclude one another.")
    for name, other in (("policies", policies), ("store", store)):
        if service is not None and other is not None:
            raise click.UsageError(
                f"--service and --{name} exclude one another: the service has its own."
            )
    if token_file is not None:
        tokens = tuple(lines_of(token_file))
    else:
        token = token or os.environ.get(DASHBOARD_TOKEN_VARIABLE) or None
        tokens = () if token is None else (token,)
    if service is None:
        store = store or os.environ.get(STORE_VARIABLE) or None
    shown = lines_of(service_token_file)[0] if service_token_file else None
    from throttled.dashboard.serving import Showing, run

    return run(
        Showing(
            listen=listen,
            tokens=tokens,
            store=store,
            policies=policies,
            service=service,
            stats=stats,
            service_token=shown or os.environ.get(TOKEN_VARIABLE) or None,
        )
    )
