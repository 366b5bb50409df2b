"""One round: studies flow, the archive comes and goes, processes are killed at chosen steps; then a calm."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from demo.processes import tail
from tests.chaos.archive import OFFERS, Archive
from tests.chaos.checker import Verdict, compare
from tests.chaos.node import ChaosNode, held, lasting_ports, reap_orphans, settings_text
from tests.chaos.senders import Modality
from tests.chaos.steps import STEPS, LedgerView, look
from tests.chaos.studies import studies_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.chaos.steps import Scene

DIARY = "kills.txt"
MODALITIES = ("CT_ONE", "CT_TWO")
AT_ONCE = 4
"""Studies that are on their way at the same time."""
ANY_MOMENT = 0.25
"""Part of the kills that wait for no step."""
THE_SPARED = 0.4
"""Part of the other kills that aim at the process that was killed least."""
WHILE_STARTING = 0.15
"""Part of the kills that do not wait until the worker is up again."""
HUNT_S = 120.0
LOOK_S, LOOK_CLOSELY_S = 0.01, 0.002
START_S = 300.0
CALM_S = 900.0
IN_A_LIFE = 3
"""Kills of one process under one supervisor, whose pauses grow; then the supervisor itself is killed."""
VICTIMS = dict.fromkeys(STEPS, ("worker", "worker", "worker", "supervisor")) | {
    "receiving": ("listener", "listener", "listener", "supervisor"),
    "analysing": ("detector", "detector", "worker", "supervisor"),
}
LASTING = frozenset({"deciding", "analysing", "reporting"})
"""Steps that outlive the worker in the ledger: they count when this life of the worker has begun them."""
BRIEF = frozenset({"analysed", "reported"})
ANY_VICTIM = ("listener", "worker", "detector", "supervisor")


@dataclass(frozen=True)
class Plan:
    """What a round is to be; everything that is left to chance follows from ``seed``."""

    database: str
    seed: int
    studies: int = 10
    kills: int = 14
    real: bool = False

    @property
    def name(self) -> str:
        return f"chaos {self.database} {self.seed}"


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: of whom, and at which steps it found studies that this process works on."""

    victim: str
    steps: tuple[str, ...]


@dataclass
class Round:
    """What came of a round."""

    plan: Plan
    kills: list[Kill] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    outages: int = 0
    starts: int = 0
    seconds: float = 0.0


class Storm:
    """Lives one round through."""

    def __init__(
        self, plan: Plan, folder: Path, database_url: str, hits: Mapping[str, int], kills: Mapping[str, int]
    ) -> None:
        self._rng = rng = Random(plan.seed)
        self._plan = plan
        self._hits, self._kills = Counter(hits), Counter(kills)
        port, archive_port = lasting_ports(2, Random())
        self._studies = list(islice(studies_of(plan.name, plan.seed), plan.studies))
        self._archive = Archive(archive_port, rng.choice([*OFFERS, "query", "commitment"]), rng.randrange(2**31))
        self.node = ChaosNode(folder, port, archive_port, MODALITIES[0], {"OMP_NUM_THREADS": "1"})
        settings = {"detector": "two-stage"} if plan.real else {}
        text = settings_text(port, archive_port, MODALITIES, database_url=database_url, **settings)
        folder.mkdir(parents=True)
        self.node.settings.write_text(text)
        self._ledger = LedgerView(database_url or f"sqlite:///{folder / 'data' / 'node.sqlite'}")
        self._modalities = [
            Modality(title, port, self._studies[k :: len(MODALITIES)], self._may_begin, rng.randrange(2**31))
            for k, title in enumerate(MODALITIES)
        ]
        self._scene: Scene | None = None
        self._boot_killed = ""
        self._in_this_life: Counter[str] = Counter()
        self._detector_killed: set[str] = set()

    def live(self) -> Round:
        """Live the round through, and compare."""
        begun = time.monotonic()
        result = Round(self._plan)
        self._archive.come()
        try:
            self.node.start()
            with self._in_background():
                while len(result.kills) < self._plan.kills and (kill := self._strike()):
                    result.kills.append(kill)
                    self._start_again()
            self._calm()
            stuck = {} if self._scene is None else dict(self._scene.steps)
            faults = self._stop()
            result.verdict = compare(self._studies, self._archive, self._ledger, self.node.folder)
            result.verdict.lost += [f"{uid} has not come to rest: {step}" for uid, step in stuck.items()]
            result.verdict.other += faults + [f"outlived its parent: {words}" for words in self.node.survivors]
        finally:
            self._ledger.close()
            if not self.node.ended():
                self.node.kill_everything()
            self._archive.close()
            reap_orphans()
        result.outages, result.starts = self._archive.outages, self.node.starts
        result.seconds = time.monotonic() - begun
        return result

    @contextmanager
    def _in_background(self) -> Iterator[None]:
        """Let the modalities send and the archive come and go; the archive is here at the end, the senders done."""
        calm = threading.Event()
        with ThreadPoolExecutor() as threads:
            weather = threads.submit(self._archive.come_and_go, calm)
            sending = [threads.submit(modality.run) for modality in self._modalities]
            try:
                yield
                calm.set()
                limit = time.monotonic() + CALM_S
                while not all(one.done() for one in sending) and time.monotonic() < limit:
                    self._start_again()
                    self._look()
                    time.sleep(0.1)
            finally:
                calm.set()
                for modality in self._modalities:
                    modality.stopped.set()
            for one in (weather, *sending):
                one.result()

    def _may_begin(self) -> bool:
        """Whether one more study may be on its way."""
        begun = sum(len(modality.begun) for modality in self._modalities)
        ended = 0 if self._scene is None else len(self._scene.ended)
        return begun - ended < AT_ONCE

    def _look(self) -> Scene:
        sending = {modality.sending for modality in self._modalities} - {None}
        self._scene = look(self._ledger, {uid for uid in sending if uid is not None})
        return self._scene

    def _all_at_rest(self) -> bool:
        everything = {study.uid for study in self._studies}
        return everything <= self._look().ended and all(modality.done for modality in self._modalities)

    def _strike(self) -> Kill | None:
        """Kill one process: when a study is at the step that was hit least, or at any moment; nothing at rest."""
        if self._rng.random() < ANY_MOMENT:
            time.sleep(self._rng.uniform(0.0, 3.0))
            return self._any(self._rng.choice(ANY_VICTIM))
        self._wait_until_up()
        step, victim = "", ""
        limit = time.monotonic() + HUNT_S
        while time.monotonic() < limit and (ahead := self._ahead()):
            if step not in ahead:
                step, victim = self._aim(ahead)
            if self._is_prey(step, victim) and (kill := self._caught(step, victim)):
                return kill
            self._start_again()
            time.sleep(LOOK_CLOSELY_S if step in BRIEF else LOOK_S)
        return self._any(victim) if step else None

    def _aim(self, ahead: Sequence[str]) -> tuple[str, str]:
        """Choose the step that was hit least, or else the process that was killed least, at one of its steps."""
        if self._rng.random() < THE_SPARED:
            spared = min(ANY_VICTIM, key=lambda one: self._kills[one])
            if steps := [step for step in ahead if spared in VICTIMS[step]]:
                return self._rng.choice(steps), self._relieved(spared)
        step = min(ahead, key=lambda one: (self._hits[one], self._rng.random()))
        return step, self._relieved(self._rng.choice(VICTIMS[step]))

    def _ahead(self) -> list[str]:
        """The steps that some study stands at or has before it."""
        scene = self._look()
        path = [step for step in STEPS if self._archive.offers != "nothing" or step not in ("sent", "proving")]
        if not all(modality.done for modality in self._modalities):
            return path
        first = min((path.index(step) for step in scene.steps.values() if step in path), default=len(path))
        return path[first:]

    def _wait_until_up(self) -> None:
        """Wait for the worker, most times: one that is always killed while it starts never works."""
        if self._rng.random() < WHILE_STARTING:
            return
        limit = time.monotonic() + START_S
        while not self._is_up(self._look()) and time.monotonic() < limit:
            self._start_again()
            time.sleep(0.05)

    def _is_up(self, scene: Scene) -> bool:
        """Whether a worker has taken the slot since the last one was killed."""
        return scene.boot != self._boot_killed

    def _relieved(self, victim: str) -> str:
        """The supervisor in place of a process that was killed often under it already."""
        return "supervisor" if self._in_this_life[victim] >= IN_A_LIFE else victim

    def _worked_on(self, scene: Scene) -> dict[str, str]:
        """The studies on which somebody works, and their steps."""
        if not self._is_up(scene):
            return {uid: step for uid, step in scene.steps.items() if step == "receiving"}
        born_at = self.node.born_at("worker")
        return {
            uid: step
            for uid, step in scene.steps.items()
            if step not in LASTING or scene.begun_at.get(uid, 0.0) >= born_at
        }

    def _is_prey(self, step: str, victim: str) -> bool:
        """Whether a study stands at a step; the detector is killed once for each study: twice is a failure."""
        scene = self._look()
        if step not in scene.steps.values():
            return False
        there = {uid for uid, where in self._worked_on(scene).items() if where == step}
        return bool(there - self._detector_killed if victim == "detector" else there)

    def _caught(self, step: str, victim: str) -> Kill | None:
        """Look again while the worker is stopped, and kill if the study is still there; else let it go on."""
        pid = self.node.find(victim)
        with held(self.node.find("worker")):
            return self._killed(victim, pid) if pid and self._is_prey(step, victim) else None

    def _any(self, victim: str) -> Kill:
        """Kill a process as things are; where it does not run or may not be killed, the supervisor."""
        victim = self._relieved(victim)
        pid = self.node.find(victim)
        if victim == "detector" and not set(self._look().at("analysing")) - self._detector_killed:
            pid = None
        while pid is None:
            victim = "supervisor"
            self._start_again()
            pid = self.node.find(victim)
        with held(self.node.find("worker")):
            return self._killed(victim, pid)

    def _killed(self, victim: str, pid: int) -> Kill:
        scene = self._look()
        found = {step for step in self._worked_on(scene).values() if victim in VICTIMS[step]}
        if victim in ("worker", "supervisor"):
            self._boot_killed = scene.boot
        self.node.kill(victim, pid)
        with (self.node.folder / DIARY).open("a") as diary:
            steps = " ".join(f"{uid}:{step}" for uid, step in sorted(scene.steps.items()))
            diary.write(f"{time.time():.3f} {victim} {pid} {steps}\n")
        self._kills[victim] += 1
        self._in_this_life[victim] += 1
        if victim == "supervisor":
            self._in_this_life.clear()
        if victim == "detector":
            self._detector_killed.update(scene.at("analysing"))
        self._hits.update(found)
        return Kill(victim, tuple(sorted(found)))

    def _start_again(self) -> None:
        """Do what a service manager does."""
        if self.node.ended():
            time.sleep(self._rng.choice((0.0, 0.2, 1.0)))
            self.node.launch()
            self._in_this_life.clear()
        reap_orphans()

    def _calm(self) -> None:
        """Let everything come to rest."""
        limit = time.monotonic() + CALM_S
        while not self._all_at_rest() and time.monotonic() < limit:
            self._start_again()
            time.sleep(0.1)

    def _stop(self) -> list[str]:
        """Stop as planned; a node that does not stop cleanly is a fault of its own."""
        try:
            self.node.wait(self.node.is_up, "the node is up", START_S)
            status = self.node.stop()
        except (AssertionError, TimeoutExpired) as fault:
            return [str(fault)[:2000]]
        return [f"stopped with {status}:\n{tail(self.node.log, 20)}"] if status else []
