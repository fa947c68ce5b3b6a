"""The commands, each imported when it is called for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from throttled import __version__
from throttled.cli.endings import ALLOWED, WRONG, ended, ending, warnings_said

if TYPE_CHECKING:
    from collections.abc import Callable

#: Name -> the module that has it, and what the list of commands says of it.
COMMANDS: Final = {
    "check": ("limits", "Take from a limit, and say whether the call may go on."),
    "peek": ("limits", "Show the state of a key, changing nothing."),
    "debit": ("limits", "Charge a key for what was used without asking."),
    "reset": ("limits", "Forget a key: it is as if it had never been seen."),
    "serve": ("serve", "Run a service that decides by the policies of a file."),
    "dashboard": ("dashboard", "Watch limits and try them out, in a browser."),
    "simulate": ("simulate", "Try a quota on made-up traffic, with each algorithm."),
    "bench": ("bench", "Measure how fast decisions are."),
    "contract": ("contract", "Export what other languages need to share limits with this one."),
}


class _Commands(click.Group):
    """A group that imports a command when it is asked for, and ends as `ended` says."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        sys.exit(ended(lambda: run(*args, standalone_mode=False, **extra)))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with ending():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with ending():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"throttled.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            from throttled.policies.values import nearest

            ctx.fail(f"No such command {args[0]!r}, {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 allowed or done, 1 refused, 2 wrong use, 3 the store or service is down.",
)
@click.version_option(__version__, "--version", message="throttled %(version)s")
@click.pass_context
def throttled(context: click.Context) -> int:
    """Rate limits on the command line: throttled COMMAND -h says more of each."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        return WRONG
    if context.invoked_subcommand not in ("serve", "dashboard"):  # which have a log
        context.with_resource(warnings_said())
    return ALLOWED
