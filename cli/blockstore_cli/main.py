"""The root of the command: finds the noun; turns a failure into a sentence, a next step and an exit code."""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from typing import Any

import click

from blockstore.errors import BlockStoreError
from blockstore_cli.output import note, tell_error, tell_usage
from blockstore_cli.settings import Settings, example, json_option, store_options

EXIT_USAGE = 64  # EX_USAGE; click's own 2 would read like `cluster status`'s "data at risk"
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C

COMMANDS = {
    "demo": "demo:demo",
    "dev": "dev:dev",
    "cluster": "cluster:cluster",
    "node": "node:node",
    "bucket": "bucket:bucket",
    "block": "block:block",
    "put": "objects:put",
    "get": "objects:get",
    "ls": "objects:ls",
    "rm": "objects:rm",
    "cp": "objects:cp",
    "snapshot": "snapshot:snapshot",
    "log": "history:log",
    "restore": "history:restore",
    "credential": "credential:credential",
    "bench": "bench:bench",
    "completion": "completion:completion",
}
"""Loaded when used: a command starts without importing the other nouns."""


class Root(click.Group):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += store_options() + json_option()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"blockstore_cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BlockStoreError as error:
            tell_error(error, ctx.ensure_object(Settings).json)
            ctx.exit(error.exit_code)


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=example(
        "blockstore demo", "blockstore dev --nodes 3", "blockstore put report.pdf docs:2026/report.pdf"
    ),
)
@click.version_option(package_name="blockstore")
@click.pass_context
def root(context: click.Context) -> None:
    """A store that keeps what it is given: objects and snapshots, in a directory or on a cluster."""
    context.ensure_object(Settings)


def run(arguments: list[str]) -> int:
    """The exit code of `blockstore ARGUMENTS…`."""
    try:
        code = root.main(arguments, prog_name="blockstore", standalone_mode=False)
    except click.Abort:
        note("Interrupted.")
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        tell_usage(error, as_json="--json" in arguments)
        return EXIT_USAGE
    except (Exception, BaseExceptionGroup):
        traceback.print_exc()
        note("This is a mistake of ours: please report it, with the lines above.")
        return BlockStoreError.exit_code
    return code if isinstance(code, int) else 0


def main() -> None:
    # Ctrl-C may come between making a coroutine and awaiting it, and who pressed it need not read of that.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; python would complain about the flush at its end
        code = 141
    sys.exit(code)


if __name__ == "__main__":
    main()
