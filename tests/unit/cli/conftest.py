"""A ledger as the running node leaves it, without a node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from typer.testing import CliRunner

from scp_node.cli.main import application
from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine, upgrade


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands configure the logging of their process, which here is ours."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in ("pynetdicom", "pydicom", "dbos", "alembic")}
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
TABLES = {table.name.removeprefix("nn_"): table for table in tables.metadata.sorted_tables}


@dataclass
class Site:
    """A settings file, its ledger, and the command line on both."""

    config: Path
    engine: sa.Engine

    def add(self, table: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(TABLES[table].insert().values(**values))

    def study(self, uid: str, state: str, **values: Any) -> None:
        usual = {
            "revision": 1,
            "codes": [],
            "sender": "CT_ROUTER",
            "first_received_at": NOON,
            "last_received_at": NOON + 10,
            "state_changed_at": NOON + 80,
        }
        self.add("study", study_uid=uid, state=state, **(usual | values))

    def instances(
        self, study: str, series: str, count: int, purpose: str = "ct", *, is_newest: bool = True
    ) -> None:
        for number in range(count):
            self.add(
                "instance",
                sop_instance_uid=f"{series}.{number}",
                version=1,
                is_newest=is_newest,
                study_uid=study,
                series_uid=series,
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                sha256="0" * 64,
                size_bytes=10,
                path="objects/x",
                purpose=purpose,
                calling_ae="CT_ROUTER",
                called_ae="NODE",
                peer="127.0.0.1",
                received_at=NOON,
            )

    def report(self, uid: str, study: str, outcome: str = "findings", revision: int = 1) -> None:
        self.add(
            "report",
            sop_instance_uid=uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            study_uid=study,
            series_uid="1.2.3",
            revision=revision,
            outcome=outcome,
            record={},
            path="reports/x",
            sha256="0" * 64,
            created_at=NOON + 90,
        )

    def delivery(self, report: str, destination: str, state: str, **values: Any) -> None:
        times = {"created_at": NOON + 90, "state_changed_at": NOON + 91, "attempts": 1}
        self.add("delivery", sop_instance_uid=report, destination=destination, state=state, **(times | values))

    def event(self, kind: str, text: str, **values: Any) -> None:
        self.add("event", kind=kind, text=text, **({"at": NOON + 1} | values))

    def run(self, *words: str) -> Any:
        return CliRunner().invoke(application([words[0]]), [*words, "--config", str(self.config)])


@pytest.fixture
def site(tmp_path: Path, empty_ledger: Callable[[Path], None]) -> Iterator[Site]:
    config = tmp_path / "node.toml"
    config.write_text('[storage]\nfolder = "."\n')
    empty_ledger(tmp_path / "node.sqlite")
    engine = make_engine(f"sqlite:///{tmp_path}/node.sqlite")
    yield Site(config, engine)
    engine.dispose()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Copies a ledger of the current schema to a place; made once."""
    made = tmp_path_factory.mktemp("ledger") / "node.sqlite"
    upgrade(f"sqlite:///{made}")
    with make_engine(f"sqlite:///{made}").connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return lambda place: place.write_bytes(made.read_bytes()) and None
