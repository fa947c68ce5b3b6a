"""Requests built from `layout.json` alone, and a Node program that does the same."""

from __future__ import annotations

import hmac
import json
import re
import subprocess
from base64 import b64decode
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent


def filled(template: str, **values: object) -> str:
    return re.sub(r"<(\w+)>", lambda match: str(values[match[1]]), template)


class ByLayout:
    """Keys, groups and requests as an exported layout says."""

    def __init__(self, directory: Path) -> None:
        self.layout: dict[str, Any] = json.loads((directory / "layout.json").read_text("utf-8"))
        self.script = (directory / "decide.lua").read_bytes()

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(
        self, algorithm: str, quota: str, prefix: str, name: str | None = None
    ) -> dict[str, Any]:
        key, hold = self.layout["key"], self.layout["hold"]
        if algorithm == hold["name"]:
            template = filled(key["hold"], prefix=prefix, tag="<tag>")
            return {**{each: hold[each] for each in ("rule", "limit", "period", "burst")}} | {
                "template": template
            }
        of = self.layout["algorithms"][algorithm]
        match = re.fullmatch(r"(\d+)/(\d*)([a-z]+)(?: burst (\d+))?", quota)
        assert match is not None
        limit, count, unit, burst = match.groups()
        period = int(count or 1) * self.layout["quota"]["units"][unit]
        bursts = {"limit": limit, "burst": burst or limit}
        values = {"prefix": prefix, "algorithm": algorithm, "period": period, "name": name}
        template = filled(key["named" if name else "plain"], **values, tag="<tag>")
        numbers = {"limit": int(limit), "period": period, "burst": int(bursts[of["burst"]])}
        return {"rule": of["rule"], **numbers, "template": template}

    def written(self, text: str, secret: Any) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        if secret is True:
            return sha256(raw).hexdigest()
        if secret:
            return hmac.digest(secret.encode(), raw, "sha256").hex()
        for one, other in self.layout["key"]["escapes"]:
            text = text.replace(one, other)
        return text

    def key(
        self,
        plan: dict[str, Any],
        key: str,
        slot: str | None = None,
        secret: Any = None,
        mark: str | None = None,
    ) -> str:
        tags = self.layout["key"]["tags"]
        if slot is None:
            tag = tags["plain" if mark is None else "mark"]
        else:
            tag = tags["in_a_slot" if mark is None else "mark_in_a_slot"]
        written = {"key": self.written(key, secret), "mark": mark}
        written["slot"] = self.written(slot or "", secret)
        return filled(plan["template"], tag=filled(tag, **written))

    def whole(self, value: Any) -> str:
        infinite = self.layout["formats"]["infinite"]
        if isinstance(value, str):
            return value
        if value in (inf, -inf):
            return str(infinite["positive" if value > 0 else "negative"])
        return f"{int(value)}"

    def group(self, op: str, plan: dict[str, Any], a: Any, b: Any, more: bool = False) -> list[str]:
        values = {**plan, "op": op + self.layout["together"]["suffix"] * more, "a": a, "b": b}
        return [self.whole(values[field]) for field in self.layout["group"]]

    def words(
        self, keys: list[str], groups: list[list[str]], now: Any = "", source: bool = False
    ) -> list[str | bytes]:
        """The words of a request."""
        values: dict[str, list[Any]] = {
            "script_sha1": [self.layout["script_sha1"]],
            "script": [self.script],
            "count": [str(len(keys))],
            "keys": keys,
            "now": [self.whole(now)],
            "groups": [word for group in groups for word in group],
        }
        found: list[str | bytes] = []
        for word in self.layout["call"]["unknown" if source else "known"]:
            found += values[word[1:-1]] if word.startswith("<") else [word]
        return found

    def request(self, calls: list[dict[str, Any]], now: Any = "", source: bool = False) -> bytes:
        """The bytes of a request: `calls` have plan, key, op, a, b and more."""
        keys, groups = [], []
        for call in calls:
            plan = self.plan(*call["plan"])
            keys.append(self.key(plan, call["key"], **call.get("keyed", {})))
            groups.append(
                self.group(call["op"], plan, call["a"], call["b"], call.get("more", False))
            )
        words = [
            word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass")
            for word in self.words(keys, groups, now, source)
        ]
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        return b"*%d\r\n" % len(words) + b"".join(parts)


class Node:
    """`share.mjs` on an exported contract; it connects to a server at that port."""

    def __init__(self, node: str, directory: Path, port: int) -> None:
        self._process = subprocess.Popen(
            [node, str(HERE / "share.mjs"), str(directory), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def send(self, do: str, **call: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **call}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the Node program has ended"
        return json.loads(line)

    def ask(self, do: str, **call: Any) -> Any:
        self.send(do, **call)
        return self.answer()

    def request(self, calls: list[dict[str, Any]], now: Any = "", source: bool = False) -> bytes:
        return b64decode(self.ask("request", calls=calls, now=now, source=source))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
