"""What surrounds the node in a history: time, processes that die, a disk and a database with faults, archives.

Everything that the node does to the outside passes a *point*. There the process may be killed, or another actor may
be let in first; whoever is let in ends before the first one goes on, so interleavings are nested ones.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.decision import Decision
from pipeline.domain.finding import Finding, ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import Analysis, Coverage
from pipeline.selection import SeriesVerdict
from pipeline.wholeness import Wholeness
from scp_node.children import ChildFailure, RunCancelledError, WrittenReport
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND, ArchiveCounts, Check, SendResult
from tests.simulator.images import CT, REFUSED, UNREADABLE, Image, digest, read_image, report_bytes, report_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from sr_writer.record import ReportRecord

START = 1_800_000_000.0
DEEPEST = 3
_NO_CONNECTION = SendResult("retry", None, "No connection.")


class Killed(BaseException):
    """The process that reached this point is dead: no handler of its own runs."""


@dataclass(eq=False, slots=True)
class Process:
    """One life of a process."""

    name: str
    alive: bool = True


@dataclass
class Chances:
    """How likely things are at each point, in a storm."""

    kill: float = 0.0
    switch: float = 0.0
    fault: float = 0.0


@dataclass
class World:
    """Time, chance, and who is at work."""

    rng: Random
    chances: Chances
    time: float = START
    storm: bool = True
    has_room: bool = True
    database_up: bool = True
    others: Callable[[], None] = lambda: None
    stack: list[Process] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[tuple[float, str, str]] = field(default_factory=list)
    """What happened: when, to which process, and what; the same seed gives the same."""
    serials: Iterator[int] = field(default_factory=lambda: count(1))
    """Numbers for whatever has to be told apart: lives of processes, executions of runs."""
    _quiet: int = 0

    def now(self) -> float:
        """The time; no two askings get the same."""
        self.time += 0.0005
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass, and others work meanwhile."""
        self.time += seconds
        self.point("waiting")

    def note(self, what: str) -> None:
        """Put something into the trace."""
        self.trace.append((self.time, self.stack[-1].name if self.stack else "", what))

    def happens(self, what: str) -> None:
        """Count something and put it into the trace."""
        self.counts[what] += 1
        self.note(what)

    def act(self, process: Process, deed: Callable[[], Any]) -> Any:
        """Let a process do something; ``None`` when it is dead or dies of it."""
        if not process.alive:
            return None
        self.stack.append(process)
        try:
            return deed()
        except Killed:
            return None
        finally:
            self.stack.pop()

    def point(self, where: str) -> None:
        """Here a process may die, and others may come first."""
        if not self.stack:
            return
        me = self.stack[-1]
        if not me.alive:
            raise Killed
        self.note(where)
        if not self.storm:
            return
        if self.rng.random() < self.chances.kill:
            self.die(me, where)
        if len(self.stack) < DEEPEST and not self._quiet and self.rng.random() < self.chances.switch:
            self.happens("switched")
            self.others()
            if not me.alive:
                raise Killed

    def die(self, process: Process, where: str) -> None:
        """Kill the process that is at work."""
        process.alive = False
        self.happens(f"killed {process.name.split('-')[0]} at {where}")
        raise Killed

    def kill(self, process: Process) -> None:
        """Kill any process; one that is at work notices at its next point."""
        if process.alive:
            process.alive = False
            self.happens(f"killed {process.name.split('-')[0]} from outside")

    def fails(self, what: str) -> bool:
        """Whether a fault happens here."""
        if self.storm and self.stack and self.rng.random() < self.chances.fault:
            self.happens(f"fault {what}")
            return True
        return False

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Without faults and other actors: the engine's own rows, which it protects itself. Deaths stay."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @contextmanager
    def own(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """A transaction of the workflow engine's."""
        with self.quietly():
            self.point("database")
            try:
                yield connection
                self._commit(connection, connection.commit)
            except BaseException:
                connection.rollback()
                raise

    def watch(self, engine: sa.Engine) -> None:
        """Put points and faults before every use of the database, and around every commit."""
        connect, commit = engine.connect, engine.dialect.do_commit

        def connect_here() -> sa.Connection:
            if self._quiet:
                self.point("database")
            elif not engine.pool.checkedout():  # type: ignore[attr-defined]
                self.point("database")
                if not self.database_up or self.fails("database gone"):
                    raise sa.exc.OperationalError("connect", None, sqlite3.OperationalError("unable to open"))
            return connect()

        engine.connect = connect_here  # type: ignore[method-assign]
        engine.dialect.do_commit = lambda own: self._commit(own, lambda: commit(own))  # type: ignore[method-assign, assignment]

    def _commit(self, connection: Any, commit: Callable[[], object]) -> None:
        if not self.stack or not self.storm or not connection.in_transaction:
            commit()
            return
        me = self.stack[-1]
        if self.rng.random() < self.chances.kill:
            connection.rollback()
            self.die(me, "before a commit")
        if not self._quiet and self.fails("commit refused"):
            raise sqlite3.OperationalError("database or disk is full")
        commit()
        if self.rng.random() < self.chances.kill:
            self.die(me, "after a commit")
        if not self._quiet and self.fails("commit unanswered"):
            raise sqlite3.OperationalError("disk I/O error")


class Disk:
    """Stands in for the module ``os`` where the spool uses it: syncs cost nothing, and fail now and then."""

    def __init__(self, world: World, incoming: Path) -> None:
        self._world, self._incoming = world, incoming

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        world = self._world
        try:
            world.point("sync")
        except Killed:
            self._leave_torn()
            raise
        if world.fails("disk full"):
            size = os.fstat(descriptor).st_size
            if size and os.lseek(descriptor, 0, os.SEEK_CUR):
                os.ftruncate(descriptor, size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        if world.fails("sync error"):
            raise OSError(errno.EIO, "Input/output error")

    def link(self, source: Path, target: Path) -> None:
        self._world.point("before the name")
        os.link(source, target)
        self._world.point("after the name")

    def _leave_torn(self) -> None:
        """Leave half a file behind, as a process does that is killed in the middle of a write."""
        (self._incoming / f"{os.getpid()}-{self._world.counts.total()}.part").write_bytes(b"\0" * 128 + b"DI")


@dataclass(frozen=True, slots=True)
class Told:
    """An object that came whole to an archive: whether it kept it, and whether its Success was heard."""

    uid: str
    dicom: bytes
    kept: bool
    answered: bool


@dataclass
class Archive:
    """A destination: what it was sent, what it keeps, and how it can be asked."""

    world: World
    name: str
    offers: frozenset[str]
    drops: int = 0
    """So many of the next objects are answered with Success and lost."""
    up: bool = True
    kept: dict[str, bytes] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Commitment requests that are to be answered: transaction and instance."""
    put_off: Counter[str] = field(default_factory=Counter)
    """How often it said of an instance that it would answer later."""
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    """Numbers of images by study and series: what it says when it is asked for them."""

    def store(self, dicom: bytes) -> SendResult:
        self.world.point("sending")
        if not self.up or self.world.fails("archive refuses"):
            return _NO_CONNECTION
        if self.world.fails("archive is out of resources"):
            return SendResult("retry", 0xA700, "Out of resources.")
        uid = report_uid(dicom)
        if self.drops:
            self.drops -= 1
            self.world.happens("fault archive drops the object")
            self.told.append(Told(uid, dicom, kept=False, answered=True))
            return SendResult("delivered", 0, "Stored.")
        self.kept[uid] = dicom
        if self.world.fails("archive's answer is lost"):
            self.told.append(Told(uid, dicom, kept=True, answered=False))
            return SendResult("retry", None, "No answer.")
        self.told.append(Told(uid, dicom, kept=True, answered=True))
        self.world.point("sent")
        return SendResult("delivered", 0, "Stored.")

    def accepts(self, sop_class_uids: Sequence[str]) -> frozenset[str] | SendResult:
        self.world.point("asking")
        if not self.up or self.world.fails("archive refuses"):
            return _NO_CONNECTION
        return self.offers.intersection(sop_class_uids)

    def echo(self) -> SendResult:
        self.world.point("asking")
        return SendResult("delivered", 0, "C-ECHO answered.") if self.up else _NO_CONNECTION

    def commit(self, transaction_uid: str, _sop_class_uid: str, sop_instance_uid: str) -> Check:
        self.world.point("asking")
        if not self.up or self.world.fails("archive refuses"):
            return Check("unreachable", "commitment", "No connection.")
        if self.world.rng.random() < 0.5:
            self.asked.append((transaction_uid, sop_instance_uid))
            self.put_off[sop_instance_uid] += 1
            return Check("asked", "commitment", "The archive answers later.")
        if sop_instance_uid in self.kept:
            return Check("proven", "commitment", "Committed.")
        return Check("missing", "commitment", "It has no such instance.")

    def holds(self, _study_uid: str, _series_uid: str, sop_instance_uid: str) -> Check:
        self.world.point("asking")
        if not self.up or self.world.fails("archive refuses"):
            return Check("unreachable", "query", "No connection.")
        if sop_instance_uid in self.kept:
            return Check("proven", "query", "Found.")
        return Check("missing", "query", "Stored, and not found.")

    def counts(self, study_uid: str) -> ArchiveCounts | SendResult:
        """Say how many images of a study there are: all that will ever be sent, so that late ones are missed."""
        self.world.point("asking")
        if not self.up or self.world.fails("archive refuses"):
            return _NO_CONNECTION
        series = self.images.get(study_uid, {})
        return ArchiveCounts(sum(series.values()), dict(series))


PROOFS: tuple[frozenset[str], ...] = (
    frozenset({STORAGE_COMMITMENT, STUDY_ROOT_FIND}),
    frozenset({STORAGE_COMMITMENT}),
    frozenset({STUDY_ROOT_FIND}),
    frozenset(),
)


@dataclass
class Children:
    """The reader's and the detector's answers, and the ways in which children fail."""

    world: World
    folder: Path

    def decide(self, paths: Sequence[Path], cancelled: Callable[[], bool]) -> Decision | ChildFailure:
        return self._child(cancelled) or judge(self._images(paths))

    def look(self, paths: Sequence[Path], cancelled: Callable[[], bool]) -> Wholeness | ChildFailure:
        images = self._images(paths)
        whole = all(verdict.eligible and not verdict.notices for verdict in judge(images).series)
        return self._child(cancelled) or Wholeness(whole, whole, "Looked at.")

    def same_content(
        self, pairs: Sequence[tuple[Path, Path]], cancelled: Callable[[], bool]
    ) -> list[bool] | ChildFailure:
        pictures = [self._images(pair) for pair in pairs]
        return self._child(cancelled) or [one.seen == other.seen for one, other in pictures]

    def write_report(
        self, record: ReportRecord, images: Sequence[Path], target: Path, cancelled: Callable[[], bool]
    ) -> WrittenReport | ChildFailure:
        self._images(images)
        failure = self._child(cancelled)
        if failure is not None:
            return failure
        dicom = report_bytes(record)
        aside = target.with_suffix(f".{self.world.counts.total()}.part")
        aside.write_bytes(dicom)
        self.world.point("report aside")
        aside.replace(target)
        self.world.point("report named")
        return WrittenReport(hashlib.sha256(dicom).hexdigest())

    def analyse(self, paths: Sequence[Path], cancelled: Callable[[], bool]) -> Analysis | ChildFailure:
        images = self._images(paths)
        failure = self._child(cancelled)
        if failure is not None:
            return failure
        first = images[0]
        if first.content == UNREADABLE:
            reason = Refusal(Code.DECODE_FAILED, "The pixels cannot be decoded.")
            return Analysis(first.study, first.series, Outcome.NOT_ANALYSED, reason=reason)
        seen = digest(images)
        finds = int(seen, 16) % 2 == 0
        return Analysis(
            first.study,
            first.series,
            Outcome.FINDINGS if finds else Outcome.NO_FINDINGS,
            findings=(Finding((1.0, 2.0, 3.0), 6.0, 0.9),) if finds else (),
            model=ModelIdentity("simulated", "1", "none", seen),
            operating_point=OperatingPoint("balanced", 0.5),
            coverage=Coverage(tuple((image.uid, None) for image in images), len(images)),
        )

    def _child(self, cancelled: Callable[[], bool]) -> ChildFailure | None:
        self.world.point("child")
        if self.world.storm:
            self.world.time += self.world.rng.choice((0.5, 2.0, 20.0))
        if cancelled():
            raise RunCancelledError
        if self.world.fails("child dies"):
            return ChildFailure("", "the child ended by a signal")
        return None

    def _images(self, paths: Sequence[Path]) -> list[Image]:
        images = [read_image(path) for path in paths]
        assert None not in images, "a file of the spool is not whole"
        return [image for image in images if image is not None]


def judge(images: Sequence[Image]) -> Decision:
    """Rank the series of a study: the larger one first."""
    series: dict[str, list[Image]] = {}
    for image in images:
        if image.sop_class == CT:
            series.setdefault(image.series, []).append(image)
    verdicts = [_verdict(uid, members) for uid, members in series.items()]
    return Decision(tuple(sorted(verdicts, key=lambda v: (not v.eligible, -v.score, v.series_uid))))


def _verdict(series_uid: str, images: Sequence[Image]) -> SeriesVerdict:
    numbers = {image.number for image in images}
    refusal = None
    if any(image.content == REFUSED for image in images):
        refusal = Refusal(Code.SLICES_TOO_THICK, "Slices are too thick.")
    elif len(numbers) < 2:
        refusal = Refusal(Code.TOO_FEW_SLICES, "One slice is no volume.")
    gap = max(numbers) - min(numbers) + 1 > len(numbers)
    return SeriesVerdict(
        study_uid=images[0].study,
        series_uid=series_uid,
        series_number=None,
        eligible=refusal is None,
        score=0.0 if refusal else float(len(numbers)),
        refusal=refusal,
        notices=(Notice(Code.SLICES_INTERPOLATED, "A slice is missing."),) if gap and refusal is None else (),
        reasons=(),
        facts={"ct_images": len(images)},
    )
