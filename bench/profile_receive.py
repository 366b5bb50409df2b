"""Where the time of receiving one image goes, without the network: by the clock, and by the processor.

python -m bench.profile_receive
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.bench_receive import CT, MAX_PDU, data_pdus, store_command, study
from scp_node import spool as spool_module
from scp_node.clock import SystemClock
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.network.messages import Messages, StoreRequest
from scp_node.receive import Incoming, Receiver
from scp_node.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.bench_receive import Study

IMAGES = 150
STEPS = ("put together and hashed", "all of the rest", "file written, synced and named", "name synced", "row")


class Watch:
    """Times calls by name: seconds by the clock, and of this thread's processor time."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in STEPS}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Give the same call, timed."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            began, used = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name].append((time.perf_counter() - began, time.thread_time() - used))

        return wrapped


def put_together(pdus: list[bytearray]) -> StoreRequest:
    """Make a request of its PDUs, as a connection does."""
    messages = Messages(1 << 30)
    *_, last = map(messages.add, pdus)
    if not isinstance(last, StoreRequest):
        raise TypeError(f"no request came out: {last}")
    return last


def pdus_of(images: Study, number: int) -> list[bytearray]:
    """Cut one image into the PDUs that a sender makes of it."""
    instance, dataset = images.another(number)

    def cut() -> Iterator[bytearray]:
        sent, at = data_pdus(store_command(instance), dataset, MAX_PDU), 0
        while at < len(sent):
            end = at + 6 + int.from_bytes(sent[at + 2 : at + 6], "big")
            yield bytearray(sent[at:end])
            at = end

    return list(cut())


def main() -> None:
    """Store the images and print medians; the syncs come one after the other here."""
    watch, images = Watch(), study(512)
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{name}/node.sqlite"
        upgrade(url)
        spool = Spool(Path(name) / "spool")
        arrivals = Arrivals(make_engine(url), keeps_connection=True)
        spool.prepare()
        together = watch.timed(STEPS[0], put_together)
        spool.place = watch.timed(STEPS[2], spool.place)  # type: ignore[method-assign]
        spool_module._sync_folder = watch.timed(STEPS[3], spool_module._sync_folder)
        arrivals.record = watch.timed(STEPS[4], arrivals.record)  # type: ignore[method-assign]
        receiver = Receiver(spool, arrivals, SystemClock(), keep_other_objects=True, max_object_bytes=1 << 31)
        receive = watch.timed(STEPS[1], receiver.receive)
        for number in range(IMAGES):
            one = together(pdus_of(images, number))
            instance, syntax = one.sop_instance_uid, "1.2.840.10008.1.2.1"
            receive(Incoming(CT, instance, syntax, one.dataset, "BENCH", "NODE", "127.0.0.1", one.sha256))
    print(f"Load average {os.getloadavg()[0]:.1f}; medians of {IMAGES} images, ms by the clock, ms of processor:")
    for step, times in watch.seconds.items():
        clock, used = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
        print(f"  {step}: {clock:.2f}, {used:.2f}")


if __name__ == "__main__":
    main()
