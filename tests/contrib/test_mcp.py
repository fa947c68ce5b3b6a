"""Limits of MCP tools: with the real client in one process, and over real streamable HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
import pytest
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server as LowLevelServer
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent
from pydantic import BaseModel

import throttled.asyncio
from tests.contract import PATIENT
from tests.flavours import faults
from tests.servers import HOST, Server, free_port
from throttled import MemoryStore
from throttled.contrib.identity import join
from throttled.contrib.keys import by_route, combined
from throttled.contrib.mcp import PROBLEM, Outcome, RateLimit, ToolCall, by_session, limit_tools
from throttled.exceptions import DataError
from throttled.testing import FakeClock

MODES = ["auto", "legacy"]


class Place(BaseModel):
    """What a tool of this module takes and gives, by an annotation that is text."""

    name: str


def shop(*limits: Callable[[Any], Any]) -> MCPServer:
    """A server of a plain and an async tool, both with the decorators given."""
    server = MCPServer("shop", log_level="CRITICAL")

    def plain(text: str, times: int = 1) -> str:
        """Says it."""
        if text == "crash":
            raise ZeroDivisionError("secret")
        if text == "fail":
            raise ToolError("as foreseen")
        return text * times

    async def waiting(text: str, times: int = 1) -> str:
        """Says it, async."""
        await asyncio.sleep(0)
        return plain(text, times)

    for tool in (plain, waiting):
        limited: Any = tool
        for limit in limits:
            limited = limit(limited)
        server.tool()(limited)
    return server


async def said(client: Client, tool: str, text: str = "a", **arguments: Any) -> str:
    """What a tool answers; "!" before an error."""
    result = await client.call_tool(tool, {"text": text, **arguments})
    return "!" * result.is_error + result.content[0].text


REFUSED = "!Too many requests. Try again in {} seconds."


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["plain", "waiting"])
async def test_a_decorated_tool_is_limited(
    mode: Any, tool: str, store: MemoryStore, clock: FakeClock
) -> None:
    async with Client(shop(RateLimit("2/m", store=store)), mode=mode) as client:
        assert [await said(client, tool) for _ in range(2)] == ["a", "a"]
        assert await said(client, tool) == REFUSED.format(30)
        clock.advance(30)
        assert await said(client, tool) == "a"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["plain", "waiting"])
async def test_the_tools_of_a_server_are_limited(
    mode: Any, tool: str, store: MemoryStore, clock: FakeClock
) -> None:
    server = shop()
    limit_tools(server, "3/m", rules={tool: "2/m"}, store=store)
    async with Client(server, mode=mode) as client:
        assert [await said(client, tool) for _ in range(2)] == ["a", "a"]
        assert await said(client, tool) == REFUSED.format(30)
        other = "plain" if tool == "waiting" else "waiting"
        # The refused call has taken nothing of what all tools share.
        assert await said(client, other) == "a"
        assert await said(client, other) == REFUSED.format(20)


@pytest.mark.parametrize("decorated", [True, False])
async def test_a_refusal_is_a_tool_error_with_its_problem(
    decorated: bool, store: MemoryStore
) -> None:
    server = shop(*[RateLimit("1/m", store=store)] * decorated)
    if not decorated:
        limit_tools(server, "1/m", store=store)
    async with Client(server) as client:
        tools = await client.list_tools()
        assert all(tool.output_schema for tool in tools.tools)
        await client.call_tool("plain", {"text": "a"})
        refused = await client.call_tool("plain", {"text": "a"})
    assert refused.is_error
    assert refused.structured_content is None
    assert refused.meta is not None
    problem = refused.meta[PROBLEM]
    assert problem["status"] == 429
    assert problem["retry_after"] == 60
    assert problem["violated-policies"] == ["1/m"]


async def test_what_models_see_of_a_tool_stays_as_it_is(store: MemoryStore) -> None:
    limit = RateLimit("9/m", store=store)

    async def described(server: MCPServer) -> list[Any]:
        async with Client(server) as client:
            return [tool.model_dump() for tool in (await client.list_tools()).tools]

    assert await described(shop(limit)) == await described(shop())


async def test_the_context_is_given_to_tools_that_ask_for_it(store: MemoryStore) -> None:
    server = MCPServer("shop")

    @server.tool()
    @RateLimit("1/m", store=store)
    async def asks(text: str, where: Context) -> str:
        return f"{text} {where.request_context.method}"

    @server.tool()
    @RateLimit("1/m", store=store)
    def asks_plainly(where: Context, **more: Any) -> str:
        return where.request_context.method

    async with Client(server) as client:
        schema = (await client.list_tools()).tools[0].input_schema
        assert list(schema["properties"]) == ["text"]
        assert await said(client, "asks") == "a tools/call"
        assert await said(client, "asks") == REFUSED.format(60)


async def test_annotations_mean_what_they_mean_where_the_tool_is(store: MemoryStore) -> None:
    def go(place: Place, unit: Literal["km", "mi"] = "km") -> list[Place]:
        return [place]

    server = MCPServer("shop")
    server.tool()(RateLimit("1/m", store=store)(go))
    server.tool(name="free")(go)
    async with Client(server) as client:
        limited, free = [tool.model_dump() for tool in (await client.list_tools()).tools]
        assert limited | {"name": "free"} == free
        result = await client.call_tool("go", {"place": {"name": "here"}})
    assert result.structured_content == {"result": [{"name": "here"}]}


async def test_a_tool_keeps_its_name_signature_and_kind() -> None:
    def plain(text: str, times: int = 1) -> str:
        """Says it."""
        return text * times

    async def waiting() -> int:
        return 5

    limit = RateLimit("1/m")
    assert limit(plain).__name__ == "plain"
    assert limit(plain).__doc__ == "Says it."
    assert asyncio.iscoroutinefunction(limit(waiting))
    assert not asyncio.iscoroutinefunction(limit(plain))
    # Called as a function it is one: nobody's request, so nobody's limit.
    assert [limit(plain)("a", times=2) for _ in range(3)] == ["aa"] * 3
    assert [await limit(waiting)() for _ in range(3)] == [5] * 3


async def test_arguments_that_are_wrong_do_not_count_for_a_decorator(store: MemoryStore) -> None:
    async with Client(shop(RateLimit("1/m", store=store))) as client:
        assert (await client.call_tool("plain", {"times": "many"})).is_error
        assert await said(client, "plain") == "a"


@pytest.mark.parametrize("decorated", [True, False])
async def test_a_tool_costs_by_its_arguments(decorated: bool, store: MemoryStore) -> None:
    def cost(call: ToolCall) -> int:
        return int(call.arguments["times"])

    server = shop(*[RateLimit("5/m", store=store, cost=cost)] * decorated)
    if not decorated:
        limit_tools(server, "5/m", store=store, cost=cost)
    async with Client(server) as client:
        assert await said(client, "plain", times=4) == "aaaa"
        assert await said(client, "plain", times=2) == REFUSED.format(12)
        assert await said(client, "plain", times=1) == "a"
        never = await said(client, "plain", times=6)
        assert never == "!This request costs more than its quota can ever hold."


async def test_functions_are_given_the_call(store: MemoryStore) -> None:
    seen: list[Any] = []

    async def key(call: ToolCall) -> str:
        seen.append((call.name, dict(call.arguments), call.method, call.path, call.peer, call.user))
        return "everyone"

    server = shop(RateLimit("9/m", store=store, key=key))
    limit_tools(server, "9/m", store=store, key=key, exempt=lambda call: call.name == "waiting")
    async with Client(server) as client:
        await said(client, "plain")
        await said(client, "waiting")
    wire = ("plain", {"text": "a"}, "MCP", "/plain", None, None)
    assert seen == [
        wire,
        ("plain", {"text": "a", "times": 1}, *wire[2:]),
        ("waiting", {"text": "a", "times": 1}, "MCP", "/waiting", None, None),
    ]


async def test_sessions_are_told_apart(store: MemoryStore) -> None:
    server = shop(RateLimit("1/m", store=store))
    async with Client(server, mode="legacy") as one, Client(server, mode="legacy") as other:
        assert [await said(one, "plain"), await said(other, "plain")] == ["a", "a"]
        assert [(await said(each, "plain"))[0] for each in (one, other)] == ["!", "!"]
        assert await said(one, "waiting") == "a"  # a scope of its own


async def test_each_tool_can_have_a_limit_of_its_own(store: MemoryStore) -> None:
    server = shop()
    limit_tools(server, "1/m", key=combined(by_session(), by_route()), store=store)
    async with Client(server) as client:
        assert [await said(client, tool) for tool in ("plain", "waiting")] == ["a", "a"]
        assert await said(client, "waiting") == REFUSED.format(60)


async def test_a_middleware_and_decorators_take_all_or_nothing(store: MemoryStore) -> None:
    loose, tight = RateLimit("3/m", store=store), RateLimit("1/m", store=store)
    server = shop(tight, loose)
    shared = throttled.asyncio.Throttled(quota="4/m", store=store, key_prefix="shared")
    limit = RateLimit(shared, key=lambda call: "all")
    limit_tools(server, limit)
    async with Client(server) as client:
        assert await said(client, "plain") == "a"
        assert await said(client, "plain") == REFUSED.format(60)
    assert (await shared.peek("all")).remaining == 3
    assert (await loose.throttle("plain").peek("pipe")).remaining == 2


async def test_the_key_of_a_session_can_be_reset(store: MemoryStore) -> None:
    limit = RateLimit("1/m", store=store, key=lambda call: "ann")
    async with Client(shop(limit)) as client:
        assert await said(client, "plain") == "a"
        assert await said(client, "plain") == REFUSED.format(60)
        await limit.throttle("plain").reset("ann")
        assert await said(client, "plain") == "a"


async def test_tools_that_call_tools_pay_for_each(store: MemoryStore) -> None:
    server = shop(RateLimit("1/m", store=store))
    every = RateLimit("9/m", store=store, key=lambda call: "all")
    limit_tools(server, every)

    @server.tool()
    @RateLimit("5/m", store=store)
    async def both(context: Context) -> str:
        texts = []
        for _ in range(2):
            result: Any = await server.call_tool("plain", {"text": "a"}, context)
            texts.append(result.content[0].text)
        return ",".join(texts)

    async with Client(server) as client:
        result = await client.call_tool("both", {})
    assert result.content[0].text == "a," + REFUSED.format(60)[1:]
    assert not result.is_error
    # That a call within was refused gives nothing back of what the client's own call took.
    assert (await every.throttle("all").peek("all")).remaining == 8


@pytest.mark.parametrize("decorated", [True, False])
@pytest.mark.parametrize("tool", ["plain", "waiting"])
@pytest.mark.parametrize("mode", MODES)
async def test_calls_count_by_their_outcome(
    mode: Any, tool: str, decorated: bool, store: MemoryStore
) -> None:
    def count_when(outcome: Outcome) -> bool:
        return outcome.is_error

    server = shop(*[RateLimit("2/m", store=store, count_when=count_when)] * decorated)
    if not decorated:
        limit_tools(server, "2/m", store=store, count_when=count_when)
    async with Client(server, mode=mode) as client:
        assert [await said(client, tool) for _ in range(3)] == ["a"] * 3
        assert (await said(client, tool, "fail")).endswith("as foreseen")
        assert "secret" not in await said(client, tool, "crash")
        assert await said(client, tool) == REFUSED.format(30)


@pytest.mark.parametrize("decorated", [True, False])
@pytest.mark.parametrize("tool", ["plain", "waiting"])
async def test_calls_that_fail_are_given_back(
    tool: str, decorated: bool, store: MemoryStore
) -> None:
    def count_when(outcome: Outcome) -> bool:
        return not outcome.is_error

    server = shop(*[RateLimit("1/m", store=store, count_when=count_when)] * decorated)
    if not decorated:
        limit_tools(server, "1/m", store=store, count_when=count_when)
    async with Client(server) as client:
        for text in ("fail", "crash", "fail"):
            assert (await said(client, tool, text)).startswith("!Error executing tool")
        assert await said(client, tool) == "a"
        assert await said(client, tool) == REFUSED.format(60)


@pytest.mark.parametrize("where", ["memory", "valkey", "redis"])
@pytest.mark.parametrize("decorated", [True, False])
async def test_calls_at_once_are_admitted_exactly(
    where: str, decorated: bool, store: MemoryStore, request: pytest.FixtureRequest
) -> None:
    if where == "memory":
        counts: Any = store
    else:
        server: Server = request.getfixturevalue("server_named")(where)
        counts = throttled.asyncio.RedisStore(server.url, options=PATIENT)
    prefix = f"mcp-{decorated}"
    tools = shop(*[RateLimit("7/d", store=counts, key_prefix=prefix)] * decorated)
    if not decorated:
        limit_tools(tools, None, rules={"plain": "7/d"}, store=counts, key_prefix=prefix)
    async with Client(tools) as client:
        answers = await asyncio.gather(*[said(client, "plain") for _ in range(40)])
    assert answers.count("a") == 7
    if where != "memory":
        await counts.close()


async def test_what_may_not_count_is_held_while_it_runs(store: MemoryStore) -> None:
    server, go = MCPServer("shop"), threading.Event()

    @server.tool()
    @RateLimit("2/m", store=store, count_when=lambda outcome: outcome.is_error)
    def slow(text: str) -> str:
        assert text == "last" or go.wait(20)
        return text

    async with Client(server) as client:
        running = [asyncio.create_task(said(client, "slow")) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert (await said(client, "slow", "last"))[0] == "!"
        go.set()
        assert await asyncio.gather(*running) == ["a", "a"]
        assert [await said(client, "slow", "last") for _ in range(3)] == ["last"] * 3


@pytest.mark.parametrize("decorated", [True, False])
@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        ("raise", "!The service cannot answer right now."),
        ("deny", "!The service cannot answer right now. Try again in 1 second."),
        ("allow", "a"),
        ("local", "a"),
    ],
)
async def test_a_dead_store_is_treated_as_the_policy_says(
    policy: Any, answer: str, decorated: bool
) -> None:
    dead = throttled.asyncio.RedisStore(f"redis://{HOST}:{free_port()}/0")
    limit = RateLimit("5/m", store=dead, on_store_error=policy)
    server = shop(*[limit] * decorated)
    if not decorated:
        limit_tools(server, limit)
    async with Client(server) as client:
        assert await said(client, "plain") == answer
        assert await said(client, "waiting") == answer
    await dead.close()


@pytest.mark.parametrize("what", ["key", "cost", "exempt"])
async def test_a_function_that_fails_is_a_tool_error_and_is_named(
    what: str, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: ToolCall) -> Any:
        raise ZeroDivisionError("secret")

    arguments: dict[str, Any] = {what: broken}
    async with Client(shop(RateLimit("5/m", store=store, **arguments))) as client:
        assert await said(client, "plain") == "!The service cannot answer this request."
    assert any("broken" in record.getMessage() for record in faults(caplog))


async def test_tools_of_a_low_level_server_are_limited(store: MemoryStore) -> None:
    async def call(context: Any, params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text=params.name)])

    async def listed(context: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[])

    server: Any = LowLevelServer("low", on_call_tool=call, on_list_tools=listed)
    limit_tools(server, None, rules={"admin/*": "1/m"}, exclude=["admin/free"], store=store)
    async with Client(server) as client:
        assert await said(client, "admin/drop") == "admin/drop"
        assert await said(client, "admin/make") == REFUSED.format(60)
        assert await said(client, "admin/free") == "admin/free"
        assert await said(client, "other") == "other"


@asynccontextmanager
async def serving(server: MCPServer, **options: Any) -> AsyncIterator[str]:
    """Over HTTP on localhost; its URL."""
    port = free_port()
    app = server.streamable_http_app(**options)
    config = uvicorn.Config(app, host=HOST, port=port, log_level="error", ws="none")
    http = uvicorn.Server(config)
    task = asyncio.create_task(http.serve())
    while not http.started:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.01)
    try:
        yield f"http://{HOST}:{port}/mcp"
    finally:
        http.should_exit = True
        await task


async def test_sessions_over_http_are_told_apart(store: MemoryStore) -> None:
    server = shop(RateLimit("1/m", store=store))
    async with (
        serving(server) as url,
        Client(url, mode="legacy") as one,
        Client(url, mode="legacy") as other,
    ):
        assert [await said(one, "plain"), await said(other, "plain")] == ["a", "a"]
        assert await said(one, "plain") == REFUSED.format(60)


@pytest.mark.parametrize(("mode", "stateless"), [("auto", False), ("auto", True), ("legacy", True)])
async def test_http_without_sessions_counts_by_address(
    mode: Any, stateless: bool, store: MemoryStore
) -> None:
    limit = RateLimit("2/m", store=store)
    async with (
        serving(shop(limit), stateless_http=stateless) as url,
        Client(url, mode=mode) as one,
        Client(url, mode=mode) as other,
    ):
        assert [await said(one, "plain"), await said(other, "plain")] == ["a", "a"]
        assert await said(one, "plain") == REFUSED.format(30)
    key = join("", join("", HOST))  # no session, no user
    assert (await limit.throttle("plain").peek(key)).remaining == 0


class Verifier:
    """Tokens are the names of users."""

    async def verify_token(self, token: str) -> AccessToken:
        return AccessToken(token=token, client_id="app", scopes=[], subject=token)


async def test_http_without_sessions_counts_by_the_user_of_the_token(store: MemoryStore) -> None:
    settings: Any = {"issuer_url": "https://id.example", "resource_server_url": None}
    server = MCPServer("shop", token_verifier=Verifier(), auth=AuthSettings(**settings))
    seen: list[Any] = []

    @server.tool()
    @RateLimit("1/m", store=store, exempt=lambda call: seen.append(call.user))
    def plain(text: str) -> str:
        return text

    async with serving(server, stateless_http=True) as url:
        for name in ("ann", "bob"):
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {name}"}) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                assert await said(client, "plain") == "a"
                assert await said(client, "plain") == REFUSED.format(60)
    assert seen == ["app||ann"] * 2 + ["app||bob"] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": "often"},
        {"rules": {"": "1/m"}},
        {"rules": {"/search": "1/m"}},
        {"rules": {"sea*": "1/m"}},
        {"rules": {"POST search": "1/m"}},
        {"rules": "1/m"},
        {"exclude": "search"},
        {"exclude": [5]},
        {"exempt": True},
        {"limit": "1/m", "key": "session"},
        {"limit": "1/m", "count_when": 5},
    ],
    ids=str,
)
def test_wrong_configuration_is_an_error_at_once(wrong: Any) -> None:
    server = shop()
    before = list(server.middleware)
    with pytest.raises(DataError):
        limit_tools(server, **wrong)
    assert server.middleware == before


def test_what_is_no_server_or_no_tool_is_an_error() -> None:
    with pytest.raises(DataError, match="server"):
        limit_tools("shop", "1/m")
    with pytest.raises(DataError, match="tool"):
        RateLimit("1/m")(5)  # type: ignore[type-var]
    limit = RateLimit("1/m")
    with pytest.raises(DataError, match="same keys"):
        RateLimit("1/m")(limit(lambda text: text))
