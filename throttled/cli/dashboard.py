"""`throttled dashboard`: limits to watch and to try out, in a browser."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Final

import click

from throttled.cli.endings import CommandError
from throttled.cli.targets import (
    STORE_VARIABLE,
    TOKEN_VARIABLE,
    lines_of,
    or_in,
    store_option,
    tls_options,
)

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
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that it is asked for by, besides addresses and those of this machine; * for any.",
)
@click.option(
    "--token",
    metavar="TEXT",
    help=f"What those have to present who reset keys; without, nobody can. Others may see it in "
    f"the list of processes; not so in {DASHBOARD_TOKEN_VARIABLE}, or in a file.",
)
@click.option("--token-file", metavar="FILE", help="Holds a token a line, each of which will do.")
@click.option(
    "--service-token",
    metavar="TEXT",
    help=f"What the service wants to be shown. Others may see it in the list of processes; not so "
    f"in {TOKEN_VARIABLE}, or in a file.",
)
@click.option("--service-token-file", metavar="FILE", help="Holds what it wants to be shown.")
@tls_options
def dashboard(
    store: str | None,
    policies: str | None,
    service: str | None,
    stats: str | None,
    listen: str,
    hosts: tuple[str, ...],
    token: str | None,
    token_file: str | None,
    **asking: Any,
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
    if service is not None and policies is not None:
        raise click.UsageError("--service and --policies exclude one another: it has its own.")
    if asking["service_token"] is not None and asking["service_token_file"] is not None:
        raise click.UsageError("--service-token and --service-token-file exclude one another.")
    for name, value in asking.items():
        ways = ("--service",) if name == "tls" else ("--service", "--stats")
        asked = service is not None or (stats is not None and len(ways) > 1)
        if value not in (None, False) and not asked:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with {' or '.join(ways)}.")
    if token_file is not None:
        tokens = tuple(lines_of(token_file))
    else:
        token = or_in(DASHBOARD_TOKEN_VARIABLE, token)
        tokens = () if token is None else (token,)
    if service is None:
        store = or_in(STORE_VARIABLE, store)
    else:
        # Its log would say again, in terms of its own, what our errors say.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    service_token = asking["service_token"]
    if asking["service_token_file"] is not None:
        service_token = lines_of(asking["service_token_file"])[0]
    from throttled.dashboard.serving import Showing, run

    return run(
        Showing(
            listen=listen,
            tokens=tokens,
            store=store,
            policies=policies,
            service=service,
            stats=stats,
            hosts=hosts,
            service_token=or_in(TOKEN_VARIABLE, service_token),
            tls=asking["tls"],
            ca=asking["ca"],
            cert=asking["client_cert"],
            key=asking["client_key"],
        )
    )
