"""How soon an honest C-ECHO is answered while a crowd of the same host holds connections and says little.

A real listener process, a crowd in a process of its own, and one honest peer that opens an association, echoes and
releases it, again and again; everything on loopback. The limits that would thin the crowd out are raised.

    python -m bench.bench_siege --echoes 20 --results bench/RESULTS.md
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

from bench.sections import publish
from demo.processes import free_ports
from tests.certificates import authority

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
NAME = "bench_siege"
VERIFICATION = "1.2.840.10008.1.1"
CALLING, CALLED = "BENCH", "NODULE_NODE"
CONNECTED_S = 60.0
ECHO_S = 60.0
SETTINGS = """\
[node]
port = {port}
bind = "127.0.0.1"
[[senders]]
ae_title = "BENCH"
[storage]
folder = "data"
[tls]
port = {tls_port}
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
[network]
acse_timeout_s = 300.0
pdu_timeout_s = 300.0
half_open_per_host = 2000
[log]
level = "error"
"""
CROWDS: dict[str, dict[str, int]] = {
    "nobody else": {},
    "1,000 connected, silent": {"silent": 1000},
    "1,000 with half an A-ASSOCIATE-RQ": {"half a request": 1000},
    "1,000 connected to the TLS port, silent": {"silent, TLS": 1000},
    "1,000 with half a TLS ClientHello": {"half a hello, TLS": 1000},
    "90 associations with half a P-DATA-TF PDU": {"half a PDU": 90},
    "250 of each of the first four, and the last": {
        "silent": 250,
        "half a request": 250,
        "silent, TLS": 250,
        "half a hello, TLS": 250,
        "half a PDU": 90,
    },
}
CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303")  # the first bytes of a record of 512
HALF_A_PDU = struct.pack(">BBL", 0x04, 0, 16000) + b"\0" * 8000


# The crowd, in a process of its own --------------------------------------------------------------------------


def association_request() -> bytes:
    """Encode an A-ASSOCIATE-RQ for Verification."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = CALLING, CALLED
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, implementation]
    context = build_context(VERIFICATION)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    return bytes(A_ASSOCIATE_RQ(primitive).encode())


def one_of_the_crowd(kind: str, port: int, tls_port: int) -> socket.socket:
    """Open one connection and leave it in the state that its kind names."""
    wanted = tls_port if kind.endswith("TLS") else port
    peer = socket.create_connection(("127.0.0.1", wanted), timeout=CONNECTED_S)
    match kind:
        case "half a request":
            request = association_request()
            peer.sendall(request[: len(request) // 2])
        case "half a hello, TLS":
            peer.sendall(CLIENT_HELLO)
        case "half a PDU":
            peer.sendall(association_request())
            if peer.recv(1) != b"\x02":
                raise ConnectionError("the association was not accepted")
            peer.sendall(HALF_A_PDU)
    return peer


def be_the_crowd(port: int, tls_port: int, kinds: list[str]) -> None:
    """Open all connections, say so, and hold them until standard input ends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    for entry in kinds:
        kind, _, count = entry.rpartition("=")
        held += [one_of_the_crowd(kind, port, tls_port) for _ in range(int(count))]
    print(len(held), flush=True)
    sys.stdin.read()


@contextmanager
def crowd(port: int, tls_port: int, kinds: dict[str, int]) -> Iterator[None]:
    """Hold a crowd before the listener's doors."""
    command = [sys.executable, "-m", "bench.bench_siege", "--crowd", str(port), str(tls_port)]
    command += [f"{kind}={count}" for kind, count in kinds.items()]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != f"{sum(kinds.values())}\n":
            raise ConnectionError("the crowd could not open its connections")
        yield
    finally:
        process.communicate(timeout=CONNECTED_S)


# The node and its honest peer --------------------------------------------------------------------------------


@contextmanager
def running_listener(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the listener as it is delivered; gives its ports, the plain one first."""
    port, tls_port = free_ports(2)
    ours = authority(folder).identity("node")
    files = {"certificate": ours.certificate, "key": ours.key, "ca": ours.authorities}
    (folder / "node.toml").write_text(SETTINGS.format(port=port, tls_port=tls_port, **files))
    command = [sys.executable, "-m", "scp_node.cli.main", "listen", "--config", str(folder / "node.toml")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (folder / "log.txt").open("wb") as log:
        node = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + CONNECTED_S
        while echo(port) is None:
            if time.monotonic() > deadline or node.poll() is not None:
                raise ConnectionError((folder / "log.txt").read_text())
            time.sleep(0.2)
        yield port, tls_port
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)


def echo(port: int) -> float | None:
    """Open an association, echo, release it; gives the seconds, or ``None`` where there was no answer."""
    ae = AE(CALLING)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ECHO_S
    began = time.perf_counter()
    opened = ae.associate("127.0.0.1", port, [build_context(VERIFICATION)], ae_title=CALLED)
    if not opened.is_established:
        return None
    answered = opened.send_c_echo().get("Status") == 0
    took = time.perf_counter() - began
    opened.release()
    return took if answered else None


def measure(echoes: int) -> dict[str, list[float | None]]:
    """Let each crowd come in turn, and echo among it."""
    found: dict[str, list[float | None]] = {}
    with tempfile.TemporaryDirectory() as name, running_listener(Path(name)) as (port, tls_port):
        for title, kinds in CROWDS.items():
            with crowd(port, tls_port, kinds):
                found[title] = [echo(port) for _ in range(echoes)]
            print(f"{title}: {_row(found[title])}", flush=True)
    return found


def _row(times: list[float | None]) -> str:
    answered = [seconds for seconds in times if seconds is not None]
    if not answered:
        return f"0 of {len(times)} | | "
    return f"{len(answered)} of {len(times)} | {statistics.median(answered):.3f} | {max(answered):.3f}"


def report(found: dict[str, list[float | None]], load: float) -> str:
    """Write the table."""
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, load average before {load:.1f}; an "
        "honest peer of the same host, one association with one C-ECHO after another; seconds from connecting to "
        "the answer. `python -m bench.bench_siege`",
        "",
        "| the crowd | answered | median | slowest |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {title} | {_row(times)} |" for title, times in found.items())])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_siege", description=__doc__)
    parser.add_argument("--echoes", type=int, default=20)
    parser.add_argument("--results", type=Path, help="file whose section is to be written anew")
    parser.add_argument("--crowd", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.crowd:
        be_the_crowd(int(asked.crowd[0]), int(asked.crowd[1]), asked.crowd[2:])
        return 0
    load = os.getloadavg()[0]
    text = report(measure(asked.echoes), load)
    publish(asked.results, NAME, "An honest echo beside a crowd", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
