"""One history: what is sent, the storm, the calm, and what was seen of it."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

import structlog

from scp_node.ledger.engine import UNREACHABLE
from scp_node.receive import Incoming
from tests.simulator.images import CT, EXPLICIT, OTHER, REFUSED, UNREADABLE, Image
from tests.simulator.node import WORKERS, Listener, Worker, fake_surroundings, keep_leases
from tests.simulator.rest import is_at_rest
from tests.simulator.world import PROOFS, Archive, Chances, World

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from scp_node.settings import Settings
    from tests.simulator.node import Yard

TURNS = 60
ROUNDS = 120
LONGEST_JUMP_S = 3600.0


@dataclass
class Sender:
    """Sends its images in order, each until it hears Success; knows what was acknowledged last."""

    images: list[Image]
    sent: set[Image] = field(default_factory=set)
    last: dict[str, Image] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)

    def next(self) -> Image | None:
        """The next image that is not on its way already."""
        return self.images[0] if self.images and self.images[0].uid not in self.in_flight else None


@dataclass
class History:
    """Everything of one history; :meth:`live` leads it to its end."""

    seed: int
    yard: Yard

    def __post_init__(self) -> None:
        self.rng = rng = Random(self.seed)
        violent = rng.random() < 0.9
        self.calm_only = not violent
        chances = Chances(
            rng.choice((0.001, 0.004, 0.012)), rng.choice((0.02, 0.08)), rng.choice((0.0, 0.01, 0.04))
        )
        self.world = World(rng, chances if violent else Chances(switch=0.05))
        self.settings: Settings = rng.choice(self.yard.settings)
        self.engine: sa.Engine = self.yard.clear()
        offers = rng.choice(PROOFS)
        self.archives = {
            place.name: Archive(self.world, place.name, offers, drops=rng.choice((0, 0, 1, 2)) if offers else 0)
            for place in self.settings.destinations
        }
        self.senders = [Sender(_study(rng, f"1.2.{k}")) for k in range(rng.randint(1, 3))]
        self._count_images()
        self.world.others = self._turn
        self.listener = Listener(self.world, self.settings, self.engine)
        self.workers = {slot: self._worker(slot) for slot in WORKERS[: rng.randint(1, 2)]}
        self.deeds: dict[Callable[[], None], float] = {
            self._send: 8,
            self._work: 5,
            self._look: 3,
            self._wait: 2,
            self._harm: 0 if self.calm_only else 0.5,
            self._answer: 0.5,
            self._beat: 0.5,
            self._sweep: 0.5,
            self._prove: 0.5,
        }
        self.rested = False

    def live(self) -> History:
        """Lead the history through its storm to rest."""
        with fake_surroundings(self.world, self.yard.storage):
            self.world.watch(self.engine)
            for _ in range(TURNS):
                self._turn()
            self.world.storm = False
            self._calm()
        return self

    def own(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction of the workflow engine's."""
        assert self.yard.driver is not None
        return self.world.own(self.yard.driver)

    @property
    def counts(self) -> Counter[str]:
        """What happened, by kind."""
        return self.world.counts

    def _count_images(self) -> None:
        for archive in self.archives.values():
            for sender in self.senders:
                for image in {image.uid: image for image in sender.images}.values():
                    series = archive.images.setdefault(image.study, {})
                    series[image.series] = series.get(image.series, 0) + 1

    def _worker(self, slot: str) -> Worker:
        return Worker(self.world, self.settings, self.engine, slot, self.archives, self.own)

    def _turn(self) -> None:
        """Let somebody do something."""
        (deed,) = self.rng.choices(list(self.deeds), list(self.deeds.values()))
        self.world.note(deed.__name__)
        deed()

    def _send(self) -> None:
        sender = self.rng.choice(self.senders)
        image = sender.next()
        if image is not None and self.rng.random() < 0.08 and sender.last:
            image = self.rng.choice(list(sender.last.values()))  # a re-send of what was acknowledged
            if image.uid in sender.in_flight:
                return
            if any(other.uid == image.uid for other in sender.images):
                return
            self._deliver(sender, image)
        elif image is not None and self._deliver(sender, image):
            sender.images.remove(image)

    def _deliver(self, sender: Sender, image: Image) -> bool:
        listener = self.listener
        if not listener.process.alive:
            self._start_listener()
            return False
        if listener.busy:
            return False
        incoming = Incoming(image.sop_class, image.uid, EXPLICIT, image.dataset, "CT", "NODULE", "127.0.0.1")
        sender.in_flight.add(image.uid)
        sender.sent.add(image)
        answer = self.world.act(listener.process, lambda: listener.receiver.receive(incoming))
        sender.in_flight.discard(image.uid)
        if answer is None or answer.status != 0 or self.world.rng.random() < 0.03 * self.world.storm:
            self.world.happens("not acknowledged")
            return False
        self.world.happens("acknowledged")
        sender.last[image.uid] = image
        return True

    def _start_listener(self) -> None:
        self.listener = Listener(self.world, self.settings, self.engine)
        self.world.act(self.listener.process, self.listener.start)

    def _live_worker(self) -> Worker | None:
        """Choose a worker; one that is dead is started again first, as soon as its lease has run out."""
        slot = self.rng.choice(list(self.workers))
        if not self.workers[slot].process.alive:
            self.workers[slot] = self._worker(slot)
        worker = self.workers[slot]
        if not worker.ready:
            self._safely(worker, worker.start)
        return worker if worker.ready and worker.process.alive else None

    def _safely(self, worker: Worker, deed: object) -> object:
        def try_it() -> object:
            try:
                return deed()  # type: ignore[operator]
            except UNREACHABLE:
                return None

        return self.world.act(worker.process, try_it)

    def _work(self) -> None:
        worker = self._live_worker()
        if worker is not None:
            waiting = worker.waiting()
            if waiting:
                queue = self.rng.choice(waiting)
                self._safely(worker, lambda: worker.work(queue))

    def _look(self) -> None:
        worker = self._live_worker()
        if worker is not None:
            self._safely(worker, worker.look)

    def _beat(self) -> None:
        worker = self._live_worker()
        if worker is not None:
            self._safely(worker, worker.beat)

    def _sweep(self) -> None:
        worker = self._live_worker()
        if worker is not None:
            self._safely(worker, worker.sweep)

    def _prove(self) -> None:
        worker = self._live_worker()
        if worker is not None:
            self._safely(worker, worker.prove)

    def _wait(self) -> None:
        """Let time pass; workers that are not in the middle of something go on saying that they live."""
        self.world.time += self.rng.choice((1.0, 10.0, 70.0, 70.0, 70.0, 400.0))
        if self.rng.random() < 0.6:
            self.world.has_room = self.world.database_up = True
        stalled = self.rng.random() < 0.5
        busy = {process.name for process in self.world.stack} if stalled else set()
        live = [slot for slot, worker in self.workers.items() if worker.process.alive and worker.ready]
        keep_leases(self.own, [slot for slot in live if slot not in busy], self.world)

    def _answer(self) -> None:
        """Let an archive answer a commitment request, or lose it."""
        archive = self.rng.choice(list(self.archives.values()))
        if not archive.asked or self.listener.busy:
            return
        transaction, uid = archive.asked.pop(0)
        if self.rng.random() < 0.2 * self.world.storm:
            return  # the answer is lost
        committed, missing = ([uid], {}) if uid in archive.kept else ([], {uid: "No such instance."})
        listener = self.listener

        def take() -> object:
            try:
                return listener.outbox.answered(transaction, committed, missing, now=self.world.now())
            except UNREACHABLE:
                return None

        self.world.act(listener.process, take)

    def _harm(self) -> None:
        """Do something to somebody."""
        harm = self.rng.choice(("archive", "archive", "listener", "worker", "worker", "room", "database"))
        match harm:
            case "archive":
                archive = self.rng.choice(list(self.archives.values()))
                archive.up = not archive.up
            case "listener":
                self.world.kill(self.listener.process)
            case "worker":
                self.world.kill(self.rng.choice(list(self.workers.values())).process)
            case "room":
                self.world.has_room = not self.world.has_room
            case "database":
                self.world.database_up = not self.world.database_up
        self.world.happens(f"harmed {harm}")

    def _calm(self) -> None:
        """No more faults: everything that is asked for again is done, and time passes until nothing is left."""
        self.world.has_room = self.world.database_up = True
        for archive in self.archives.values():
            archive.up = True
        self.world.kill(self.listener.process)  # one start more: it heals what the last death left
        self._start_listener()
        jump_s = 20.0
        for number in range(ROUNDS):
            self._everybody(thoroughly=number % 3 == 0)
            if is_at_rest(self.engine) and not any(sender.images for sender in self.senders):
                self.rested = True
                return
            self.world.time += jump_s
            jump_s = min(jump_s * 2.5, LONGEST_JUMP_S)

    def _everybody(self, *, thoroughly: bool) -> None:
        for sender in self.senders:
            while (image := sender.next()) is not None and self._deliver(sender, image):
                sender.images.remove(image)
        workers = [self._live_worker() for _ in self.workers]
        for worker in filter(None, workers):
            for deed in (worker.beat, worker.sweep, worker.prove, worker.look) if thoroughly else (worker.look,):
                self._safely(worker, deed)
            while (queues := worker.waiting()) and self._safely(worker, lambda w=worker, q=queues[0]: w.work(q)):
                pass
        for archive in self.archives.values():
            for _ in list(archive.asked):
                self._answer()


def _study(rng: Random, study: str) -> list[Image]:
    """Make up a study: its images in the order in which they are sent, late, changed and re-encoded ones last."""
    images: list[Image] = []
    for number in range(rng.choice((1, 1, 1, 2))):
        images += _series(rng, study, f"{study}.{number}")
    if rng.random() < 0.15:
        images = [replace(image, sop_class=OTHER) for image in images]
    elif rng.random() < 0.2:
        images.append(Image(study, f"{study}.9", f"{study}.9.1", 0, "other", sop_class=OTHER))
    if rng.random() < 0.7:
        rng.shuffle(images)
    again = []
    for image in list(images):
        kind = rng.random()
        if kind < 0.1:
            again.append(image)
        elif kind < 0.18:
            again.append(replace(image, encoding=image.encoding + 1))
        elif kind < 0.28 and image.content not in (REFUSED, UNREADABLE):
            again.append(replace(image, content=f"changed {rng.random():.6f}"))
    return images + again


def _series(rng: Random, study: str, series: str) -> list[Image]:
    numbers = list(range(rng.randint(1, 4)))
    if len(numbers) > 2 and rng.random() < 0.15:
        numbers.pop(1)
    content = rng.choice((REFUSED, UNREADABLE)) if rng.random() < 0.15 else ""
    return [
        Image(study, series, f"{series}.{number}", number, content or f"{rng.random():.6f}", sop_class=CT)
        for number in numbers
    ]


def silence() -> None:
    """Let the node's log go nowhere: a history is full of what it warns of."""
    logging.disable(logging.CRITICAL)
    structlog.configure(
        processors=[_drop], logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False
    )


def _drop(*_event: object) -> Any:
    raise structlog.DropEvent
