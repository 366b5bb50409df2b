"""The process that others look at: /health and /metrics on loopback, and the audit trail.

It reads the ledger and never writes there but its own place in the story; the node does its work without it.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import structlog

from scp_node.audit.trail import Trail
from scp_node.clock import SystemClock
from scp_node.health import Seen, disk, endpoints, reasons
from scp_node.ledger.arrivals import LedgerUnavailableError
from scp_node.ledger.engine import make_engine
from scp_node.ledger.figures import read_figures
from scp_node.monitoring.exposition import Exposition
from scp_node.reload import EXIT_RELOAD, Signals, take_up

if TYPE_CHECKING:
    from scp_node.ledger.overview import Ledger
    from scp_node.ports import Clock
    from scp_node.settings import Settings

LOOPBACK: Final = "127.0.0.1"
CONFIGURATION_FAULT: Final = 78
_TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger()


class Watch:
    """What is known of the node, looked up at most once in ``metrics.refresh_s``."""

    def __init__(self, settings: Settings, ledger: Ledger, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._turn = threading.Lock()
        self._exposition = Exposition(settings.counters_folder)

    def health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        """Give 200 and nothing, or 503 and the reasons."""
        with self._turn:
            seen = self._look()
        found = reasons(seen, self._settings)
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        told = [{"text": reason.text, "what_to_do": reason.what_to_do} for reason in found]
        return status, {"healthy": not found, "reasons": told}

    def metrics(self) -> bytes:
        """Give the page for Prometheus."""
        with self._turn:
            self._look()
            return self._exposition.text()

    def _look(self) -> Seen:
        known, now = self._exposition.moment.seen, self._clock.now()
        if known is not None and 0 <= now - known.at < self._settings.metrics.refresh_s:
            return known
        try:
            figures = read_figures(self._ledger)
            self._exposition.durations.follow(self._ledger, now)
        except LedgerUnavailableError:
            figures = None
        seen = Seen(now, endpoints(self._settings), disk(self._settings.storage), figures)
        self._exposition.moment.seen, self._exposition.moment.settings = seen, self._settings
        return seen


def serve_http(watch: Watch, port: int) -> ThreadingHTTPServer:
    """Answer GET /health and GET /metrics on loopback, in threads of this process.

    Raises
    ------
    OSError
        The port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        timeout = 10.0  # a silent client holds one thread for so long

        def do_GET(self) -> None:
            """Answer."""
            if self.path == "/health":
                status, document = watch.health()
                self._answer(status, "application/json", json.dumps(document).encode() + b"\n")
            elif self.path == "/metrics":
                self._answer(HTTPStatus.OK, _TEXT_FORMAT, watch.metrics())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"See /health and /metrics.\n")

        def log_message(self, *_: object) -> None:
            """Keep requests out of the log."""

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((LOOPBACK, port), Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


def run_metrics(settings: Settings) -> int:
    """Be the process until SIGTERM or SIGINT; give the exit code: 0, 76 for other settings, 78 when it cannot."""
    signals = Signals()
    ledger = make_engine(settings.database_url)
    trail = Trail(settings, ledger, SystemClock())
    server = None
    try:
        if settings.metrics.port:
            server = serve_http(Watch(settings, ledger, SystemClock()), settings.metrics.port)
            log.info("Metrics and health", url=f"http://{LOOPBACK}:{settings.metrics.port}/")
        trail.start()
        return _until_told(settings, signals)
    except OSError as fault:
        why = fault.strerror or str(fault)
        log.error("Cannot listen for /metrics.", port=settings.metrics.port, fault=why)  # noqa: TRY400 - no bug
        return CONFIGURATION_FAULT
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        trail.stop()
        ledger.dispose()


def _until_told(settings: Settings, signals: Signals) -> int:
    running = settings
    while signals.wait() == "reload":
        running, following = take_up("metrics", running, settings.snapshot)
        if following == "restart":
            return EXIT_RELOAD
    return 0
