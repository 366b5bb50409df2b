"""Batches of a run, made ahead in processes of their own where that pays, always in the same order."""

from __future__ import annotations

import queue as queues
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.multiprocessing

from training.pool import Plan, Residents, VoxelPool, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from training.sampling import Draw
    from training.scans import TrainingScan

T = TypeVar("T")

AHEAD = 6
LOOK_AFTER_S = 5.0


class WorkerError(RuntimeError):
    """A process that makes batches has ended; the text says how."""


class Sampler(Protocol):
    """Whoever draws the patches of batch number i."""

    def draws(self, number: int, size: int) -> list[Draw]:
        """Draw batch ``number``."""


def feed(make: Callable[[], Callable[[int], T]], first: int, workers: int) -> Iterator[T]:
    """Give batch ``first``, ``first + 1`` and so on.

    Parameters
    ----------
    make
        Called once in each process, it gives the function that makes batch number i; must be picklable.
    workers
        Processes beside this one; 0 makes the batches here.

    Raises
    ------
    WorkerError
        When a worker dies.
    """
    if workers == 0:
        maker = make()
        while True:
            yield maker(first)
            first += 1
    context = torch.multiprocessing.get_context("spawn")
    lanes = [context.Queue(max(2, AHEAD // workers)) for _ in range(workers)]
    running = [
        context.Process(target=_work, args=(make, first + k, workers, lane), daemon=True)
        for k, lane in enumerate(lanes)
    ]
    try:
        for process in running:
            process.start()
        while True:
            for process, lane in zip(running, lanes, strict=True):
                yield _next(process, lane)
    finally:
        for process in running:
            process.terminate()


def _next(process: Any, lane: Any) -> Any:
    while True:
        try:
            return lane.get(timeout=LOOK_AFTER_S)
        except queues.Empty:
            if not process.is_alive():
                raise WorkerError(f"A process that makes batches has ended with {process.exitcode}.") from None


def _work(make: Callable[[], Callable[[int], T]], number: int, step: int, lane: Any) -> None:
    torch.set_num_threads(1)
    maker = make()
    while True:
        lane.put(maker(number))
        number += step


@dataclass(frozen=True, slots=True)
class PatchSource:
    """Where the patches of a run come from.

    Attributes
    ----------
    folder, names
        Prepared scans, and which of them; all when empty.
    make_sampler
        Makes the sampler of the scans in memory.
    batch, part
        Patches of the global batch, and this process's among them.
    shape
        Voxels z, y, x of a patch.
    seed
        Of the order in which scans take turns.
    resident
        Most scans in memory at a time; 0 for all.
    """

    folder: Path
    names: tuple[str, ...]
    make_sampler: Callable[[Sequence[TrainingScan]], Sampler]
    batch: int
    part: slice
    shape: tuple[int, int, int]
    seed: int
    resident: int = 0

    def residents(self) -> Residents:
        """Give the rota of its scans."""
        return Residents(self.folder, self.names, self.seed, self.resident)


def patches(
    source: PatchSource, device: torch.device, first: int, workers: int
) -> Iterator[tuple[torch.Tensor, Plan]]:
    """Give Hounsfield units ``(n, z, y, x)`` on the device and what is known of them, from batch ``first`` on.

    On a CUDA device workers draw and the device cuts; on the CPU workers cut too. The code is the same.
    """
    on_host = device.type == "cpu"
    cutter = None if on_host else _Cutter(source, device)
    for number, (hu, plan) in enumerate(feed(partial(_Maker, source, cut=on_host), first, workers), first):
        if cutter is not None:
            hu = cutter(number, plan)  # noqa: PLW2901
        assert hu is not None
        yield hu, plan


class _Cutter:
    """Cuts the patches of a batch on a device, exchanging the scans there when their turn ends."""

    def __init__(self, source: PatchSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self._residents = source.residents()
        self._turn = -1

    def __call__(self, number: int, plan: Plan) -> torch.Tensor:
        turn = self._residents.turn(number)
        if turn != self._turn:
            self._pool = VoxelPool(self._residents.at(number), self._device)
            self._turn = turn
        return self._pool.cut(plan, self._source.shape)


class _Maker:
    """Draws, and on the CPU cuts, batch number i."""

    def __init__(self, source: PatchSource, *, cut: bool) -> None:
        self._source = source
        self._residents = source.residents()
        self._cutter = _Cutter(source, torch.device("cpu")) if cut else None
        self._turn = -1

    def __call__(self, number: int) -> tuple[torch.Tensor | None, Plan]:
        turn = self._residents.turn(number)
        if turn != self._turn:
            self._sampler = self._source.make_sampler(self._residents.at(number))
            self._turn = turn
        plan = plan_of(self._sampler.draws(number, self._source.batch)[self._source.part])
        return None if self._cutter is None else self._cutter(number, plan), plan
