"""How the training commands talk: failure in a sentence, progress on a terminal and, now and then, in a log."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import NoReturn

import typer

WRONG_USAGE = 2
EVERY_S = 20.0
"""Between two lines of progress where there is no terminal."""


def fail(text: str) -> NoReturn:
    """End the command with a sentence on standard error and exit code 2."""
    typer.echo(text, err=True)
    raise typer.Exit(WRONG_USAGE)


def numbers(text: str) -> list[int]:
    """Read ``7``, ``1-19`` or ``1-4,9``; ends the command where it is something else."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            fail(f"'{part}' is not a seed or a range of seeds; write 7, 1-19 or 1-4,9.")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def by_person(everybody: str, others: list[str]) -> dict[str, str]:
    """Give the file of each real scan that has its own (NAME=FILE), and that of all others under the empty name."""
    found = {"": everybody}
    for other in others:
        name, _, file = other.partition("=")
        if not name or not file:
            fail(f"'{other}' is not NAME=FILE; write for example LIDC-IDRI-0003=without-0003.safetensors.")
        found[name] = file
    return found


def need_drawing() -> None:
    """End the command where matplotlib is not installed, before any work is done."""
    if find_spec("matplotlib") is None:
        fail("This command draws with matplotlib, which is not installed: pip install 'nodule-node[train]'.")


class Progress:
    """Shows how far a command is: one line that changes on a terminal, else a new line now and then."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.begin = time.monotonic()
        self.last = -EVERY_S
        self.first: int | None = None

    def show(self, done: int, total: int, name: str = "") -> None:
        """Say how many of how many are done, and what the remaining ones will take."""
        now = time.monotonic() - self.begin
        if self.first is None:
            self.first = done
        line = f"{self.what}: {done} of {total}{self._left(done, total, now)}  {name}"
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[K{line[:110]}", nl=done >= total, err=True)
        elif done >= total or now - self.last >= EVERY_S:
            self.last = now
            typer.echo(line.rstrip(), err=True)

    def _left(self, done: int, total: int, now: float) -> str:
        fresh = done - (self.first or 0)
        if fresh < 1 or done >= total:
            return ""
        seconds = now / fresh * (total - done)
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"
