"""Requests per second of one route, bare and behind limiters: `make bench-web`."""
