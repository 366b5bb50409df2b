"""Statements that every image needs: compiled once, and handed to SQLite's driver without the library in between.

The library takes ten times as long as the driver to execute one of them; on other databases it does so itself.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

# What the library raises, and the driver itself: the same faults by two names.
NOT_UNIQUE: Final = (sa.exc.IntegrityError, sqlite3.IntegrityError)
BY_DRIVER: Final = frozenset({"sqlite"})
DRIVER_FAULTS: Final = (sqlite3.OperationalError, sqlite3.InterfaceError, sqlite3.InternalError)


class Done(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchall(self) -> Sequence[Any]:
        """Give the rows, each a tuple."""
        ...


class Prepared:
    """A statement with named parameters, ready to be executed many times.

    Its values go to SQLite's driver as they are: text, numbers and truth values, no JSON and no enumerations.
    Truth values come back as 0 and 1 there.
    """

    def __init__(self, statement: sa.Executable, *columns: str) -> None:
        """Compile a statement; an INSERT has to name its columns."""
        self._statement = statement
        names = list(columns) or None
        dialect: sa.Dialect = sqlite.dialect()
        made = cast("SQLCompiler", cast("Any", statement).compile(dialect=dialect, column_keys=names))
        self._text = str(made)
        self._order = tuple(made.positiontup or ())
        # The driver knows no enumerations: looking for their adapter takes longer than the statement.
        given = {name: bound.value for name, bound in made.binds.items() if not bound.required}
        self._fixed = {name: getattr(value, "value", value) for name, value in given.items()}

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> Done:
        """Execute it within the connection's transaction.

        Raises
        ------
        sqlalchemy.exc.DBAPIError, sqlite3.Error
            The database refused: :data:`NOT_UNIQUE`, :data:`DRIVER_FAULTS`.
        """
        if connection.dialect.name not in BY_DRIVER:
            return connection.execute(self._statement, dict(values))
        cursor = connection.connection.cursor()
        known = {**self._fixed, **values}
        cursor.execute(self._text, tuple(known[name] for name in self._order))
        return cast("Done", cursor)
