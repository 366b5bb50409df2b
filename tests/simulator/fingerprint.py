"""All that happened in a history, as one hash: what a seed gives alone, behind others, and on another day."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulator.history import History


def fingerprint(history: History) -> str:
    """Give the SHA-256 of the trace, of every row of the database, of what archives got, and of the spool."""
    digest = hashlib.sha256()
    for line in _lines(history):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _lines(history: History) -> Iterator[str]:
    for entry in history.world.trace:
        yield repr(entry)
    yield repr(history.rng.getstate())
    yield from _rows(history)
    for archive in history.archives.values():
        for entry in archive.told:
            yield repr(entry)
        yield repr(sorted(archive.kept))
    storage = history.yard.storage
    for path in sorted(storage.rglob("*.*")):
        yield f"{path.relative_to(storage)} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _rows(history: History) -> Iterator[str]:
    with history.world.quietly(), history.engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        for name in tables.scalars().all():
            yield name
            for row in connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY rowid"):
                yield repr(tuple(row))
