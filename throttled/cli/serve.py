"""`throttled serve`: the service that decides by the policies of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from throttled.cli.endings import CommandError
from throttled.cli.output import show, show_json, show_table
from throttled.cli.targets import (
    STORE_VARIABLE,
    TOKEN_VARIABLE,
    json_option,
    lines_of,
    or_in,
    store_at,
    store_option,
)

if TYPE_CHECKING:
    from throttled.policies import PolicySpec

__all__ = ["serve"]

SECRET_VARIABLE: Final = "THROTTLED_TICKET_SECRET"

_OFF: Final = "off"


@click.command()
@click.argument("policies", metavar="FILE")
@store_option()
@click.option(
    "--listen",
    default="127.0.0.1:50051",
    metavar="HOST:PORT",
    help="Where to answer, also unix:/path; 127.0.0.1:50051 by default.",
)
@click.option(
    "--http",
    default="127.0.0.1:9464",
    metavar="HOST:PORT",
    help="Where /metrics, /stats and /healthz are, or the word off; 127.0.0.1:9464 by default.",
)
@click.option(
    "--token",
    metavar="TEXT",
    help=f"What clients have to present. Others may see it in the list of processes; not so in "
    f"{TOKEN_VARIABLE}, or in a file.",
)
@click.option("--token-file", metavar="FILE", help="Holds a token a line, each of which will do.")
@click.option("--tls-cert", metavar="FILE", help="The certificate to answer by TLS with.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option(
    "--tls-client-ca", metavar="FILE", help="Who must have signed the certificates of clients."
)
@click.option(
    "--ticket-secret-file",
    metavar="FILE",
    help=f"What reservations are signed with, the same for all servers; {SECRET_VARIABLE} by "
    f"default.",
)
@click.option(
    "--ticket-ttl",
    type=float,
    default=3600.0,
    metavar="S",
    help="Seconds in which a reservation can be settled; 3600 by default.",
)
@click.option(
    "--grace",
    type=float,
    default=10.0,
    metavar="S",
    help="Seconds that calls have to end in when the service is told to; 10 by default.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Of the log on stderr; text by default.",
)
@click.option("--check", is_flag=True, help="Only read the policies and show them.")
@json_option()
def serve(
    policies: str,
    store: str | None,
    token: str | None,
    token_file: str | None,
    ticket_secret_file: str | None,
    http: str,
    check: bool,
    as_json: bool,
    **options: Any,
) -> int | None:
    """Run a service that decides by the policies of a file.

    FILE is TOML or JSON. The service ends in good order upon SIGTERM, and reads the file again
    upon SIGHUP or when it changes.
    """
    store = or_in(STORE_VARIABLE, store)
    if check:
        _check(policies, store, as_json)
        return None
    if as_json:
        raise click.UsageError("--json goes with --check; the log has --log-format json.")
    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file exclude one another.")
    if token_file is not None:
        tokens = tuple(lines_of(token_file))
    else:
        token = or_in(TOKEN_VARIABLE, token)
        tokens = () if token is None else (token,)
    if ticket_secret_file is not None:
        secrets = lines_of(ticket_secret_file)
        if len(secrets) > 1:
            raise CommandError(f"{ticket_secret_file}: must hold one line, the secret.")
        secret: str | None = secrets[0]
    else:
        secret = or_in(SECRET_VARIABLE, None)
    from throttled.service.serving import Serving, run

    return run(
        Serving(
            policies=policies,
            store=store,
            http=None if http.lower() == _OFF else http,
            tokens=tokens,
            ticket_secret=secret,
            **options,
        )
    )


def _check(path: str, url: str | None, as_json: bool) -> None:
    from throttled import load
    from throttled.policies import described

    store = store_at(url)
    try:
        with load(path, store=store) as policies:
            specs: list[PolicySpec] = list(policies.specs.values())
    finally:
        if store is not None:
            store.close()
    if as_json:
        show_json({"path": path, "policies": [described(spec) for spec in specs]})
        return
    show(f"{path}: {len(specs)} {'policy' if len(specs) == 1 else 'policies'}, all in order")
    show("")
    show_table(
        ["policy", "rules", "store", "on error", "prefix", "tiers", "overrides"],
        [
            [
                spec.name,
                "; ".join([f"{rule.quota} {rule.using or spec.using}" for rule in spec.rules]),
                spec.store or ("memory" if url is None else "as given"),
                spec.on_store_error or "as its store",
                spec.key_prefix,
                str(len(spec.tiers)),
                str(len(spec.overrides)),
            ]
            for spec in specs
        ],
        left=5,
    )
