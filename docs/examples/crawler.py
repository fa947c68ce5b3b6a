"""A crawler that keeps to the limit of each host, without being told what that is.

`python -m docs.examples.crawler` crawls two sites of its own for a few seconds: one says in its
headers what it allows, the other just refuses what is too much. What to copy is `crawl`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx

from throttled import MemoryStore, Throttled
from throttled.contrib.httpx import AsyncRateLimitTransport, RefusedError

LINK = re.compile(r'href="([^"]+)"')


async def crawl(starts: list[str], workers: int = 8) -> dict[str, int]:
    """The status of every page that can be reached.

    `30/s` is a guess, for each host. The transport waits for as long as a host wants, and asks
    again for what was refused.
    """
    found: dict[str, int] = {}
    pages: asyncio.Queue[httpx.URL] = asyncio.Queue()
    for start in starts:
        pages.put_nowait(httpx.URL(start))
    known = set(starts)

    async def work(client: httpx.AsyncClient) -> None:
        while True:
            page = await pages.get()
            try:
                response = await client.get(page)
                found[str(page)] = response.status_code
                for link in LINK.findall(response.text):
                    url = page.join(link)
                    if str(url) not in known:
                        known.add(str(url))
                        pages.put_nowait(url)
            except RefusedError:
                found[str(page)] = 429  # its turn would have come too late
            finally:
                pages.task_done()

    transport = AsyncRateLimitTransport("30/s", store=MemoryStore(), timeout=60, retries=5)
    async with httpx.AsyncClient(transport=transport) as client:
        tasks = [asyncio.create_task(work(client)) for _ in range(workers)]
        await pages.join()
        for task in tasks:
            task.cancel()
    return found


class Site(ThreadingHTTPServer):
    """A site of so many pages, of which anyone may fetch 20 a second."""

    daemon_threads = True

    def __init__(self, pages: int, tells: bool) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.pages = pages
        self.tells = tells
        self.throttle = Throttled(quota="20/s", using="fixed_window", store=MemoryStore())
        self.statuses: Counter[int] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/0"


class Page(BaseHTTPRequestHandler):
    """A page links to the next ones."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    server: Site

    def do_GET(self) -> None:
        result = self.server.throttle.limit("anyone")
        number = int(self.path[1:])
        nexts = range(number * 4 + 1, min(number * 4 + 5, self.server.pages))
        body = "".join([f'<a href="/{each}">{each}</a>' for each in nexts]).encode()
        status = 429 if result.limited else 200
        self.server.statuses[status] += 1
        self.send_response(status)
        if self.server.tells:
            self.send_header("RateLimit-Policy", '"pages";q=20;w=1')
            self.send_header("RateLimit", f'"pages";r={result.state.remaining};t=1')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def main(pages: int = 80) -> None:
    sites = [Site(pages, tells=True), Site(pages, tells=False)]
    for site in sites:
        Thread(target=site.serve_forever, daemon=True).start()
    start = time.monotonic()
    found = asyncio.run(crawl([site.url for site in sites]))
    took = time.monotonic() - start
    for site in sites:
        site.shutdown()
        site.server_close()
        how = "in its headers" if site.tells else "by refusing"
        print(f"told {how}: {site.statuses[200]} pages, {site.statuses[429]} refusals on the way")
    print(f"pages fetched: {sum(status == 200 for status in found.values())} of {2 * pages}")
    print(f"took {took:.1f} s, for each site at most 20 pages a second")


if __name__ == "__main__":
    main()
