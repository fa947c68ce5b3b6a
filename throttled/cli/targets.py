"""What a command is about: a quota on a store, a policy of a file, or a policy of a service."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from throttled import MemoryStore, RateLimiterType, RedisStore, Throttled
from throttled.algorithms.plan import DEFAULT_PREFIX
from throttled.cli.endings import CommandError, note

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from throttled.store import Store

    Option = Callable[[Callable[..., Any]], Callable[..., Any]]

STORE_VARIABLE: Final = "THROTTLED_STORE"
TOKEN_VARIABLE: Final = "THROTTLED_TOKEN"

_WAYS: Final = (
    "give one of --quota TEXT, --policies FILE with --policy NAME, or "
    "--service HOST:PORT with --policy NAME"
)

#: The options that only mean something together with one of the three ways.
_BELONGS: Final = {
    "quota": ("using", "prefix", "store"),
    "policies": ("policy", "store"),
    "service": ("policy", "token", "token_file", "tls", "ca", "client_cert", "client_key"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """The limit that a command is about, as it was asked for."""

    quota: str | None
    using: str | None
    prefix: str | None
    store: str | None
    policies: str | None
    policy: str | None
    service: str | None
    token: str | None
    token_file: str | None
    tls: bool
    ca: str | None
    client_cert: str | None
    client_key: str | None

    def __post_init__(self) -> None:
        ways = [way for way in _BELONGS if getattr(self, way) is not None]
        if not ways:
            raise click.UsageError(f"No limit is given: {_WAYS}.")
        if len(ways) > 1:
            raise click.UsageError(f"--{ways[0]} and --{ways[1]} exclude one another: {_WAYS}.")
        way = ways[0]
        for name in dict.fromkeys([each for names in _BELONGS.values() for each in names]):
            if getattr(self, name) not in (None, False) and name not in _BELONGS[way]:
                needed = [f"--{other}" for other in _BELONGS if name in _BELONGS[other]]
                raise click.UsageError(
                    f"--{name.replace('_', '-')} does not go with --{way}, only with "
                    f"{' or '.join(needed)}."
                )
        if way != "quota" and self.policy is None:
            raise click.UsageError(f"--{way} needs --policy NAME: which of its policies is meant.")
        if self.token is not None and self.token_file is not None:
            raise click.UsageError("--token and --token-file exclude one another.")

    @contextmanager
    def opened(self) -> Generator[Throttled]:
        """The limit; what it holds is released at the end of the block."""
        with ExitStack() as stack:
            throttle = self._made(stack)
            if throttle.store.local:
                note(
                    "note: this limit lives in memory and begins anew with each command; "
                    f"--store redis://... or {STORE_VARIABLE} keeps it."
                )
            yield throttle

    def _made(self, stack: ExitStack) -> Throttled:
        if self.service is not None:
            # Its log would say again, in terms of its own, what our errors say.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            from throttled.service import Client

            token = self.token if self.token_file is None else lines_of(self.token_file)[0]
            client = Client(
                self.service,
                token=or_in(TOKEN_VARIABLE, token),
                tls=self.tls,
                ca=self.ca,
                cert=self.client_cert,
                key=self.client_key,
            )
            stack.callback(client.close)
            return client.policy(self.policy or "")
        store = store_at(or_in(STORE_VARIABLE, self.store))
        if store is not None:
            stack.callback(store.close)
        if self.policies is not None:
            from throttled import load

            policies = load(self.policies, store=store)
            stack.callback(policies.close)
            return policies[self.policy or ""]
        return Throttled(
            quota=self.quota,
            using=self.using,
            store=MemoryStore() if store is None else store,
            key_prefix=DEFAULT_PREFIX if self.prefix is None else self.prefix,
        )


def or_in(variable: str, given: str | None) -> str | None:
    """What an option says, else what that variable of the environment does.

    A variable that is empty says nothing. An option that is empty does, and is wrong: it is likely
    to have been written with a variable that is not set.
    """
    return (os.environ.get(variable) or None) if given is None else given


def store_at(url: str | None) -> Store | None:
    """The store that a URL, or the word memory, means; None for None."""
    if url is None:
        return None
    if url == "memory":
        return MemoryStore()
    return RedisStore(server=url)


def lines_of(path: str) -> list[str]:
    """The tokens or the secret in a file, one a line."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise CommandError(f"{path}: is not text in UTF-8, must hold one line or more.") from None
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise CommandError(f"{path}: is empty, must hold one line or more.")
    return tokens


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say which limit is meant, as one argument `target`."""

    @wraps(command)
    def with_target(**given: Any) -> Any:
        target = Target(**{name: given.pop(name) for name in Target.__dataclass_fields__})
        return command(target=target, **given)

    return _with(_TARGET_OPTIONS, with_target)


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say how a service is asked by TLS."""
    return _with(_TLS_OPTIONS, command)


def _with(options: Sequence[Option], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def store_option() -> Option:
    """`--store`, which the environment may say as well."""
    return click.option(
        "--store",
        metavar="URL",
        help=f"redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, or memory; "
        f"{STORE_VARIABLE} by default.",
    )


def json_option() -> Option:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def algorithms_option() -> Option:
    """`--using`, where several may be given."""
    return click.option(
        "--using",
        multiple=True,
        type=click.Choice(RateLimiterType.choice()),
        help="An algorithm, or several; by default all.",
    )


_TLS_OPTIONS: Final = (
    click.option("--tls", is_flag=True, help="Ask the service by TLS."),
    click.option("--ca", metavar="FILE", help="Who signed its certificate; implies --tls."),
    click.option("--client-cert", metavar="FILE", help="To show to a service that asks for one."),
    click.option("--client-key", metavar="FILE", help="Its key."),
)

_TARGET_OPTIONS: Final = (
    click.option("--quota", metavar="TEXT", help='As "100/s burst 200", or "10/s; 1000/h".'),
    click.option(
        "--using",
        type=click.Choice(RateLimiterType.choice()),
        help="The algorithm; token_bucket by default.",
    ),
    click.option(
        "--prefix",
        metavar="TEXT",
        help=f"What keys in the store begin with; {DEFAULT_PREFIX} by default.",
    ),
    store_option(),
    click.option("--policies", metavar="FILE", help="A policy file, TOML or JSON."),
    click.option("--policy", metavar="NAME", help="Of the file, or of the service."),
    click.option("--service", metavar="HOST:PORT", help="Ask a service that decides."),
    click.option(
        "--token",
        metavar="TEXT",
        help=f"For the service. Others may see it in the list of processes; not so in "
        f"{TOKEN_VARIABLE}, or in a file.",
    ),
    click.option("--token-file", metavar="FILE", help="Holds the token."),
    *_TLS_OPTIONS,
)
