"""Where the time of receiving one image goes, without the network: hash and identifiers, file, folder, row.

python -m bench.profile_receive
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.bench_receive import CT, study
from scp_node import spool as spool_module
from scp_node.clock import SystemClock
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.receive import Incoming, Receiver
from scp_node.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = 150
STEPS = ("all", "file written and synced", "folder synced", "row")


class Watch:
    """Times calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in STEPS}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Give the same call, timed."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name].append(time.perf_counter() - began)

        return wrapped


def main() -> None:
    """Store the images and print medians."""
    watch, images = Watch(), study(512)
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{name}/node.sqlite"
        upgrade(url)
        spool, arrivals = Spool(Path(name) / "spool"), Arrivals(make_engine(url))
        spool.prepare()
        spool._write_aside = watch.timed(STEPS[1], spool._write_aside)  # type: ignore[method-assign]
        spool_module._sync_folder = watch.timed(STEPS[2], spool_module._sync_folder)
        arrivals.record = watch.timed(STEPS[3], arrivals.record)  # type: ignore[method-assign]
        receiver = Receiver(spool, arrivals, SystemClock(), keep_other_objects=True, max_object_bytes=1 << 31)
        receive = watch.timed(STEPS[0], receiver.receive)
        used = time.process_time()
        for number in range(IMAGES):
            instance, dataset = images.another(number)
            receive(Incoming(CT, instance, "1.2.840.10008.1.2.1", dataset, "BENCH", "NODE", "127.0.0.1"))
        used = time.process_time() - used
    print(f"Load average {os.getloadavg()[0]:.1f}; medians of {IMAGES} images, ms:")
    for step, seconds in watch.seconds.items():
        print(f"  {step}: {statistics.median(seconds) * 1000:.2f}")
    print(f"  CPU time of the process, mean: {used / IMAGES * 1000:.2f}")


if __name__ == "__main__":
    main()
