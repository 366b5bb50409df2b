"""A worker that waits for its slot and is told to stop has not failed, and does not say that it has."""

from __future__ import annotations

import signal
import time

from scp_node.ledger import tables
from tests.worker_node import WorkerNode, wait_for


def test_sigterm_while_waiting_for_the_slot_is_a_clean_end(tmp_path):
    node = WorkerNode(tmp_path)
    try:
        with node.engine.begin() as connection:
            held = {"slot": "worker-0", "boot": "another", "expires_at": time.time() + 3600}
            connection.execute(tables.lease.insert().values(held))
        process = node.start()
        wait_for(lambda: "Worker waits for the slot" in node.log())
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert "Stopped while waiting for the slot." in node.log()
        assert "held by a live worker" not in node.log()
    finally:
        node.close()
