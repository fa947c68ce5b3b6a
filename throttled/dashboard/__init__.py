"""The dashboard: limits to watch and to try out, in a browser.

    app.mount("/throttled", Dashboard({"api": throttle}))

or `throttled dashboard` on the command line. Needs the extra `dashboard`.

What is where: `app` answers requests, and `guard` decides which; `streams` sends what is new;
`scenes` is the simulator; `sources` knows what is counted; `keys` looks at one key, and `stored` at
what a store holds for it; `demo` makes traffic where there is none; `serving` is the program.
"""

from throttled.dashboard.app import Dashboard
from throttled.dashboard.sources import ServiceStats

__all__ = ["Dashboard", "ServiceStats"]
