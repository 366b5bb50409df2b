"""The node of a history: production code of receiving, readiness, work and delivery, put together as in the worker.

The database, its compiled statements and the settings are made once for many histories; a history begins with an
empty copy of the database and an empty folder.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import sqlalchemy as sa

from scp_node import deliver, spool, workflow
from scp_node.deliver import Deliveries
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.destinations import Destinations
from scp_node.ledger.engine import UNREACHABLE, make_engine
from scp_node.ledger.outbox import Outbox
from scp_node.ledger.proofs import Proofs
from scp_node.ledger.steps import Leases, Steps
from scp_node.ledger.studies import Studies
from scp_node.receive import Receiver, index_spool
from scp_node.settings import Settings, load_settings
from scp_node.spool import INCOMING, OBJECTS, QUARANTINE, Spool
from scp_node.wholeness import Prover
from scp_node.work import Work
from scp_node.workflow import Runs, Scheduler, Slot, delivery_policy
from sr_writer.record import NodeIdentity
from tests.simulator.engine import TABLES, SimulatedClient, SimulatedEngine, Store
from tests.simulator.world import Children, Disk, Killed, Process, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.simulator.world import Archive

SETTINGS = """
[storage]
folder = "storage"
[study]
max_wait_s = 600.0
gap_wait_s = 120.0
max_revisions = {max_revisions}
series = "{series}"
[delivery]
retry_s = [30.0, 60.0, 300.0]
verify_after_s = [5.0, 30.0, 300.0]
commitment_timeout_s = 3600.0
commitment_wait_s = 0.0
[worker]
max_starts = 8
[detector]
implementation = "tests.fakes:scripted_detector"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
query = {query}
"""
SECOND = """
[[destinations]]
name = "second"
ae_title = "SECOND"
host = "127.0.0.1"
port = 105
sr = "comprehensive"
not_analysed = false
"""
VARIANTS = (
    SETTINGS.format(series="best", query="false", max_revisions=20),
    SETTINGS.format(series="all", query="true", max_revisions=20) + SECOND,
    SETTINGS.format(series="best", query="true", max_revisions=2),
)
WORKERS = ("worker-0", "worker-1")


class Yard:
    """What many histories share: a folder, an empty database to copy, one engine, and settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "storage"
        self.settings: list[Settings] = []
        for text in VARIANTS:
            (folder / "node.toml").write_text(text)
            self.settings.append(load_settings(folder / "node.toml"))
        self._empty, self._file = folder / "empty.sqlite", folder / "node.sqlite"
        self._make_empty()
        self.driver: sqlite3.Connection | None = None
        """The workflow engine's own connection."""
        self.engine = _fast_engine(self._file)
        self._connect, self._commit = self.engine.connect, self.engine.dialect.do_commit

    def clear(self) -> sa.Engine:
        """Give an empty database and an empty folder."""
        self.close()
        self.engine.connect = self._connect  # type: ignore[method-assign]
        self.engine.dialect.do_commit = self._commit  # type: ignore[method-assign]
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self._empty, self._file)
        self.driver = sqlite3.connect(self._file, isolation_level="IMMEDIATE")
        self.driver.execute("PRAGMA synchronous=OFF")
        shutil.rmtree(self.storage, ignore_errors=True)  # shelves too: whether one is there makes a difference
        for name in (INCOMING, OBJECTS, QUARANTINE, "reports"):
            (self.storage / name).mkdir(parents=True)
        return self.engine

    def close(self) -> None:
        """Let the database go."""
        self.engine.dispose()
        if self.driver is not None:
            self.driver.close()

    def _make_empty(self) -> None:
        engine = _fast_engine(self._empty)
        tables.metadata.create_all(engine)
        engine.dispose()
        with sqlite3.connect(self._empty) as connection:
            connection.executescript(TABLES)
        connection.close()


def _fast_engine(file: Path) -> sa.Engine:
    """The product's own engine, but for syncing: a history kills processes, not the machine."""
    engine = make_engine(f"sqlite:///{file}")

    @sa.event.listens_for(engine, "connect")
    def _no_sync(connection: Any, _entry: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return engine


class Listener:
    """One life of the listener."""

    def __init__(self, world: World, settings: Settings, engine: sa.Engine) -> None:
        self.process = Process("listener")
        self._world, self._settings = world, settings
        self.arrivals = Arrivals(engine)
        self.outbox = Outbox(engine)
        self._spool = Spool(settings.storage.folder)
        self.receiver = Receiver(
            self._spool, self.arrivals, world, keep_other_objects=True, max_object_bytes=1 << 20
        )
        self.receiver._spool.has_room = lambda: world.has_room  # type: ignore[method-assign]

    @property
    def busy(self) -> bool:
        """Whether it is in the middle of a transaction that others of its threads wait for."""
        return bool(self.arrivals._turn.locked())  # type: ignore[union-attr]

    def start(self) -> None:
        """Heal what an earlier life left, as the listener does before it opens its port."""
        try:
            self._spool.sweep()
            index_spool(self._spool, self.arrivals, self._world, keep_other_objects=True)
        except Exception:  # noqa: BLE001 - whatever it is: a listener that cannot start ends, and is started again
            self.process.alive = False


class Worker:
    """One life of a worker: its engine, its scheduler, its heartbeat."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        engine: sa.Engine,
        slot: str,
        archives: Mapping[str, Archive],
        own: Callable[[], AbstractContextManager[sqlite3.Connection]],
    ) -> None:
        settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"slot": slot})})
        self.process = Process(slot)
        self._world, self._own = world, own
        self.ready = False
        store = Store(engine, world.now, own, world.serials)
        self.engine = SimulatedEngine(slot, workflow.STEPS_VERSION, store, world.sleep)
        with (
            mock.patch.object(workflow, "DBOSClient", lambda **options: SimulatedClient(store=store, **options)),
            mock.patch.object(workflow, "SystemClock", lambda: world),
        ):
            self.runs = Runs(settings, engine)
            work, deliveries = self._use_cases(world, settings, engine, archives)
            self.scheduler = Scheduler(settings, engine, self.runs, work, deliveries)
        with mock.patch.object(workflow, "DBOS", self.engine):
            workflow._register_runs(settings, work, deliveries, self.runs)
        for queue, places in (("cpu", settings.worker.concurrency), ("gpu", 1), ("net", 2)):
            self.engine.register_queue(queue, worker_concurrency=places)
        self._leases, self._lease_s = Leases(engine), settings.worker.lease_s
        self._boot = f"{slot}-{next(world.serials)}"
        self._slot = Slot(settings, self._leases, world)
        self._prover = Prover(
            settings,
            studies=Studies(engine),
            proofs=Proofs(engine),
            reader=Children(world, settings.storage.folder),
            catalogue_of=lambda place: archives[place.name],
            clock=world,
        )

    @staticmethod
    def _use_cases(
        world: World, settings: Settings, engine: sa.Engine, archives: Mapping[str, Archive]
    ) -> tuple[Work, Deliveries]:
        children = Children(world, settings.storage.folder)
        studies, outbox = Studies(engine), Outbox(engine)
        steps = Steps(engine, executor=settings.worker.slot, clock=world, retry_s=0.0)
        work = Work(
            settings,
            studies=studies,
            proofs=Proofs(engine),
            outbox=outbox,
            steps=steps,
            reader=children,
            detector=children,
            clock=world,
            node=NodeIdentity("NODULE", "installation", "0.1"),
        )
        deliveries = Deliveries(
            settings,
            studies=studies,
            outbox=outbox,
            destinations=Destinations(engine),
            steps=steps,
            reader=children,
            archive_of=lambda place: archives[place.name],
            policy=delivery_policy(settings),
            clock=world,
            rng=world.rng,
        )
        return work, deliveries

    def start(self) -> None:
        """Take the slot and go on with what an earlier life began; not yet while its lease lives."""
        now = self._world.now()
        if self._leases.take(self.process.name, self._boot, now=now, lease_s=self._lease_s):
            self.runs.renew_deadlines(self.process.name)
            self.engine.start()
            self.ready = True

    def beat(self) -> None:
        """Say that we live, and put back the runs of who does not; a lost lease is our end."""
        now = self._world.now()
        if not self._leases.renew(self.process.name, self._boot, now=now, lease_s=self._lease_s):
            self._world.die(self.process, "a lost lease")
        with mock.patch.object(workflow, "DBOS", self.engine):
            self._slot._reap(self.runs)

    def look(self) -> None:
        """Do what the scheduler does at every look."""
        for task in (self.scheduler.take_ready_studies, self.scheduler.start_due_deliveries):
            self._safely(task)

    def sweep(self) -> None:
        """Do what the scheduler does now and then."""
        scheduler = self.scheduler
        for task in (scheduler.end_broken_runs, scheduler.replace_lost_runs, scheduler.raise_alarms):
            self._safely(task)
        self._safely(self._cancel_expired)

    def prove(self) -> None:
        """Look for proofs that studies are whole."""
        self._safely(lambda: self._prover.look(lambda: False))

    def waiting(self) -> list[str]:
        """The queues in which something waits that this worker could take."""
        with self._own() as connection:
            rows = connection.execute("SELECT DISTINCT queue_name FROM workflow_status WHERE status = 'ENQUEUED'")
            names = {row[0] for row in rows.fetchall()}
        return [queue for queue in self.engine.free_queues() if queue in names]

    def work(self, queue: str) -> bool:
        """Take one run from a queue and work on it."""
        return queue in self.engine.free_queues() and self.engine.work_on(queue)

    def _cancel_expired(self) -> None:
        self.engine._known().cancel_expired()

    def _safely(self, task: Callable[[], Any]) -> None:
        try:
            task()
        except UNREACHABLE:
            self._world.counts["the scheduler looks again"] += 1


def keep_leases(
    own: Callable[[], AbstractContextManager[sqlite3.Connection]], slots: list[str], world: World
) -> None:
    """Renew leases as heartbeats do, by the shortest way."""
    marks = ", ".join("?" * len(slots))
    with own() as connection:
        connection.execute(
            f"UPDATE nn_lease SET expires_at = ? WHERE slot IN ({marks})", (world.now() + 15.0, *slots)
        )


@contextmanager
def fake_surroundings(world: World, storage: Path) -> Iterator[None]:
    """Put the simulator's disk, chance and pauses where production code takes them from the machine."""
    numbers = random.Random(world.rng.random())
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(spool, "os", Disk(world, storage / INCOMING)))
        chance = mock.Mock(randbits=numbers.getrandbits)
        stack.enter_context(mock.patch.object(deliver, "secrets", chance))
        yield


__all__ = ["Killed", "Listener", "Worker", "Yard", "fake_surroundings"]
