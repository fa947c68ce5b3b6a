"""`throttled contract`: what a client in another language has to keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from throttled.cli.output import show, show_json, show_pairs
from throttled.cli.targets import json_option

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["contract"]


@click.command()
@click.option("--out", metavar="DIR", help="Write the files there, and make it if need be.")
@json_option()
def contract(out: str | None, as_json: bool) -> None:
    """Export what other languages need to share limits with this one.

    That is the script that the server runs, the layout of its arguments and keys, and vectors to
    test with. Without --out, only say which version of it this is, and of which files.
    """
    from throttled import contract as exported

    if out is None:
        manifest: Mapping[str, Any] = exported.manifest()
        if as_json:
            show_json(manifest)
        else:
            show_pairs(
                [
                    ("version", str(manifest["version"])),
                    ("script", f"{manifest['script_sha1']} (SHA-1)"),
                    *[(name, digest) for name, digest in manifest["sha256"].items()],
                ]
            )
        return
    written = exported.export(out)
    if as_json:
        show_json({"version": exported.VERSION, "files": [str(path) for path in written]})
    else:
        for path in written:
            show(str(path))
