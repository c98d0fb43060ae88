"""How answers look: results on stdout, the rest on stderr, names made harmless for a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from blockstore.errors import BlockStoreError, InvalidRequest
from blockstore_cli.settings import settings

PROGRESS_SECONDS = 0.2
"""Between two redrawings of a progress line."""


def say(text: str = "") -> None:
    """A result."""
    click.echo(text)


def note(text: str) -> None:
    """What is not a result: progress, warnings, what was done on the way."""
    click.echo(text, err=True)


def answer(facts: Any, text: str = "") -> None:
    """`facts` as one line of JSON if asked for, else `text` (nothing if it is empty)."""
    if settings().json:
        say(json.dumps(facts))  # ASCII: names in it cannot steer the terminal
    elif text:
        say(text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> str:
    """Columns, two blanks between; those named in `right` (comma separated) flush right. "" without rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    cells.insert(0, list(header))
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    flush_right = [title in right.split(",") for title in header]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, flush_right, strict=True)
        ).rstrip()
        for row in cells
    )


def facts_table(facts: Mapping[str, int | float | str], snapshots: Sequence[str]) -> str:
    """What is known of a volume."""
    rows = [
        (
            title.replace("_", " "),
            size(value) if title.endswith("bytes") and not isinstance(value, str) else str(value),
        )
        for title, value in facts.items()
        if title != "snapshots"
    ]
    rows.append(("snapshots", ", ".join(snapshots) or "none"))
    return table(("WHAT", "VALUE"), rows)


def size(n_bytes: float) -> str:
    """1536 -> `1.5 KiB`."""
    if abs(n_bytes) < 1024:
        return f"{n_bytes:.0f} B"
    amount, units = n_bytes / 1024, ["PiB", "TiB", "GiB", "MiB", "KiB"]
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop()
    return f"{amount:.0f} {units[-1]}" if amount >= 100 else f"{amount:.1f} {units[-1]}"


def when(seconds: float) -> str:
    """Wall-clock seconds as local time; `-` for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def shown(name: str) -> str:
    """A name from the store, fit for a terminal: control characters and undecodable bytes are spelled out."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else _spelled(char) for char in name)


def confirm(what: str, yes: bool) -> None:
    """Go on if the user agrees to `what`, a question without its mark; InvalidRequest if nobody can say."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{what}? Nothing was changed: say --yes if you mean it.")
    if not click.confirm(f"{what}?", err=True):
        note("Nothing was changed.")
        click.get_current_context().exit(1)


def tell_error(error: BlockStoreError, as_json: bool) -> None:
    _tell(type(error).__name__, str(error), error.next_step, as_json)


def tell_usage(error: click.ClickException, as_json: bool) -> None:
    """A line that makes no sense, in the form that errors of the store have."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "blockstore"
    refused = InvalidRequest(error.format_message())
    next_step = f"See `{command} --help`."
    _tell(type(refused).__name__, str(refused), next_step, as_json)


def shown_lines(text: str) -> str:
    return "\n".join(shown(line) for line in text.split("\n"))


class Progress:
    """One line on stderr, rewritten in place on a terminal, silent elsewhere."""

    def __init__(self, verb: str, n_items: int, n_bytes: int) -> None:
        self.verb, self.n_items, self.n_bytes = verb, n_items, n_bytes
        self.items = self.bytes = 0
        self.began = self._drawn = time.monotonic()
        self._live = sys.stderr.isatty()

    def advance(self, items: int, n_bytes: int) -> None:
        self.items += items
        self.bytes += n_bytes
        now = time.monotonic()
        if self._live and now - self._drawn >= PROGRESS_SECONDS:
            self._drawn = now
            line = f"\r\x1b[K{self.verb} {self.items:,} of {self.n_items:,}"
            if self.n_bytes:
                line += f", {size(self.bytes)} of {size(self.n_bytes)}, {self._rate()}"
            click.echo(line, err=True, nl=False)

    def end(self) -> None:
        if self._live:
            click.echo("\r\x1b[K", err=True, nl=False)

    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-6)

    def summary(self) -> str:
        return f"{self.items:,} objects, {size(self.bytes)}, {self.seconds():.1f} s, {self._rate()}"

    def _rate(self) -> str:
        return f"{size(self.bytes / self.seconds())}/s"


def _tell(kind: str, message: str, next_step: str, as_json: bool) -> None:
    if as_json:
        note(json.dumps({"error": kind, "message": message, "next_step": next_step}))
    else:
        note(f"{shown_lines(message)}\n{next_step}")


def _spelled(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that was not UTF-8, as os.fsdecode carries it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
