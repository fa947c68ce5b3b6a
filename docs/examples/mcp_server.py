"""An MCP server whose tools are limited: a search, and a crawl that costs by its pages.

`python -m docs.examples.mcp_server` calls its own tools, as a model would;
`python -m docs.examples.mcp_server serve` serves over HTTP, on http://127.0.0.1:8000/mcp.
"""

from __future__ import annotations

import asyncio
import sys

from mcp import Client
from mcp.server.mcpserver import MCPServer

from throttled.contrib.mcp import RateLimit, limit_tools

server = MCPServer("library")

# Each session: 60 calls a minute in all, of which 3 searches.
limit_tools(server, "60/minute", rules={"search": "3/minute"})


@server.tool()
def search(text: str) -> str:
    """Find books by a word in their title."""
    return f"2 books about {text}"


@server.tool()
@RateLimit("100/hour", cost=lambda call: call.arguments["pages"])
async def crawl(url: str, pages: int = 10) -> str:
    """Read some pages of a site."""
    return f"{pages} pages of {url}"


async def main() -> None:
    async with Client(server) as client:
        for text in ("limits", "rates", "quotas", "buckets"):
            result = await client.call_tool("search", {"text": text})
            print("error:" if result.is_error else "search:", result.content[0].text)
        for pages in (80, 50, 500):
            result = await client.call_tool("crawl", {"url": "example.org", "pages": pages})
            print("error:" if result.is_error else "crawl:", result.content[0].text)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        server.run("streamable-http")
    else:
        asyncio.run(main())
