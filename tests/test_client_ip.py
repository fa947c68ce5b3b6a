"""Who calls: no header makes a caller somebody else, and keys of several parts never collide."""

from __future__ import annotations

import hashlib
import hmac
import logging
from ipaddress import IPv6Address, ip_address, ip_network
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from throttled.contrib.identity import UNKNOWN, client_ip, hashed, join
from throttled.exceptions import DataError

pytestmark = pytest.mark.realtime

PROXY, INNER = "10.0.0.1", "10.0.0.2"
CLIENT, FORGED = "203.0.113.5", "198.51.100.66"
TRUSTED = ["10.0.0.0/8", "fd00::/8"]
XFF, FORWARDED = "X-Forwarded-For", "Forwarded"


@pytest.fixture
def behind() -> Any:
    return client_ip(TRUSTED)


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(r.name == "throttled" and r.levelno == logging.WARNING for r in caplog.records)
    return [record.getMessage()[:5] for record in caplog.records]


class TestTrust:
    def test_without_trust_the_peer_is_the_client(self) -> None:
        assert client_ip()(CLIENT, {XFF: FORGED, FORWARDED: f"for={FORGED}"}) == CLIENT

    def test_a_peer_that_is_no_trusted_proxy_is_the_client(self, behind: Any) -> None:
        assert behind(CLIENT, {XFF: FORGED, FORWARDED: f"for={FORGED}"}) == CLIENT

    def test_the_rightmost_untrusted_entry_is_the_client(self, behind: Any) -> None:
        assert behind(PROXY, {XFF: f"{FORGED}, {CLIENT}"}) == CLIENT
        assert behind(PROXY, {XFF: f"{FORGED},{CLIENT} , {INNER}"}) == CLIENT
        assert behind(PROXY, {FORWARDED: f"for={FORGED}, for={CLIENT}, for={INNER}"}) == CLIENT

    def test_a_trusted_caller_without_further_entries_is_the_client(self, behind: Any) -> None:
        assert behind(PROXY, {}) == PROXY
        assert behind(PROXY, {XFF: INNER}) == INNER

    def test_proxies_may_be_given_as_addresses_and_networks(self) -> None:
        proxies = [ip_address(PROXY), ip_network("192.0.2.0/24"), "fd00::1"]
        for peer in (PROXY, "192.0.2.200", "fd00::1", f"::ffff:{PROXY}"):
            assert client_ip(proxies)(peer, {XFF: CLIENT}) == CLIENT
        assert client_ip(["::ffff:10.0.0.0/104"])(PROXY, {XFF: CLIENT}) == CLIENT

    @pytest.mark.parametrize("junk", ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "01.2.3.4"])
    def test_junk_ends_the_walk_at_the_proxy_that_wrote_it(self, behind: Any, junk: str) -> None:
        assert behind(PROXY, {XFF: f"{FORGED}, {junk}, {INNER}"}) == INNER
        assert behind(PROXY, {XFF: f"{FORGED}, {junk}"}) == PROXY
        assert behind(PROXY, {FORWARDED: f'for={FORGED}, for="{junk}", for={INNER}'}) == INNER
        assert client_ip(hops=2)(PROXY, {XFF: f"{FORGED}, {junk}"}) == PROXY
        assert client_ip(hops=2)(PROXY, {XFF: f"{FORGED}, {junk}, {INNER}"}) == INNER

    def test_a_peer_that_is_not_known_has_a_key_of_its_own(self, behind: Any) -> None:
        for peer in (None, "", "testclient"):
            assert behind(peer, {XFF: FORGED}) == UNKNOWN
            assert client_ip(hops=1)(peer, {}) == UNKNOWN


class TestHops:
    def test_as_many_entries_are_believed_as_there_are_proxies(self) -> None:
        line = {XFF: f"{FORGED}, {CLIENT}, 192.0.2.1"}
        assert client_ip(hops=1)("192.0.2.2", line) == "192.0.2.1"
        assert client_ip(hops=2)("192.0.2.2", line) == CLIENT
        assert client_ip(hops=3)("192.0.2.2", line) == FORGED

    def test_with_fewer_entries_the_peer_is_the_client(self) -> None:
        assert client_ip(hops=2)(PROXY, {XFF: FORGED}) == PROXY
        assert client_ip(hops=1)(PROXY, {}) == PROXY

    def test_an_empty_entry_counts(self) -> None:
        # A proxy that knew no address; skipping its entry would believe one of the caller's.
        assert client_ip(hops=2)(PROXY, {XFF: f"{FORGED}, , {INNER}"}) == INNER

    def test_a_proxy_on_a_unix_socket_can_be_believed(self) -> None:
        assert client_ip(hops=1)(None, {XFF: CLIENT}) == CLIENT


class TestHeaders:
    def test_several_lines_are_one_in_their_order(self, behind: Any) -> None:
        assert behind(PROXY, [(XFF, FORGED), ("Accept", "*/*"), (XFF, CLIENT)]) == CLIENT
        assert client_ip(hops=2)(PROXY, [(XFF, CLIENT), (XFF, INNER)]) == CLIENT

    def test_names_come_in_any_case_and_as_bytes(self, behind: Any) -> None:
        assert behind(PROXY, {"x-FORWARDED-for": CLIENT}) == CLIENT
        assert behind(PROXY, [(b"x-forwarded-for", CLIENT.encode())]) == CLIENT
        assert behind(PROXY, iter([(b"forwarded", b"for=" + CLIENT.encode())])) == CLIENT

    @pytest.mark.parametrize(
        "element",
        [
            f"for={CLIENT}",
            f"FOR={CLIENT};proto=https;by=10.0.0.9",
            f'proto=http; For="{CLIENT}:4711" ;host="a,b;for={FORGED}"',
            f'for="{CLIENT}:_port"',
            f"for={CLIENT}:80",
            f'for="\\2{CLIENT[1:]}"',
            f'for={CLIENT};host="\\",for={FORGED};x=\\""',
            f'for={CLIENT};host="\\\\"',
            f";for={CLIENT};;",
        ],
    )
    def test_an_element_of_forwarded_is_read_as_rfc_7239_says(
        self, behind: Any, element: str
    ) -> None:
        assert behind(PROXY, {FORWARDED: f"for={FORGED}, {element}"}) == CLIENT

    @pytest.mark.parametrize(
        "element",
        [
            "proto=https",
            f"for={CLIENT};for={FORGED}",
            f'for="";for={FORGED}',
            f'for="{CLIENT}',
            f"for={CLIENT} x",
            CLIENT,
            f"for = {CLIENT}",
        ],
    )
    def test_a_wrong_element_of_forwarded_is_junk(self, behind: Any, element: str) -> None:
        assert behind(PROXY, {FORWARDED: f"{element}"}) == PROXY

    @pytest.mark.parametrize("opened", ['for="', 'x="', '"', 'for=1.1.1.1;x="\\', "\\"])
    def test_a_quote_left_open_swallows_nothing(self, behind: Any, opened: str) -> None:
        line = f'for={FORGED}, {opened}, for="[2001:db8::1]:80";by="[fd00::1]"'
        assert behind(PROXY, {FORWARDED: line}) == "2001:db8::/64"

    def test_headers_that_agree_are_believed(self, behind: Any) -> None:
        both = {XFF: f"{CLIENT}, {INNER}", FORWARDED: f'for="{CLIENT}:1", for={INNER}'}
        assert behind(PROXY, both) == CLIENT

    def test_headers_that_disagree_are_believed_as_far_as_they_agree(self, behind: Any) -> None:
        assert behind(PROXY, {XFF: CLIENT, FORWARDED: f"for={FORGED}"}) == PROXY
        assert behind(PROXY, {XFF: FORGED, FORWARDED: f"for={CLIENT}"}) == PROXY
        both = {XFF: f"{CLIENT}, {INNER}", FORWARDED: f"for={FORGED}, for={INNER}"}
        assert behind(PROXY, both) == INNER
        assert behind(PROXY, {XFF: f"{CLIENT}, {INNER}", FORWARDED: f"for={INNER}"}) == INNER

    @pytest.mark.parametrize("mark", ["\\", '"', ",", " ", ";", "for=", 'a="', "[", '\\"'])
    def test_long_junk_takes_no_time(self, mark: str) -> None:
        line = mark * (200_000 // len(mark))
        begin = perf_counter()
        for trust in (client_ip(TRUSTED), client_ip(hops=1)):
            for name in (XFF, FORWARDED):
                assert trust(PROXY, {name: line}) == PROXY
                assert trust(PROXY, {name: f"{line}x"}) == PROXY
                assert trust(PROXY, {name: f"for={line}x"}) == PROXY
        assert perf_counter() - begin < 5


RESEMBLING = [
    *("[1.2.3.4]", "[2001:db8::1", "2001:db8::1]", "[::1]:x", "1.2.3.4:", "1.2.3.4:123456"),
    *("1.2.3.4%eth0", "1.2.3.4/8", "::1::", "1٢.2.3.4", "1" * 5000, " " * 99 + CLIENT, "\0"),
]


class TestAddresses:
    @pytest.mark.parametrize(
        ("said", "key"),
        [
            ("203.0.113.5:4711", CLIENT),
            ("::ffff:203.0.113.5", CLIENT),
            ("[::FFFF:203.0.113.5]:80", CLIENT),
            ("2001:db8::1", "2001:db8::/64"),
            ("[2001:DB8:0:0:ffff::1]", "2001:db8::/64"),
            ("[2001:db8::1]:443", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("[fe80::1%25en1]:80", "fe80::/64"),
        ],
    )
    def test_ports_zones_and_mapping_are_no_part_of_a_key(self, said: str, key: str) -> None:
        assert client_ip()(said, {}) == key
        assert client_ip(TRUSTED)(PROXY, {XFF: said}) == key
        assert client_ip(TRUSTED)(PROXY, {FORWARDED: f'for="{said}"'}) == key

    @pytest.mark.parametrize("said", RESEMBLING)
    def test_what_only_resembles_an_address_is_junk(self, behind: Any, said: str) -> None:
        assert behind(PROXY, {XFF: said}) == PROXY

    @pytest.mark.parametrize(
        ("prefix", "key"),
        [(32, "2001:db8::/32"), (56, "2001:db8:a:bc00::/56"), (128, "2001:db8:a:bcde::1")],
    )
    def test_ipv6_is_grouped_by_the_prefix(self, prefix: int, key: str) -> None:
        assert client_ip(ipv6_prefix=prefix)("2001:db8:a:bcde::1", {}) == key
        assert client_ip(ipv6_prefix=prefix)(CLIENT, {}) == CLIENT

    @given(st.ip_addresses(v=6), st.integers(32, 128))
    def test_a_key_is_the_network_of_the_address(self, address: IPv6Address, prefix: int) -> None:
        if address.ipv4_mapped is None:
            key = client_ip(ipv6_prefix=prefix)(str(address), {})
            assert ip_network(key) == ip_network((address, prefix), strict=False)


# Whatever a caller may send: forged entries, both headers, pieces of their grammar.
entries = st.sampled_from([FORGED, PROXY, INNER, "unknown", "_x", "fd00::2", "", "::ffff:1.1.1.1"])
pieces = entries | st.sampled_from(["for=", ",", ";", '"', "\\", '\\"', " ", "[", "]", "x=", ":1"])
values = st.lists(pieces, max_size=12).map("".join) | st.lists(entries, max_size=5).map(",".join)
lines = st.lists(st.tuples(st.sampled_from([XFF, FORWARDED]), values | st.text()), max_size=4)
clients = st.sampled_from([CLIENT, "2001:db8:1:2::3"])
QUOTED = 'for="[{}]:80";proto="http"'


def appended(headers: list[tuple[str, str]], name: str, entry: str) -> list[tuple[str, str]]:
    """What a proxy passes on: all lines of one header as one, its own entry at the end."""
    mine = [value for other, value in headers if other == name]
    return [(o, v) for o, v in headers if o != name] + [(name, ", ".join([*mine, entry]))]


class TestForgery:
    @given(lines)
    def test_without_a_trusted_peer_no_header_changes_anything(self, headers: Any) -> None:
        for trust in (client_ip(), client_ip(TRUSTED)):
            assert trust(CLIENT, headers) == CLIENT

    @given(lines, clients, st.sampled_from([XFF, FORWARDED]), st.integers(1, 3), st.booleans())
    @example([(FORWARDED, f'for={FORGED}, for="')], "2001:db8:1:2::3", FORWARDED, 1, True)
    def test_no_header_gives_an_address_for_which_no_trusted_proxy_vouched(
        self, headers: Any, client: str, name: str, proxies: int, counting: bool
    ) -> None:
        # Each proxy appends whom it saw to the one header that it knows; the other goes through.
        hops = [client, *(f"10.0.1.{n}" for n in range(proxies))]
        forged = {other for other, _ in headers if other != name}
        for seen in hops[:proxies]:
            node = QUOTED.format(seen) if ":" in seen else f"for={seen}"
            headers = appended(headers, name, seen if name == XFF else node)
        trust = client_ip(hops=proxies) if counting else client_ip(TRUSTED)
        vouched = [client_ip()(hop, {}) for hop in hops]
        key = trust(hops[-1], headers)
        assert key in vouched
        if not forged:  # then the walk does not end early either
            assert key == vouched[0]

    @given(lines, st.none() | st.text(max_size=20), st.integers(1, 3))
    def test_nothing_that_is_sent_raises(self, headers: Any, peer: str | None, hops: int) -> None:
        for trust in (client_ip(), client_ip(TRUSTED), client_ip(hops=hops)):
            key = trust(peer, headers)
            assert key == UNKNOWN or ip_network(key)


class TestWarnings:
    def test_untrusted_headers_are_told_once_for_each_object(self, caplog: Any) -> None:
        first, second = client_ip(), client_ip(trusted_proxies=[])
        first(CLIENT, {"Accept": "*/*"})
        assert codes(caplog) == []
        for _ in range(3):
            first(CLIENT, {XFF: FORGED})
        assert codes(caplog) == ["TH001"]
        assert FORGED not in caplog.text
        second(CLIENT, {FORWARDED: f"for={FORGED}"})
        assert codes(caplog) == ["TH001"] * 2

    def test_a_neighbour_that_forwards_is_told_and_a_forging_stranger_is_not(
        self, caplog: Any
    ) -> None:
        behind = client_ip(TRUSTED)
        behind("8.8.8.8", {XFF: FORGED})
        assert codes(caplog) == []
        behind("172.17.0.1", {XFF: CLIENT})
        assert codes(caplog) == ["TH001"]
        assert "172.17.0.1" in caplog.text

    def test_an_unknown_peer_is_told_once(self, caplog: Any) -> None:
        who = client_ip()
        assert [who(None, {}) for _ in range(2)] == [UNKNOWN] * 2
        assert codes(caplog) == ["TH002"]

    def test_too_many_hops_are_told_once_and_a_direct_probe_is_not(self, caplog: Any) -> None:
        who = client_ip(hops=2)
        who(PROXY, {})
        assert codes(caplog) == []
        for _ in range(2):
            who(PROXY, {XFF: CLIENT})
        assert codes(caplog) == ["TH003"]

    def test_headers_that_disagree_are_told_once(self, caplog: Any) -> None:
        who = client_ip(TRUSTED)
        for _ in range(2):
            who(PROXY, {XFF: CLIENT, FORWARDED: f"for={FORGED}"})
        assert codes(caplog) == ["TH004"]

    def test_what_is_set_up_well_is_quiet(self, caplog: Any) -> None:
        client_ip(TRUSTED)(PROXY, {XFF: CLIENT})
        client_ip(hops=1)(PROXY, {XFF: CLIENT})
        client_ip()(CLIENT, {})
        assert codes(caplog) == []


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"trusted_proxies": ["10.0.0.0/8"], "hops": 1}, r"10\.0\.0\.0/8.*hops=1"),
            ({"trusted_proxies": [], "hops": 1}, r"\[\].*hops=1"),
            ({"trusted_proxies": "10.0.0.0/8"}, "'10.0.0.0/8'"),
            ({"trusted_proxies": 8}, "got 8"),
            ({"trusted_proxies": [8]}, "got 8"),
            ({"trusted_proxies": [b"\n\0\0\1"]}, "got b"),
            ({"trusted_proxies": ["10.0.0.1/8"]}, "'10.0.0.1/8'.*host bits"),
            ({"trusted_proxies": ["10.0.0.0/33"]}, "'10.0.0.0/33'"),
            ({"trusted_proxies": ["proxy.local"]}, "'proxy.local'"),
            ({"trusted_proxies": ["0.0.0.0/0"]}, "'0.0.0.0/0'.*hops="),
            ({"trusted_proxies": ["::/0"]}, "'::/0'"),
            ({"trusted_proxies": ["::ffff:0:0/96"]}, "'::ffff:0:0/96'"),
            ({"hops": 0}, "got 0"),
            ({"hops": -1}, "got -1"),
            ({"hops": True}, "got True"),
            ({"hops": 1.0}, "got 1.0"),
            ({"hops": "1"}, "got '1'"),
            ({"ipv6_prefix": 31}, "got 31"),
            ({"ipv6_prefix": 129}, "got 129"),
            ({"ipv6_prefix": None}, "got None"),
            ({"ipv6_prefix": 64.0}, "got 64.0"),
        ],
    )
    def test_they_are_named_when_it_is_built(self, arguments: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            client_ip(**arguments)


parts = st.lists(st.text("ab|~01%:", max_size=5), min_size=1, max_size=4)


class TestKeys:
    @given(parts, parts)
    @example(["a|b"], ["a", "b"])
    @example(["a~1b"], ["a|b"])
    @example(["", ""], [""])
    def test_different_parts_make_different_keys(self, one: list[str], other: list[str]) -> None:
        assert (join(*one) == join(*other)) is (one == other)

    def test_a_key_of_parts_can_be_read(self) -> None:
        assert join("alice", "/items/{id}", "2001:db8::/64") == "alice|/items/{id}|2001:db8::/64"

    @pytest.mark.parametrize("wrong", [(), ("a", None), ("a", 1), (b"a",)])
    def test_parts_that_are_no_text_are_refused(self, wrong: Any) -> None:
        with pytest.raises(DataError):
            join(*wrong)

    def test_a_hash_is_sha_256_or_hmac(self) -> None:
        assert hashed("key") == hashlib.sha256(b"key").hexdigest()
        assert hashed("key", "pepper") == hmac.new(b"pepper", b"key", "sha256").hexdigest()
        assert hashed("key", b"pepper") == hashed("key", "pepper")
        assert len(hashed("\udcff")) == 64

    @pytest.mark.parametrize("secret", ["", b"", True, False, 7])
    def test_a_secret_that_is_none_is_refused(self, secret: Any) -> None:
        with pytest.raises(DataError, match="secret"):
            hashed("key", secret)

    def test_a_value_that_is_no_text_is_refused_without_being_shown(self) -> None:
        wrong: Any = b"topsecret"
        with pytest.raises(DataError) as caught:
            hashed(wrong)
        assert "topsecret" not in str(caught.value)
