"""The long-lived child that holds torch: it analyses one series after another and talks JSON lines over a pipe.

A crash of a decoder, of torch or of the device costs this process, not the node: it is started again. It also
ends with the thread that started it, so that none is left behind to hold a device.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.domain.result import from_record, to_record
from scp_node.child import describe, die_with_parent, keep_answers_apart, leave_stopping_to_the_parent
from scp_node.children import DECODING, ChildFailure, RunCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.domain.finding import Detection, ModelIdentity, OperatingPoint
    from pipeline.domain.limits import SelectionLimits
    from pipeline.domain.outcome import Refusal
    from pipeline.domain.result import Analysis
    from pipeline.domain.volume import Volume
    from pipeline.ports import Detector, Progress
    from scp_node.children import Cancelled
    from scp_node.settings import DetectorSettings

    Answer = Analysis | ChildFailure

_POLL_S = 0.5
_CANCEL_POLL_S = 1.0
_PROGRESS_EVERY_S = 0.2
_STOP_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Question:
    paths: tuple[Path, ...]
    cancelled: Cancelled
    answer: Future[Answer]


class DetectorClient:
    """The worker's side: questions wait in a line, one thread keeps the child and feeds it.

    Parameters
    ----------
    detector, limits
        ``[detector]`` and ``[selection]``; sent to the child when it starts.
    timeout_s
        The watchdog: a series that takes longer is killed with its child.
    restart_after
        The child is replaced after so many series; 0: never.

    Notes
    -----
    The child dies with the thread that started it, so one thread starts it and lives as long as this client.
    """

    def __init__(
        self, detector: DetectorSettings, limits: SelectionLimits, *, timeout_s: float, restart_after: int
    ) -> None:
        self._setup = {
            "detector": detector.model_dump(mode="json"),
            "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__},
        }
        self._timeout_s = timeout_s
        self._restart_after = restart_after
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep, name="detector-keeper", daemon=True)
        self._keeper.start()

    def analyse(self, paths: Sequence[Path], cancelled: Cancelled) -> Answer:
        """Analyse the files of one series; any thread may ask.

        Raises
        ------
        RunCancelledError
            When ``cancelled`` says so; the child was killed.
        """
        question = _Question(tuple(paths), cancelled, Future())
        self._questions.put(question)
        return question.answer.result()

    def close(self) -> None:
        """Stop the child once what it works on is done."""
        self._questions.put(None)
        self._keeper.join()

    def _keep(self) -> None:
        child: _Child | None = None
        while (question := self._questions.get()) is not None:
            try:
                child = child or _Child(self._setup)
                question.answer.set_result(self._ask(child, question))
            except Exception as fault:  # noqa: BLE001 - the asking thread must get every fault, this one must live
                question.answer.set_exception(fault)
                _stop(child)
                child = None
            if child is not None and (child.broken or child.answered == self._restart_after):
                _stop(child)
                child = None
        _stop(child)

    def _ask(self, child: _Child, question: _Question) -> Answer:
        child.send({"paths": [str(path) for path in question.paths]})
        deadline = time.monotonic() + self._timeout_s
        ask_again_at = time.monotonic() + _CANCEL_POLL_S
        while time.monotonic() < deadline:
            message = child.receive(_POLL_S)
            if isinstance(message, ChildFailure):
                return message
            if message is not None and "analysis" in message:
                child.answered += 1
                return from_record(message["analysis"])
            if time.monotonic() >= ask_again_at:
                ask_again_at = time.monotonic() + _CANCEL_POLL_S
                if question.cancelled():
                    raise RunCancelledError("The run was cancelled while the detector worked on it.")
        child.broken = True
        return ChildFailure(child.during, f"the detector gave no answer in {self._timeout_s:.0f} s")


class _Child:
    """One process and its pipe."""

    def __init__(self, setup: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "scp_node.detector_process", str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._unread = b""
        self.during = "start"
        self.answered = 0
        self.broken = False
        self.send(setup)
        log.info("Detector started", pid=self._process.pid)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line; a child that is gone is noticed when its answer is read."""
        if self._process.stdin is None:
            raise ValueError("The detector was started without a pipe.")
        try:
            self._process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
        except BrokenPipeError:
            self.broken = True

    def receive(self, timeout_s: float) -> dict[str, Any] | ChildFailure | None:
        """Give the next message, a failure when the child has ended, or ``None`` when the time is up."""
        if self._process.stdout is None:
            raise ValueError("The detector was started without a pipe.")
        if b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                return None
            received = self._process.stdout.read(65536)
            if not received:
                return self._ended()
            self._unread += received
            if b"\n" not in self._unread:
                return None
        line, self._unread = self._unread.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            self.broken = True
            return ChildFailure(self.during, message["failed"])
        self.during = message.get("step", self.during)
        return message

    def stop(self) -> None:
        """Close the pipe, wait a moment, kill."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self.broken:
            self._process.kill()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> ChildFailure:
        self.broken = True
        code = self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return ChildFailure(self.during, f"the detector stopped without an answer ({how})")


def _stop(child: _Child | None) -> None:
    if child is not None:
        child.stop()


def main() -> None:
    """Read the setup, then one question a line; answer each with a line, and name each step on the way."""
    die_with_parent(int(sys.argv[1]))
    leave_stopping_to_the_parent()
    with os.fdopen(keep_answers_apart(), "w", buffering=1, encoding="ascii") as pipe:
        setup = json.loads(sys.stdin.readline() or "{}")
        analyse: Callable[[list[Path]], Analysis] | None = None
        for line in sys.stdin:
            try:
                if analyse is None:
                    analyse = _analyser(setup, _progress_to(pipe))
                analysis = analyse([Path(path) for path in json.loads(line)["paths"]])
            except Exception as fault:  # noqa: BLE001 - the parent must hear of every fault, then starts us anew
                _say(pipe, {"failed": describe(fault)})
                return
            _say(pipe, {"analysis": to_record(analysis)})


def _analyser(setup: dict[str, Any], progress: Callable[[str, float], None]) -> Callable[[list[Path]], Analysis]:
    from pipeline.analysis import analyse_series
    from pipeline.domain.limits import SelectionLimits

    named = setup["limits"] | {"skip_patient_ids": tuple(setup["limits"]["skip_patient_ids"])}
    limits = SelectionLimits(**named)
    progress("loading the networks", 0.0)
    detector = _Announced(load(setup["detector"], limits))
    point = setup["detector"]["operating_point"]

    def analyse(paths: list[Path]) -> Analysis:
        progress(DECODING, 0.0)
        return analyse_series(paths, detector, limits, operating_point=point, progress=progress)

    return analyse


class _Announced:
    """A detector that says when it begins: what crashes before that crashed in reading the images."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def model(self) -> ModelIdentity:
        return self._detector.model

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        return self._detector.operating_points

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        if progress is not None:
            progress("detecting", 0.0)
        return self._detector.detect(volume, progress)


def load(detector: dict[str, Any], limits: SelectionLimits) -> Detector:
    """Make the detector that ``[detector]`` names: ours, or the one a ``module:function`` returns."""
    if detector["implementation"] == "two-stage":
        from pipeline.detect.detector import load_detector

        return load_detector(
            detector["weights"],
            device=detector["device"],
            precision=detector["precision"],
            threads=detector["threads"] or None,
            limits=limits,
        )
    module, _, function = detector["implementation"].partition(":")
    made: Detector = getattr(import_module(module), function)()
    return made


def _progress_to(pipe: Any) -> Callable[[str, float], None]:
    said: dict[str, float] = {}

    def progress(step: str, part: float) -> None:
        now = time.monotonic()
        if part == 0 or now - said.get(step, 0.0) >= _PROGRESS_EVERY_S:
            said[step] = now
            _say(pipe, {"step": step, "part": part})

    return progress


def _say(pipe: Any, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main()
