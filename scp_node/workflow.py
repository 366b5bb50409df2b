"""The worker process and the durable workflow engine, which is imported here alone (decision 0051).

The engine starts runs, remembers which steps are done and repeats them after a crash. Ours are the lease that
keeps a slot to one process, the reaper for runs of dead workers, and the scheduler that looks into the ledger.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import secrets
import threading
import time
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer
from dbos import error as engine_error

from pipeline.domain.outcome import Code
from scp_node.children import RunCancelledError, TransientFaultError
from scp_node.clock import SystemClock
from scp_node.deliver import Deliveries
from scp_node.detector_process import DetectorClient
from scp_node.ledger.destinations import Destinations
from scp_node.ledger.engine import (
    UNREACHABLE,
    DatabaseClock,
    make_engine,
    schema_is_current,
    upgrade,
    wait_for_database,
)
from scp_node.ledger.outbox import Outbox, RetryPolicy
from scp_node.ledger.proofs import Proofs
from scp_node.ledger.retention import Retention
from scp_node.ledger.steps import Leases, Steps
from scp_node.ledger.studies import Studies
from scp_node.network.commitment import ProvingArchive
from scp_node.network.query import DicomCatalogue
from scp_node.reader_process import ReaderClient
from scp_node.readiness import LookAgainAt, NoCt, Ready, readiness
from scp_node.reload import EXIT_RELOAD, Signals, take_up
from scp_node.spool import Spool
from scp_node.wholeness import Prover
from scp_node.work import Run, Work
from sr_writer.record import NodeIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbos import DBOSConfig, EnqueueOptions, WorkflowStatus

    from scp_node.children import Cancelled
    from scp_node.ledger.studies import StudyAtWork
    from scp_node.ports import Clock
    from scp_node.settings import Settings

APPLICATION = "nodule-node"
STEPS_VERSION = "node-1"  # raised only when steps or their order change: other versions' runs never start
EXIT_LEASE_LOST = 75
EXIT_CANNOT_START = 78
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
BROKEN_OFF = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
_SWEEP_EVERY_S = 5.0
_DRAIN_POLL_S = 0.2
_ENGINE_STOPS_S = 15.0
_CLEAN_EVERY_S = 3600.0
_CLEAN_AT_ONCE = 100
_DAY_S = 86400.0
_MAY_PASS = (TransientFaultError, sa.exc.OperationalError, sa.exc.InterfaceError)
_PATIENT_STEP: dict[str, Any] = {
    "retries_allowed": True,
    "max_attempts": 5,
    "interval_seconds": 5.0,
    "backoff_rate": 2.0,
    # every step may run again; a database that restarts must not become the verdict on a study
    "should_retry": lambda fault: isinstance(fault, _MAY_PASS),
}

_CANCELLATIONS = (
    RunCancelledError,
    engine_error.DBOSWorkflowCancelledError,
    engine_error.DBOSAwaitedWorkflowCancelledError,
)

log = structlog.get_logger()


def upgrade_engine_schema(url: str) -> None:
    """Create the engine's tables or bring them to its version; safe to repeat, and there is no way back."""
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS.migrate(url)


def upgrade_database(url: str) -> None:
    """Bring all tables of the database to this version, ours and the engine's; safe to repeat."""
    upgrade(url)
    upgrade_engine_schema(url)


def run_worker(settings: Settings) -> int:
    """Run the worker until SIGTERM or SIGINT.

    Returns
    -------
    int
        78 when it cannot start: an old schema, or the slot is held by a live worker. A worker that started
        leaves by ``os._exit``: 0 after a drain, 75 when its lease was taken away.
    """
    signals = Signals()
    stop = signals.stop
    if not wait_for_database(settings.database_url, stop.wait):
        return 0
    engine = make_engine(settings.database_url)
    if not schema_is_current(engine):
        log.error("The database has another schema than this version; run 'nodule-node db upgrade'.")
        return EXIT_CANNOT_START
    slot = Slot(settings, Leases(engine), DatabaseClock(engine))
    log.info("Worker waits for the slot", slot=slot.name)
    if not slot.take(stop):
        if stop.is_set():
            log.info("Stopped while waiting for the slot.", slot=slot.name)
            return 0
        log.error("The slot is held by a live worker; give this one another worker.slot.", slot=slot.name)
        return EXIT_CANNOT_START
    slot.keep()
    runs = Runs(settings, engine)
    runs.renew_deadlines(slot.name)
    patient = make_engine(settings.database_url, reconnect_s=settings.worker.database_retry_s)
    reader = _reader(settings)
    work, deliveries = _use_cases(settings, patient, runs, reader)
    scheduler = Scheduler(settings, engine, runs, work, deliveries)
    if not _launch(settings, work, deliveries, runs, scheduler.nudge):
        slot.release()
        return EXIT_CANNOT_START
    runs.warn_of_other_versions()
    slot.reaps_for = runs
    enough = threading.Event()
    scheduling = threading.Thread(target=scheduler.loop, args=(enough,), name="scheduler", daemon=True)
    scheduling.start()
    log.info("Worker ready", slot=slot.name, settings=settings.version)
    proving = threading.Thread(
        target=_prover(settings, engine, reader, scheduler.nudge).loop, args=(enough,), name="prover", daemon=True
    )
    proving.start()
    outcome = _until_told(settings, signals)
    enough.set()
    scheduler.nudge()
    scheduling.join()
    _forgive(slot.name, engine, runs)
    _drain(settings, stop)
    slot.release()
    return _leave(0 if stop.is_set() else outcome)


def _until_told(settings: Settings, signals: Signals) -> int:
    """Wait until somebody asks us to stop, or other settings need a new process; give the exit code."""
    running = settings
    while signals.wait() == "reload":
        running, following = take_up("work", running, settings.snapshot)
        if following == "restart":
            return EXIT_RELOAD
    return 0


def _forgive(slot: str, engine: sa.Engine, runs: Runs) -> None:
    """Let a planned stop not count as a failed start of what is at work now."""
    try:
        Steps(engine, executor=slot, clock=SystemClock(), retry_s=0.0).forgive()
        runs.forgive(slot)
    except sa.exc.DBAPIError as fault:  # then it counts, as a crash does
        log.warning("The planned stop could not be written down.", why=type(fault).__name__)


def _drain(settings: Settings, stop: threading.Event) -> None:
    """Take no new work, and let what is at work end: for ``worker.drain_s`` when we are to stop, else at its pace.

    A run that was begun is finished with the settings it was begun with, as far as it lies with this process.
    """
    limit_s = settings.worker.drain_s if stop.is_set() else settings.worker.run_timeout_s
    log.info("Worker stops", drain_s=limit_s)
    ending = threading.Thread(
        target=DBOS.destroy,
        kwargs={"workflow_completion_timeout_sec": math.ceil(limit_s)},
        name="drain",
        daemon=True,
    )
    ending.start()
    while ending.is_alive() and not stop.wait(_DRAIN_POLL_S):
        pass
    ending.join(settings.worker.drain_s + _ENGINE_STOPS_S)


class Slot:
    """Our lease on a slot: taken at start, kept by a heartbeat; runs of slots without a live lease are put back."""

    def __init__(self, settings: Settings, leases: Leases, clock: Clock) -> None:
        self.name = settings.worker.slot
        self.reaps_for: Runs | None = None
        self._boot = secrets.token_hex(8)
        self._lease_s, self._beat_s = settings.worker.lease_s, settings.worker.beat_s
        self._leases = leases
        self._clock = clock
        self._released = threading.Event()

    def take(self, stop: threading.Event) -> bool:
        """Take the slot, once a dead process's lease has ended; ``False`` on stop, and when somebody renews it."""
        held = self._leases.holder(self.name)
        while not self._leases.take(self.name, self._boot, now=self._clock.now(), lease_s=self._lease_s):
            holder = self._leases.holder(self.name)
            if held is not None and holder is not None and holder != held:
                return False
            held = holder or held
            if stop.wait(self._beat_s / 4):
                return False
        return True

    def keep(self) -> None:
        """Start the heartbeat."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def release(self) -> None:
        """Stop the heartbeat and give the slot back."""
        self._released.set()
        self._leases.release(self.name, self._boot)

    def _beat(self) -> None:
        beaten_since = last_beat = time.monotonic()
        while not self._released.wait(self._beat_s):
            try:
                ours = self._leases.renew(self.name, self._boot, now=self._clock.now(), lease_s=self._lease_s)
                now = time.monotonic()
                if now - last_beat > 2 * self._beat_s + 0.5:
                    beaten_since = now  # we were away, so others may have been: judge nobody for a lease
                last_beat = now
                if not ours and not self._released.is_set():
                    log.error("The lease on our slot was taken away; leaving.", slot=self.name)
                    _leave(EXIT_LEASE_LOST)
                if self.reaps_for is not None and now - beaten_since >= self._lease_s + self._beat_s:
                    self._reap(self.reaps_for)
            except UNREACHABLE as fault:
                log.warning("The database cannot be reached; no heartbeat.", kind=type(fault).__name__)
            except Exception:
                log.exception("A heartbeat failed; the next one follows.")

    def _reap(self, runs: Runs) -> None:
        """Put back the runs of executors without a live lease; safe to repeat, and to crash in."""
        pending = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        live = self._leases.live(now=self._clock.now())
        for dead in sorted({str(run.executor_id) for run in pending} - live - {self.name}):
            runs.renew_deadlines(dead)
            taken_over = DBOS._recover_pending_workflows([dead])
            log.warning("Runs of a dead worker were put back.", dead=dead, runs=len(taken_over))


@dataclass(frozen=True, slots=True)
class BrokenRun:
    """A run that the engine will not go on with: its kind, its arguments, and how it ended."""

    name: str
    arguments: tuple[Any, ...]
    how: str


class Runs:
    """Starts runs and looks at them from outside; the arguments are identifiers and numbers only."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._client = DBOSClient(
            system_database_engine=engine,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            lazy=True,
        )
        self._timeout_s = settings.worker.run_timeout_s
        self._retention_s = settings.worker.run_retention_s
        self._weights = weights_id(settings)

    def start_study(self, connection: sa.Connection, run: Run) -> None:
        """Enqueue the decision on a study's revision, in the transaction that claims it."""
        options = self._options("study", "cpu", f"study:{run.study_uid}:{run.revision}")
        self._client.enqueue_in_transaction(connection, options, run.study_uid, run.revision, run.timed_out)

    def start_series(self, run: Run, series_uid: str) -> None:
        """Enqueue the analysis of a chosen series; a second call changes nothing."""
        self._client.enqueue(
            self._options("series", "gpu", self.series_run(run, series_uid)),
            run.study_uid,
            run.revision,
            run.timed_out,
            series_uid,
        )

    def start_delivery(self, connection: sa.Connection, delivery_id: int, attempt: int) -> None:
        """Enqueue one attempt of a delivery, in the transaction that claims it."""
        options = self._options("deliver", "net", f"deliver:{delivery_id}:{attempt}")
        self._client.enqueue_in_transaction(connection, options, delivery_id, attempt)

    def series_run(self, run: Run, series_uid: str) -> str:
        """Name the run of a series: the same revision and weights are never analysed twice.

        The study is part of the name, because archives that split or coerce studies leave one series in two of
        them; without it the second study would wait for ever for the first one's run (decision 0051).
        """
        return f"{run.study_uid}:{series_uid}:{run.revision}:{self._weights}"

    def cancelled(self, run_id: str) -> Cancelled:
        """Give a question that asks whether a run was cancelled, or its time ran out; a database away says no."""

        def ask() -> bool:
            try:
                runs = self._client.list_workflows(workflow_ids=[run_id], load_input=False, load_output=False)
            except UNREACHABLE:
                return False
            return any(run.status == "CANCELLED" for run in runs)

        return ask

    def broken_off(self) -> tuple[BrokenRun, ...]:
        """Give the runs that ended without doing their work."""
        runs = self._client.list_workflows(status=list(BROKEN_OFF), load_output=False)
        return tuple(BrokenRun(run.name, _arguments(run), _how(run)) for run in runs)

    def warn_of_other_versions(self) -> None:
        """Say loudly that runs of another version wait: the engine never starts them, and never says so."""
        runs = self._client.list_workflows(status=list(UNFINISHED), load_input=False, load_output=False)
        others = [run for run in runs if run.app_version not in (None, STEPS_VERSION)]
        if others:
            log.error(
                "Unfinished runs belong to another version of the node and will not start here.",
                runs=len(others),
                versions=sorted({str(run.app_version) for run in others}),
                ours=STEPS_VERSION,
            )

    def renew_deadlines(self, executor: str) -> int:
        """Give the broken-off runs of an executor their whole time again; before the engine looks at them.

        The engine keeps a run's absolute deadline over a restart: a node that was off for longer than
        ``worker.run_timeout_s`` would cancel its own work at start. A run without a deadline gets a new one
        when it is taken from its queue; how often that may happen is limited by ``worker.max_starts``.
        """
        database = self._client._sys_db
        if not sa.inspect(database.engine).has_table("workflow_status", schema=database.schema):
            return 0  # the engine itself says at launch that its tables are missing
        run = database.tables.workflow_status
        of_executor = run.update().where(run.c.executor_id == executor, run.c.status.in_(("PENDING", "ENQUEUED")))
        with database.engine.begin() as connection:
            return connection.execute(of_executor.values(workflow_deadline_epoch_ms=None)).rowcount

    def forgive(self, executor: str) -> int:
        """Take back the start of an executor's unfinished runs: it is stopped as planned, and nothing failed.

        The engine counts every start of a run; what is started ``worker.max_starts`` times is given up.
        """
        run = self._client._sys_db.tables.workflow_status
        started = run.update().where(
            run.c.executor_id == executor, run.c.status == "PENDING", run.c.recovery_attempts > 0
        )
        with self._client._sys_db.engine.begin() as connection:
            return connection.execute(started.values(recovery_attempts=run.c.recovery_attempts - 1)).rowcount

    def unfinished(self) -> frozenset[tuple[str, int]]:
        """Give the revisions of studies for which a run exists that the engine will still work on."""
        return self._revisions(UNFINISHED)

    def given_up(self) -> frozenset[tuple[str, int]]:
        """Give the revisions of studies of which a run broke off."""
        return self._revisions(BROKEN_OFF)

    def _revisions(self, statuses: tuple[str, ...]) -> frozenset[tuple[str, int]]:
        runs = self._client.list_workflows(status=list(statuses), name=["study", "series"], load_output=False)
        return frozenset((str(arguments[0]), int(arguments[1])) for run in runs if (arguments := _arguments(run)))

    def forget_old(self, now: float) -> int:
        """Delete records of runs that finished long ago; what counts stands in the ledger."""
        before = datetime.fromtimestamp(now - self._retention_s, UTC).isoformat()
        old = self._client.list_workflows(
            status=["SUCCESS", *BROKEN_OFF],
            end_time=before,
            limit=_CLEAN_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        if old:
            self._client.delete_workflows([run.workflow_id for run in old])
        return len(old)

    def _options(self, name: str, queue: str, run_id: str) -> EnqueueOptions:
        return {
            "workflow_name": name,
            "queue_name": queue,
            "workflow_id": run_id,
            "app_version": STEPS_VERSION,
            "workflow_timeout": self._timeout_s,
        }


class Nudge:
    """Lets a loop look before its time, because there is something for it; one that gets lost costs a poll."""

    def __init__(self) -> None:
        self._news = threading.Event()

    def __call__(self) -> None:
        """Say that there is something; any thread may, as often as it likes."""
        self._news.set()

    def wait(self, longest_s: float) -> None:
        """Wait until somebody says so, or for the whole time."""
        self._news.wait(longest_s)
        self._news.clear()


class Scheduler:
    """Looks into the ledger: complete studies get their run, due deliveries their attempt, broken runs an end."""

    def __init__(
        self, settings: Settings, engine: sa.Engine, runs: Runs, work: Work, deliveries: Deliveries
    ) -> None:
        self.nudge = Nudge()
        self._settings = settings
        self._studies = Studies(engine)
        self._outbox = Outbox(engine)
        self._retention = Retention(engine)
        self._runs = runs
        self._work = work
        self._deliveries = deliveries
        self._clock = SystemClock()

    def loop(self, stop: threading.Event) -> None:
        """Look again and again until told to stop."""
        sweep, clean = _Every(_SWEEP_EVERY_S), _Every(_CLEAN_EVERY_S)
        while not stop.is_set():
            self.nudge.wait(self._settings.worker.poll_s)
            if stop.is_set():
                return
            self._safely(self.take_ready_studies)
            self._safely(self.start_due_deliveries)
            if sweep.due():
                self._safely(self.end_broken_runs)
                self._safely(self.replace_lost_runs)
                self._safely(self.raise_alarms)
            if clean.due():
                self._safely(self.forget_old_runs)
                self._safely(self.delete_old_images)

    def _safely(self, look: Callable[[], None]) -> None:
        """Let no failure of one task of the scheduler keep it from the others."""
        try:
            look()
        except UNREACHABLE as fault:
            log.warning("The database cannot be reached; the scheduler looks again.", kind=type(fault).__name__)
        except Exception:
            log.exception("The scheduler failed; it looks again.")

    def start_due_deliveries(self) -> None:
        """Claim the deliveries that are due and enqueue an attempt for each."""
        self._outbox.claim_due(now=self._clock.now(), start=self._runs.start_delivery)

    def forget_old_runs(self) -> None:
        """Delete the engine's records of runs that finished long ago."""
        while self._runs.forget_old(self._clock.now()) == _CLEAN_AT_ONCE:
            pass

    def delete_old_images(self) -> None:
        """Delete images whose reports are proven to be delivered, ``storage.keep_days`` later (decision 0119)."""
        keep_s, now = self._settings.storage.keep_days * _DAY_S, self._clock.now()
        if not keep_s:
            return
        while studies := self._retention.due(keep_s=keep_s, now=now):
            for study_uid in studies:
                deleted = self._retention.mark(study_uid, now=now)
                log.info("Images deleted", study=study_uid, images=deleted)
            self._finish_deleting()
        self._finish_deleting()

    def _finish_deleting(self) -> None:
        spool = Spool(self._settings.storage.folder)
        for study_uid in self._retention.leaving():
            self._retention.forget(study_uid, spool.delete)

    def take_ready_studies(self) -> None:
        """Claim the studies that are complete and enqueue their runs."""
        now, limits = self._clock.now(), self._settings.study
        for seen in self._studies.waiting(now=now):
            answer = readiness(
                seen.facts,
                quiet_s=limits.quiet_s,
                max_wait_s=limits.max_wait_s,
                gap_wait_s=limits.gap_wait_s,
                now=now,
            )
            match answer:
                case Ready() if self._studies.revisions_reported(seen.study_uid) > limits.max_revisions:
                    why = f"The study changed again after {limits.max_revisions} reports; it waits for a person."
                    code = Code.TOO_MANY_REVISIONS.value
                    self._studies.close_exhausted(seen, code=code, why=why, now=now)
                case Ready() if self._retention.has_gone(seen.study_uid):
                    why = "Images of this study were deleted after their time; send the whole study again."
                    code = Code.MISSING_SLICES.value
                    self._studies.close_exhausted(seen, code=code, why=why, now=now)
                case Ready(why, timed_out):
                    revision = self._studies.claim(seen, why=why, now=now, start=self._starter(timed_out))
                    if revision is not None:
                        log.info("Study ready", study=seen.study_uid, revision=revision, why=why)
                case NoCt(why):
                    self._studies.close_without_ct(seen, codes=[Code.NOT_CT.value], why=why, now=now)
                case LookAgainAt():
                    pass

    def replace_lost_runs(self) -> None:
        """Keep every study at work with a run: what lost its run is taken once more, or fails visibly.

        Level-triggered: safe to repeat and to crash in. The studies are listed first, so that a run that ends in
        between has ended its study too, and nothing is moved.
        """
        at_work = self._studies.at_work()
        if not at_work:
            return
        alive = self._runs.unfinished() | self._runs.given_up()  # the latter are ended by end_broken_runs
        for study in at_work:
            if (study.study_uid, study.revision) not in alive:
                self._replace(study)

    def _replace(self, study: StudyAtWork) -> None:
        if self._studies.runs_lost(study.study_uid) + 1 >= self._settings.worker.max_starts:
            run = Run(study.study_uid, study.revision)
            self._work.give_up(run, Code.INTERNAL_BUG, "The run of the study vanished again and again.")
            return
        why = f"The run of revision {study.revision} is gone; the study is taken once more."
        if self._studies.send_back(study.study_uid, study.revision, why=why, now=self._clock.now()):
            log.error("A run vanished; its study is taken once more.", study=study.study_uid)

    def raise_alarms(self) -> None:
        """Say, once for each, which studies should have ended long ago."""
        limit_s = self._settings.study.max_wait_s + self._settings.metrics.alarm_s
        for study_uid in self._studies.note_overdue(alarm_s=limit_s, now=self._clock.now()):
            log.error("A study has not ended in time; see 'nodule-node status'.", study=study_uid)

    def end_broken_runs(self) -> None:
        """Make visible what the engine gave up: studies end as FAILED, deliveries are tried again later."""
        for run in self._runs.broken_off():
            match run.name, run.arguments:
                case "study", (study_uid, revision, timed_out):
                    self._work.give_up(Run(study_uid, revision, timed_out), Code.INTERNAL_BUG, run.how)
                case "series", (study_uid, revision, timed_out, _):
                    self._work.give_up(Run(study_uid, revision, timed_out), Code.DETECTOR_FAILED, run.how)
                case "deliver", (delivery_id, attempt):
                    self._deliveries.interrupted(delivery_id, attempt, run.how)

    def _starter(self, timed_out: bool) -> Callable[[sa.Connection, str, int], None]:
        return lambda connection, study_uid, revision: self._runs.start_study(
            connection, Run(study_uid, revision, timed_out)
        )


class _Every:
    """Says once an interval that it has passed; at once for the first time."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval_s
        return True


def weights_id(settings: Settings) -> str:
    """Name the weights in run identities: the first 12 hex digits of their SHA-256, else their name."""
    named = settings.detector
    if named.implementation != "two-stage":
        return named.implementation
    bundled = Path(str(files("pipeline").joinpath("weights", "nodule.safetensors")))
    path = bundled if named.weights == "bundled" else Path(named.weights)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else path.name


def delivery_policy(settings: Settings) -> RetryPolicy:
    """The settings of ``[delivery]`` in the outbox's own type."""
    values = settings.delivery.model_dump()
    return RetryPolicy(**{field.name: values[field.name] for field in fields(RetryPolicy)})


def _reader(settings: Settings) -> ReaderClient:
    worker = settings.worker
    return ReaderClient(
        settings.selection.limits(), timeout_s=worker.reader_timeout_s, memory_mib=worker.reader_memory_mib
    )


def _use_cases(settings: Settings, engine: sa.Engine, runs: Runs, reader: ReaderClient) -> tuple[Work, Deliveries]:
    clock, limits = SystemClock(), settings.selection.limits()
    worker = settings.worker
    studies, outbox = Studies(engine), Outbox(engine)
    steps = Steps(engine, executor=worker.slot, clock=clock, retry_s=worker.database_retry_s)
    detector = DetectorClient(
        settings.detector, limits, timeout_s=worker.detect_timeout_s, restart_after=worker.detector_studies
    )
    node = NodeIdentity(
        ae_title=settings.node.ae_title,
        installation_id=studies.installation_id(secrets.token_hex(16)),
        version=version("nodule-node"),
        institution=settings.report.institution,
    )
    work = Work(
        settings,
        studies=studies,
        proofs=Proofs(engine),
        outbox=outbox,
        steps=steps,
        reader=reader,
        detector=detector,
        clock=clock,
        node=node,
    )
    deliveries = Deliveries(
        settings,
        studies=studies,
        outbox=outbox,
        destinations=Destinations(engine),
        steps=steps,
        reader=reader,
        archive_of=lambda to: ProvingArchive(
            to,
            settings.node.ae_title,
            settings.network,
            settings.tls,
            wait_s=settings.delivery.commitment_wait_s,
        ),
        policy=delivery_policy(settings),
        clock=clock,
        rng=random.Random(),
    )
    return work, deliveries


def _prover(settings: Settings, engine: sa.Engine, reader: ReaderClient, nudge: Nudge) -> Prover:
    return Prover(
        settings,
        studies=Studies(engine),
        proofs=Proofs(engine),
        reader=reader,
        catalogue_of=lambda to: DicomCatalogue(to, settings.node.ae_title, settings.network, settings.tls),
        clock=SystemClock(),
        proved=nudge,
    )


def _launch(settings: Settings, work: Work, deliveries: Deliveries, runs: Runs, nudge: Nudge) -> bool:
    """Start the engine with our runs and queues; ``False`` when its tables are not those of its version."""
    _log_as_we_do()
    config: DBOSConfig = {
        "name": APPLICATION,
        "application_version": STEPS_VERSION,
        "executor_id": settings.worker.slot,
        "log_level": "WARNING",
        "system_database_url": settings.database_url,
        "system_database_engine": make_engine(settings.database_url),
        "serializer": DBOSPortableJSONSerializer(),
        "run_migrations": False,
    }
    DBOS(config=config)
    _register_runs(settings, work, deliveries, runs, nudge)
    try:
        DBOS.launch()
    except engine_error.DBOSInitializationError:
        log.exception("The workflow engine's tables are not of this version; run 'nodule-node db upgrade'.")
        return False
    places = len(settings.destinations) + len(settings.senders)
    for queue, at_once in (("cpu", settings.worker.concurrency), ("gpu", 1), ("net", max(1, places))):
        DBOS.register_queue(
            queue,
            worker_concurrency=at_once,
            polling_interval_sec=settings.worker.poll_s,
            on_conflict="update_if_latest_version",
        )
    return True


def _register_runs(
    settings: Settings, work: Work, deliveries: Deliveries, runs: Runs, due: Callable[[], None] = lambda: None
) -> None:
    """Tell the engine our three kinds of runs; each step's outcome is kept in our own table (``Steps.once``).

    ``due`` is called whenever a step may have left something in the outbox.
    """
    recoveries = settings.worker.max_starts - 1  # the engine counts the repeats
    cancelled = runs.cancelled

    @DBOS.step(name="decide", **_PATIENT_STEP)
    def decide(study_uid: str, revision: int, timed_out: bool) -> str | None:
        run = Run(study_uid, revision, timed_out)
        stopped = cancelled(f"study:{study_uid}:{revision}")
        chosen = work.decide(run, stopped).series_uid
        if chosen is not None and not stopped():
            runs.start_series(run, chosen)
        due()
        return chosen

    @DBOS.step(name="analyse", **_PATIENT_STEP)
    def analyse(study_uid: str, revision: int, timed_out: bool, series_uid: str) -> None:
        run = Run(study_uid, revision, timed_out)
        work.analyse(run, series_uid, cancelled(runs.series_run(run, series_uid)))

    @DBOS.step(name="report", **_PATIENT_STEP)
    def report(study_uid: str, revision: int, timed_out: bool, series_uid: str) -> None:
        run = Run(study_uid, revision, timed_out)
        work.report(run, series_uid, cancelled(runs.series_run(run, series_uid)))
        due()

    @DBOS.step(name="go_on", **_PATIENT_STEP)
    def go_on(study_uid: str, revision: int, timed_out: bool, series_uid: str) -> str | None:
        run = Run(study_uid, revision, timed_out)
        following = work.go_on(run, series_uid, cancelled(runs.series_run(run, series_uid))).series_uid
        if following is not None:
            runs.start_series(run, following)
        due()
        return following

    @DBOS.step(name="send", **_PATIENT_STEP)
    def send(delivery_id: int, attempt: int) -> None:
        deliveries.attempt(delivery_id, attempt, cancelled(f"deliver:{delivery_id}:{attempt}"))

    @DBOS.workflow(name="study", max_recovery_attempts=recoveries)
    def study(study_uid: str, revision: int, timed_out: bool) -> None:
        decide(study_uid, revision, timed_out)

    @DBOS.workflow(name="series", max_recovery_attempts=recoveries)
    def series(study_uid: str, revision: int, timed_out: bool, series_uid: str) -> None:
        analyse(study_uid, revision, timed_out, series_uid)
        report(study_uid, revision, timed_out, series_uid)
        go_on(study_uid, revision, timed_out, series_uid)

    @DBOS.workflow(name="deliver", max_recovery_attempts=recoveries)
    def deliver(delivery_id: int, attempt: int) -> None:
        send(delivery_id, attempt)


def _arguments(run: WorkflowStatus) -> tuple[Any, ...]:
    return () if run.input is None else tuple(run.input["args"])


def _how(run: WorkflowStatus) -> str:
    match run.status:
        case "CANCELLED":
            return "The run was cancelled or out of time."
        case "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            return "The worker died each time it worked on this; it is given up."
        case _:
            return "The run ended with an error; the log names it."


class _ExpectedCancellations(logging.Filter):
    """Brings the engine's tracebacks of cancelled runs down to one line at INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        fault = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(fault, _CANCELLATIONS):
            record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
        return True


def _log_as_we_do() -> None:
    """Let the engine's log take the way of ours instead of a console handler of its own."""
    engine_log = logging.getLogger("dbos")
    engine_log.addHandler(logging.NullHandler())  # with a handler there, the engine adds none
    engine_log.addFilter(_ExpectedCancellations())
    engine_log.propagate = True


def _leave(code: int) -> NoReturn:
    """End the process now: the engine's threads may sit in a step, and the interpreter would wait for them."""
    _flush(logging.getLogger().handlers)
    os._exit(code)


def _flush(handlers: Iterable[logging.Handler]) -> None:
    for handler in handlers:
        handler.flush()
