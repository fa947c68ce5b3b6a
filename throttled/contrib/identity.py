"""Who calls: the client's address behind proxies, and keys put together from several parts.

Most callers want `client_ip`:

    who = client_ip(trusted_proxies=["10.0.0.0/8"])
    who("10.0.0.7", {"X-Forwarded-For": "198.51.100.9, 203.0.113.5"})    # "203.0.113.5"

Theory of operation
-------------------
* Anybody can send a forwarded header; only what trusted proxies appended to it means something.
  Each appends the address that it saw, at the right. So the walk begins at the peer, the other end
  of the connection, and goes on to the next entry from the right for as long as whoever wrote that
  entry is trusted. What the caller wrote himself stands further left and is never reached.
* An entry that is no address (junk, `unknown`, an obfuscated `_name`) ends the walk at the proxy
  that wrote it. Obfuscated names are no keys: a proxy may make a new one for each request.
* With both `X-Forwarded-For` and `Forwarded`, the walk ends at the last hop on which both agree.
  A proxy that writes one of them often lets the other through as the caller sent it, and nothing
  in the request tells which. Preferring either would believe callers somewhere; like this, a
  caller who adds the other header only comes to share the key of the proxy.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final, TypeAlias, cast

from throttled._text import shown
from throttled.exceptions import DataError
from throttled.store.wire import digest_of

__all__ = ["UNKNOWN", "ClientIP", "client_ip", "hashed", "join"]

logger = logging.getLogger("throttled")

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network
#: Names in any case; as pairs, in text or in the bytes of ASGI.
Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]

#: The key of callers whose address is not known, as over a Unix socket; all of them share it.
UNKNOWN: Final = "unknown"

_UNTRUSTED: Final = (
    "TH001: forwarded headers came from %s, which is not a trusted proxy, and were ignored. If it "
    "is your proxy, all its callers share one limit: say trusted_proxies= or hops=."
)
_UNKNOWN_PEER: Final = (
    "TH002: the client's address is not known: all such callers share the key %r. If a proxy "
    "connects by a Unix socket, say hops=."
)
_TOO_FEW: Final = (
    "TH003: a forwarded header has fewer entries than hops=%d, so the peer's address was taken. If "
    "it came through your proxies, hops= is too high and all callers share one limit."
)
_DISAGREE: Final = (
    "TH004: X-Forwarded-For and Forwarded disagree, so the last hop on which they agree was taken. "
    "Let your proxy remove the one that it does not write itself."
)

# Requests that are looked at for forwarded headers that nobody trusts: proxies send them always.
_LOOKED_AT: Final = 1000

# Longer than any address with its zone and port; what is longer is neither read nor kept.
_LONGEST: Final = 100
_WITH_PORT: Final = re.compile(
    r"(?:\[(?P<v6>[^\[\]]*:[^\[\]]*)\]|(?P<v4>[0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
)
# One pair of a `Forwarded` element. Values that should be quoted and are not (a port, an IPv6
# address) are common and harmless: they cannot reach beyond their pair.
_PAIR: Final = re.compile(
    r"[ \t]*+(?:(?P<name>[A-Za-z0-9_-]+)="
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^ \t",;=\\]+)))?[ \t]*+(?:;|\Z)'
)
_ESCAPE: Final = re.compile(r"\\(.)")
# A quote with the backslashes before it (looked at once, however many there are), or a comma.
_MARK: Final = re.compile(r'(?<!\\)(\\*)"|,')


def client_ip(
    trusted_proxies: Iterable[str | _Network | _Address] | None = None,
    *,
    hops: int | None = None,
    ipv6_prefix: int = 64,
) -> ClientIP:
    """What tells the client's address, as a key, from the peer's address and the headers.

    Say one of the two, or neither if callers connect directly and forwarded headers mean nothing:

    - `trusted_proxies`: the addresses of your proxies and their networks, such as `10.0.0.0/8`.
    - `hops`: how many proxies every request comes through, at least 1, where their addresses are
      not known in advance. Each must append its entry, and nobody may reach the application
      around them: that cannot be seen from here, and he would choose his own address.

    IPv6 addresses are grouped by `ipv6_prefix`, 32 to 128 bits, since one subscriber commonly
    holds a whole /64 and may change his address at will.

    Raises `DataError` for anything else, and for a network of all addresses: callers would be
    among the trusted.
    """
    if trusted_proxies is not None and hops is not None:
        raise DataError(
            f"Invalid trust: got both trusted_proxies={shown(trusted_proxies)} and "
            f"hops={shown(hops)}, must be one of them."
        )
    if hops is not None and (type(hops) is not int or hops < 1):
        raise DataError(f"Invalid hops: got {shown(hops)}, must be an integer of at least 1.")
    if type(ipv6_prefix) is not int or not 32 <= ipv6_prefix <= 128:
        raise DataError(
            f"Invalid ipv6_prefix: got {shown(ipv6_prefix)}, must be an integer from 32 to 128."
        )
    return ClientIP(_networks(trusted_proxies), hops or 0, ipv6_prefix)


class ClientIP:
    """Call it with the peer's address and the headers for the client's key; see `client_ip`.

    The key is an IPv4 address, an IPv6 network such as `2001:db8::/64` (an address if the prefix
    is 128), or `UNKNOWN`. No headers make it raise. Misuse that can be seen is logged once for
    each object, as a warning with its code.
    """

    __slots__ = ("_hops", "_mask", "_networks", "_suffix", "_unlooked", "_unsaid")

    def __init__(self, networks: tuple[_Network, ...], hops: int, ipv6_prefix: int) -> None:
        self._networks = networks
        self._hops = hops
        self._mask = (1 << 128) - (1 << (128 - ipv6_prefix))
        self._suffix = f"/{ipv6_prefix}" if ipv6_prefix < 128 else ""
        self._unsaid = {_UNTRUSTED, _UNKNOWN_PEER, _TOO_FEW, _DISAGREE}
        self._unlooked = _LOOKED_AT

    def __repr__(self) -> str:
        if self._networks:
            return f"client_ip(trusted_proxies={[str(each) for each in self._networks]})"
        return f"client_ip(hops={self._hops})" if self._hops else "client_ip()"

    def __call__(self, peer: str | None, headers: Headers) -> str:
        if not self._networks and not self._hops and not self._unlooked:
            key = _key_of(peer, self._mask, self._suffix) if peer else None
            return self._key(None) if key is None else key
        here = _address(peer) if peer else None
        if self._trusts(here):
            return self._key(self._client(here, headers))
        # A caller from the internet who sends such headers is no misuse where proxies are named.
        if (
            self._unlooked
            and not (self._networks and here is not None and here.is_global)
            and any(_forwarded(headers))
            and not _names(here, headers)
        ):
            self._warn(_UNTRUSTED, here or UNKNOWN)
            self._unlooked = 1
        self._unlooked = max(self._unlooked - 1, 0)
        return self._key(here)

    def _client(self, here: _Address | None, headers: Headers) -> _Address | None:
        """The farthest hop that all headers there are vouch for."""
        x_forwarded_for, forwarded = _forwarded(headers)
        paths: list[list[_Address | None]] = []
        if x_forwarded_for:
            entries = reversed(",".join(x_forwarded_for).split(","))
            paths.append(self._path(here, entries))
        if forwarded:
            nodes = (_node(element) for element in _elements(",".join(forwarded)))
            paths.append(self._path(here, nodes))
        if not paths:
            return here
        if len(paths) == 1 or paths[0] == paths[1]:
            return paths[0][-1]
        self._warn(_DISAGREE)
        agreed = here
        for one, other in zip(*paths, strict=False):
            if one != other:
                break
            agreed = one
        return agreed

    def _path(self, here: _Address | None, entries: Iterator[str]) -> list[_Address | None]:
        """The hops from the peer to the client, by the entries of a header from its right."""
        path = [here]
        if self._hops:
            counted = list(islice(entries, self._hops))
            if len(counted) < self._hops:
                self._warn(_TOO_FEW, self._hops)
                return path
            entries = iter(counted)
        for entry in entries:
            address = _address(entry)
            if address is None:
                break
            path.append(address)
            if not self._trusts(address):
                break
        return path

    def _trusts(self, address: _Address | None) -> bool:
        """Whether what this hop says of the next one is believed."""
        if self._hops:
            return True
        return address is not None and any(address in network for network in self._networks)

    def _key(self, address: _Address | None) -> str:
        if address is None:
            self._warn(_UNKNOWN_PEER, UNKNOWN)
            return UNKNOWN
        return _grouped(address, self._mask, self._suffix)

    def _warn(self, text: str, *values: object) -> None:
        try:
            self._unsaid.remove(text)  # one step, so that of several threads one says it
        except KeyError:
            return
        logger.warning(text, *values)


def join(*parts: str) -> str:
    """One key of several parts, such as a user and a path: different parts, different keys.

    The parts stand between bars; a bar inside a part becomes `~1` and a tilde `~0`, as in a JSON
    Pointer. Raises `DataError` without parts, and for one that is no text: `None` would become a
    key that all callers share.
    """
    if not parts:
        raise DataError("Invalid parts: got none, must be at least one text.")
    for part in parts:
        if not isinstance(part, str):
            raise DataError(f"Invalid part: got {shown(part)}, must be a text.")
    return "|".join(part.replace("~", "~0").replace("|", "~1") for part in parts)


def hashed(value: str, secret: str | bytes | None = None) -> str:
    """The digest of a value that should be seen nowhere, such as an API key, in hexadecimal.

    It is SHA-256, or HMAC with SHA-256 if there is a `secret`: take one where values could be
    guessed. Raises `DataError` for a value that is no text, and for an empty secret.
    """
    # Neither stands in a message: both may be secrets.
    if not isinstance(value, str):
        raise DataError(f"Invalid value: got {type(value).__name__}, must be a text.")
    if secret is not None and (not isinstance(secret, str | bytes) or not secret):
        raise DataError(
            f"Invalid secret: got {type(secret).__name__}, must be a non-empty str or bytes."
        )
    digest = digest_of(True if secret is None else secret)
    assert digest is not None
    return digest(value)


def text_of(part: str | bytes) -> str:
    """The name or the value of a header, which ASGI has in bytes."""
    return part if isinstance(part, str) else part.decode("latin-1")


def _networks(trusted: Iterable[str | _Network | _Address] | None) -> tuple[_Network, ...]:
    """The networks of the proxies, those of IPv4-mapped addresses folded as addresses are."""
    if trusted is None:
        return ()
    if isinstance(trusted, str | bytes) or not isinstance(trusted, Iterable):
        raise DataError(
            f"Invalid trusted_proxies: got {shown(trusted)}, must be a list of networks such as "
            f"['10.0.0.0/8']."
        )
    return tuple(_network(one) for one in trusted)


def _network(one: object) -> _Network:
    # Numbers and bytes are networks to `ipaddress`: 8 would be 0.0.0.8.
    if not isinstance(one, str | IPv4Network | IPv6Network | IPv4Address | IPv6Address):
        raise DataError(f"Invalid trusted_proxies: got {shown(one)}, must be networks as text.")
    try:
        network = ip_network(one)
    except ValueError as error:
        raise DataError(f"Invalid trusted_proxies: got {shown(one)}: {error}.") from None
    mapped = network.network_address
    if isinstance(mapped, IPv6Address) and mapped.ipv4_mapped and network.prefixlen >= 96:
        network = IPv4Network((mapped.ipv4_mapped, network.prefixlen - 96))
    if not network.prefixlen:
        raise DataError(
            f"Invalid trusted_proxies: got {shown(one)}, which trusts all addresses, so that "
            f"callers could choose theirs; say hops= instead."
        )
    return network


def _forwarded(headers: Headers) -> tuple[list[str], list[str]]:
    """The lines of `X-Forwarded-For` and those of `Forwarded`, in their order."""
    x_forwarded_for: list[str] = []
    forwarded: list[str] = []
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    for name, value in cast("Iterable[tuple[str | bytes, str | bytes]]", pairs):
        if len(name) not in (9, 15):  # most headers are others, and told by that
            continue
        text = text_of(name)
        lines = {"forwarded": forwarded, "x-forwarded-for": x_forwarded_for}.get(text.lower())
        if lines is not None:
            lines.append(text_of(value))
    return x_forwarded_for, forwarded


def _names(address: _Address | None, headers: Headers) -> bool:
    """Whether forwarded headers name an address: if it is the peer's, the server has read them
    already, and hands over as the peer whom they name."""
    x_forwarded_for, forwarded = _forwarded(headers)
    entries = ",".join(x_forwarded_for).split(",")
    entries += [_node(element) for element in _elements(",".join(forwarded))]
    return address is not None and any(_address(entry) == address for entry in entries)


def _elements(text: str) -> Iterator[str]:
    """The elements of a `Forwarded` header from the right.

    From the left, a quote that the caller left open would swallow what the proxies appended.
    """
    end = len(text)
    quoted = False
    for mark in reversed(list(_MARK.finditer(text))):
        if mark[1] is not None:
            # After an odd number of backslashes a quote is part of the quoted text.
            quoted ^= not (quoted and len(mark[1]) % 2)
        elif not quoted:
            yield text[mark.end() : end]
            end = mark.start()
    yield text[:end]


def _node(element: str) -> str:
    """What an element of a `Forwarded` header (RFC 7239) says after `for=`; "" if it is wrong."""
    node: str | None = None
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return ""
        position = pair.end()
        if (pair["name"] or "").lower() == "for":
            if node is not None:  # said twice: one of the two is not the proxy's
                return ""
            node = pair["token"] or _ESCAPE.sub(r"\1", pair["quoted"])
    return node or ""


def _address(text: str) -> _Address | None:
    """The address in a text, without port and zone, IPv4-mapped IPv6 as IPv4; None if junk."""
    return _parsed(text.strip(" \t")) if len(text) <= _LONGEST else None


@lru_cache(maxsize=1024)
def _key_of(text: str, mask: int, suffix: str) -> str | None:
    """The key of a peer's address; None if that is none."""
    address = _address(text)
    return None if address is None else _grouped(address, mask, suffix)


def _grouped(address: _Address, mask: int, suffix: str) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) & mask)}{suffix}"


@lru_cache(maxsize=1024)
def _parsed(text: str) -> _Address | None:
    node = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((node["v6"] or node["v4"]) if node else text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))
