"""`blockstore completion SHELL`: what to source so that the shell completes our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from blockstore_cli.output import answer
from blockstore_cli.settings import LocalCommand, example


@click.command(
    cls=LocalCommand,
    epilog=example("blockstore completion bash > ~/.local/share/bash-completion/completions/blockstore"),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    root = click.get_current_context().find_root().command
    script = kind(root, {}, "blockstore", "_BLOCKSTORE_COMPLETE").source()
    answer({"shell": shell, "script": script}, script)
