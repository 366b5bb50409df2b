"""What tests of several rooms share: the databases that the node runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.postgres import DATABASES, postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session; the test is skipped where none is installed."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=DATABASES)
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'node.sqlite'}"
    return str(request.getfixturevalue("postgres").new_database())


@pytest.fixture(params=DATABASES)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The address for :func:`tests.ledgers.empty_ledger`, for each kind of database in turn."""
    return None if request.param == "sqlite" else str(request.getfixturevalue("postgres").new_ledger())
