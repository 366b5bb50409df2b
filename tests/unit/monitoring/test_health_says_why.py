"""``/health`` answers 200, or 503 with every reason and what to do; ``/metrics`` goes on whatever is missing."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scp_node.clock import SystemClock
from scp_node.health import Disk, Endpoint, Seen, reasons
from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine
from scp_node.ledger.figures import read_figures
from scp_node.monitoring.process import LOOPBACK, Watch, serve_http
from scp_node.settings import load_settings
from tests.ledgers import empty_ledger

FREE = Disk(free=10 * 2**30, total=100 * 2**30, floor=2**30)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "node.toml").write_text(
        '[storage]\nfolder = "."\nmin_free_mib = 0\nmin_free_percent = 0.0\n[metrics]\nrefresh_s = 0.001\n'
    )
    return load_settings(tmp_path / "node.toml")


@pytest.fixture
def ledger(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as ledger:
        yield ledger


def live_worker(ledger) -> None:
    with ledger.begin() as connection:
        connection.execute(tables.lease.insert().values(slot="worker-0", boot="b", expires_at=time.time() + 3600))


def test_a_node_that_does_all_it_should_has_no_reasons(settings, ledger):
    live_worker(ledger)
    seen = Seen(time.time(), (Endpoint("127.0.0.1", 104, answers=True),), FREE, read_figures(ledger))
    assert reasons(seen, settings) == ()


def test_every_fault_is_a_reason_of_its_own(settings):
    full = Disk(free=2**20, total=100 * 2**30, floor=2**30)
    seen = Seen(time.time(), (Endpoint("127.0.0.1", 104, answers=False),), full, None)
    assert [reason.text for reason in reasons(seen, settings)] == [
        "Nobody listens on 127.0.0.1, port 104.",
        "1 MiB of the disk are free, images are refused below 1024 MiB.",
        "The database cannot be read.",
    ]
    assert all(reason.what_to_do.endswith(".") for reason in reasons(seen, settings))


def fetch(port: int, page: str):
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/{page}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


@pytest.fixture
def serving(settings, ledger):
    """A watch whose node has no listener, over HTTP."""
    server = serve_http(Watch(settings, ledger, SystemClock()), 0)
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_node_without_listener_and_worker_answers_503_with_reasons(serving):
    status, body = fetch(serving, "health")
    told = json.loads(body)
    assert (status, told["healthy"]) == (503, False)
    assert any("No worker is alive" in reason["text"] for reason in told["reasons"])


def test_other_pages_are_not_there(serving):
    assert fetch(serving, "")[0] == 404
    assert fetch(serving, "../etc/passwd")[0] == 404


def test_a_database_that_is_gone_is_a_reason_and_metrics_go_on(settings, tmp_path):
    (tmp_path / "broken.sqlite").write_bytes(b"this is no database at all" * 100)
    broken = make_engine(f"sqlite:///{tmp_path / 'broken.sqlite'}")
    watch = Watch(settings, broken, SystemClock())
    status, told = watch.health()
    assert status == 503
    assert "The database cannot be read." in [reason["text"] for reason in told["reasons"]]
    found = {s.name: s.value for f in text_string_to_metric_families(watch.metrics().decode()) for s in f.samples}
    assert found["nodule_node_healthy"] == 0
    assert found["nodule_node_disk_free_bytes"] > 0
    broken.dispose()


def test_the_page_is_offered_on_loopback_alone(serving):
    assert LOOPBACK == "127.0.0.1"
    assert fetch(serving, "metrics")[0] == 200


def test_a_taken_port_is_an_error_for_the_caller(settings, ledger):
    with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(OSError, match="in use"):
        serve_http(Watch(settings, ledger, SystemClock()), taken.getsockname()[1])
