"""How fast images are received: this node with fsync beside dcmtk's storescp, Orthanc and a plain pynetdicom SCP.

Rounds are interleaved in one run, so that whatever else the machine does hits all alike; what counts is the ratio
of medians. Every sender is a small program of its own that writes ready-made bytes, TCP_NODELAY on both ends, at
the MTU of a network (1500), with new SOP Instance UIDs each time. Orthanc listens on every address; the whole bench
therefore runs in a network namespace of its own (root, ``unshare``), and without one Orthanc is left out. All is
measured twice, on a free machine and beside the first stage of the bundled detector, which searches one tile again
and again on all cores.

    python -m bench.bench_receive --rounds 5 --results bench/RESULTS.md

``--listeners 2`` adds a row of two listeners over one folder and one database, with the senders spread over their
ports: what several receiving processes would gain (decision 0123).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydicom import uid
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

from bench.sections import publish
from tests.builders import ChestSeries, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

CT = "1.2.840.10008.5.1.4.1.1.2"
MAX_PDU = 131072
RELEASE = b"\x05\0\0\0\0\4\0\0\0\0"
SENDER = "BENCH"
NAME = "bench_receive"
INSIDE = "NODULE_NODE_BENCH_INSIDE"
SHARE = 10_000  # numbers of images for each sender


# The senders ------------------------------------------------------------------------------------------------


def request(called: str) -> bytes:
    """Encode an A-ASSOCIATE-RQ for CT in Explicit VR Little Endian."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = SENDER, called
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.276.0.7230010.3.0.3.6.7"
    primitive.user_information = [length, implementation]
    context = build_context(CT, [uid.ExplicitVRLittleEndian])
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    return bytes(A_ASSOCIATE_RQ(primitive).encode())


@dataclass(frozen=True)
class Study:
    """A data set to be sent many times under new UIDs of the same length."""

    dataset: bytes
    instance: bytes
    study: bytes

    def another(self, number: int) -> tuple[str, bytes]:
        """Give the next instance: its SOP Instance UID and its data set."""
        name = b"2.25." + str(10 ** (len(self.instance) - 6) + number).encode()
        return name.decode(), self.dataset.replace(self.instance, name, 1)


def store_command(instance: str) -> bytes:
    """Encode the command set of a C-STORE request for a CT image (PS3.7 Table 9.3-1)."""

    def element(number: int, value: bytes) -> bytes:
        return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value

    def even(text: str) -> bytes:
        return text.encode() + b"\0" * (len(text) % 2)

    body = element(0x0002, even(CT)) + element(0x0100, b"\1\0") + element(0x0110, b"\1\0")
    body += element(0x0700, b"\0\0") + element(0x0800, b"\0\0") + element(0x1000, even(instance))
    return element(0x0000, len(body).to_bytes(4, "little")) + body


def data_pdus(command: bytes, dataset: bytes, largest: int) -> bytes:
    """Cut a message into P-DATA PDUs of at most so many bytes behind their header (PS3.8 section 9.3.5)."""
    step = largest - 6
    places = range(0, len(dataset), step)
    pieces = (_fragment(2 if at + step >= len(dataset) else 0, dataset[at : at + step]) for at in places)
    return _fragment(3, command) + b"".join(pieces)


def _fragment(control: int, value: bytes) -> bytes:
    length = len(value) + 2
    return b"\4\0" + (length + 4).to_bytes(4, "big") + length.to_bytes(4, "big") + bytes((1, control)) + value


def study(rows: int) -> Study:
    """Make the image to be sent: ``rows`` x ``rows`` pixels of 16 bits."""
    one = ChestSeries(slices=1, rows=rows, columns=rows).datasets()[0]
    content = as_bytes(one)
    begin = 144 + int.from_bytes(content[140:144], "little")
    return Study(content[begin:], str(one.SOPInstanceUID).encode(), str(one.StudyInstanceUID).encode())


def send(one: Receiver, images: Study, numbers: range, start: Any, answers: Any) -> None:
    """Be one sender: associate, wait for the start, send, and tell when the last answer came."""
    port, called = one.port_for(numbers.start // SHARE), one.title
    ready = [images.another(number) for number in numbers]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(request(called))
            accepted = _pdu(peer)
            if accepted[:1] != b"\x02":
                raise ConnectionError(f"not accepted: {accepted[:10].hex()}")
            largest = min(_max_length(accepted) or MAX_PDU, MAX_PDU)
            start.wait()
            for name, dataset in ready:
                peer.sendall(data_pdus(store_command(name), dataset, largest))
                answer = _pdu(peer)
                if b"\0\0\0\x09\2\0\0\0\0\0" not in answer:  # (0000,0900) Status 0x0000
                    raise ConnectionError(f"not stored: {answer.hex()}")
            done = time.monotonic()
            peer.sendall(RELEASE)
            _pdu(peer)
        answers.put((done, ""))
    except (OSError, ConnectionError) as fault:
        start.abort()
        answers.put((time.monotonic(), str(fault) or type(fault).__name__))
    except Exception as fault:  # noqa: BLE001 - a broken barrier, above all: the parent must hear of it
        answers.put((time.monotonic(), repr(fault)))


def _max_length(accepted: bytes) -> int:
    at = accepted.find(b"\x51\0\0\4")  # PS3.8 Table D.1-2
    return int.from_bytes(accepted[at + 4 : at + 8], "big") if at > 0 else 0


def _pdu(peer: socket.socket) -> bytes:
    received = b""
    while len(received) < 6 or len(received) < 6 + int.from_bytes(received[2:6], "big"):
        piece = peer.recv(65536)
        if not piece:
            break
        received += piece
    return received


def sent_in(receiver: Receiver, images: Study, senders: int, count: int, numbers: Iterator[int]) -> float:
    """Let so many senders send so many images in all; seconds from the start to the last answer."""
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(senders + 1), fork.Queue()
    share = count // senders
    ranges = [range(first * SHARE, first * SHARE + share) for first in itertools.islice(numbers, senders)]
    crowd = [fork.Process(target=send, args=(receiver, images, mine, start, answers)) for mine in ranges]
    for one in crowd:
        one.start()
    start.wait(timeout=120)
    began = time.monotonic()
    results = [answers.get(timeout=600) for _ in crowd]
    for one in crowd:
        one.join()
    if faults := [why for _, why in results if why]:
        raise ConnectionError("; ".join(sorted(set(faults))))
    return float(max(done for done, _ in results) - began)


# The receivers ----------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A program that receives, in a folder of its own."""

    name: str
    title: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    seconds: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    """By the number of senders, and whether somebody inferred beside."""
    cpu: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    """Processor time of the receiver for each image; seconds."""

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.folder.mkdir()
        self.port = _free_port()
        self.process = self.begin(self.port, self.command())

    def begin(self, port: int, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process, and wait until it takes connections."""
        log = (self.folder / "log.txt").open("ab")
        environment = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return process
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not start: {(self.folder / 'log.txt').read_text()[-2000:]}")

    def port_for(self, sender: int) -> int:
        """Give the port for a sender by its number."""
        return self.port

    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Give the processes that were started."""
        return [self.process] if self.process is not None else []

    def stop(self) -> None:
        """Stop it and remove what it received."""
        for process in self.processes():
            process.send_signal(signal.SIGTERM)
        for process in self.processes():
            process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cpu_s(self) -> float:
        """Processor time so far, with that of its children; seconds."""
        owns = [psutil.Process(process.pid) for process in self.processes()]
        times = [one.cpu_times() for own in owns for one in (own, *own.children(recursive=True))]
        return float(sum(one.user + one.system + one.children_user + one.children_system for one in times))

    def rss_mib(self) -> float:
        """Memory; MiB."""
        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def command(self) -> list[str]:
        """Give its command line."""
        raise NotImplementedError


class Ours(Receiver):
    """The node's listener: every file, name and row survives a power cut before the answer."""

    def command(self) -> list[str]:
        """Give its command line."""
        return self.listen(self.port)

    def listen(self, port: int) -> list[str]:
        """Give the command line of a listener on a port."""
        settings = self.folder / f"node-{port}.toml"
        settings.write_text(
            f'[node]\nae_title = "{self.title}"\nport = {port}\nmax_associations = 200\n'
            f'[[senders]]\nae_title = "{SENDER}"\n[storage]\nfolder = "data"\nmin_free_mib = 0\n'
            "min_free_percent = 0.0\n[network]\nsockets_per_host = 256\n[log]\nlevel = 'warning'\n"
        )
        return [sys.executable, "-m", "scp_node.cli.main", "listen", "--config", str(settings)]


@dataclass
class Several(Ours):
    """Several listeners of the node over one folder, each on a port of its own; the senders take turns."""

    listeners: int = 2
    others: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By port: those beside the first."""

    def start(self) -> None:
        """Start the first one, which makes the tables, and then the others."""
        super().start()
        ports = [_free_port() for _ in range(self.listeners - 1)]
        self.others = {port: self.begin(port, self.listen(port)) for port in ports}

    def port_for(self, sender: int) -> int:
        """Give the port for a sender by its number."""
        return [self.port, *self.others][sender % self.listeners]

    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Give the processes that were started."""
        return [*super().processes(), *self.others.values()]


class Storescp(Receiver):
    """dcmtk, a process for each association; nothing is synced."""

    def command(self) -> list[str]:
        """Give its command line."""
        (self.folder / "out").mkdir()
        options = ["--fork", "--max-pdu", str(MAX_PDU), "-aet", self.title, "-od", str(self.folder / "out")]
        return ["storescp", *options, str(self.port)]


class Orthanc(Receiver):
    """Orthanc with its own SQLite index, as it is installed."""

    def command(self) -> list[str]:
        """Give its command line."""
        settings = {
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "HttpServerEnabled": False,
            "DicomPort": self.port,
            "DicomAet": self.title,
            "DicomAlwaysAllowStore": True,
            "MaximumPduLength": MAX_PDU,
            "DicomThreadsCount": 4,
            "Plugins": [],
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        return ["Orthanc", str(self.folder / "orthanc.json")]


class Stock(Receiver):
    """A plain pynetdicom SCP that writes what it gets; nothing is synced."""

    def command(self) -> list[str]:
        """Give its command line."""
        return [sys.executable, "-c", STOCK, self.title, str(self.port), str(self.folder)]


STOCK = """
import pathlib, socket, sys, threading, uuid
from pynetdicom import AE, AllStoragePresentationContexts, evt
title, port, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
def store(event):
    (folder / f"{uuid.uuid4().hex}.dcm").write_bytes(event.encoded_dataset())
    return 0
def opened(event):
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
ae = AE(title)
ae.maximum_pdu_size = 131072
ae.maximum_associations = 200
ae.supported_contexts = AllStoragePresentationContexts
ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_CONN_OPEN, opened)])
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The measurement --------------------------------------------------------------------------------------------


INFERENCE = """
import torch
from pipeline.detect.weights import load_weights
net = load_weights().screening.eval()
tile = torch.zeros(1, 1, 80, 128, 128)
with torch.inference_mode():
    net(tile)
    print("ready", flush=True)
    while True:
        net(tile)
"""


@contextmanager
def inference(*, wanted: bool) -> Iterator[None]:
    """Search one tile again and again in another process, on as many cores as the node's detector takes: all."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-c", INFERENCE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the inference did not start")
            yield
        finally:
            process.kill()


def measure(
    receivers: list[Receiver], images: Study, count: int, rounds: int, numbers: Iterator[int], *, beside: bool
) -> None:
    """Interleave the receivers and the numbers of senders, round by round; the first round warms up."""
    for number in range(rounds + 1):
        for senders in (1, 4):
            for one in receivers:
                one.start()
                try:
                    sent_in(one, images, 1, 10, numbers)
                    with inference(wanted=beside):
                        used = one.cpu_s()
                        seconds = sent_in(one, images, senders, count, numbers)
                        used = (one.cpu_s() - used) / count
                finally:
                    one.stop()
                where = " beside inference" if beside else ""
                print(f"round {number}: {one.name}, {senders} senders{where}: {seconds:.2f} s", flush=True)
                if number:
                    one.seconds.setdefault((senders, beside), []).append(seconds)
                    one.cpu.setdefault((senders, beside), []).append(used)


def crowd(ours: Receiver, images: Study, numbers: Iterator[int]) -> str:
    """Hold 100 associations from one host at the same time, several times; say what the memory did."""
    ours.start()
    try:
        sizes = []
        for _ in range(4):
            seconds = sent_in(ours, images, 100, 300, numbers)
            sizes.append(ours.rss_mib())
        return (
            f"100 simultaneous associations from one host: all accepted, 300 images stored in {seconds:.1f} s; "
            f"memory of the listener after each of four rounds: {', '.join(f'{size:.0f}' for size in sizes)} MiB."
        )
    finally:
        ours.stop()


def report(receivers: list[Receiver], count: int, rows: int, load: tuple[float, ...]) -> str:
    """Write the tables: on a free machine, and beside inference where that was measured."""
    ours = receivers[0]
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores of {_processor()}, load average before "
        f"{load[0]:.1f}; {count} images of {rows}x{rows} in all, medians of {len(ours.seconds[1, False])} "
        "interleaved rounds, lowest and highest in brackets; CPU is the receiver's time for each image, in ms, by "
        "number of senders. `python -m bench.bench_receive`"
    )
    parts = [head, _table(receivers, count, beside=False)]
    if (1, True) in ours.seconds:
        parts += ["Beside inference, all of them beside the same:", _table(receivers, count, beside=True)]
    return "\n\n".join(parts)


def _table(receivers: list[Receiver], count: int, *, beside: bool) -> str:
    lines = [
        "| receiver | one association | four associations | ours is, with one | with four | CPU |",
        "|---|---|---|---|---|---|",
    ]
    forms, ours = [(senders, beside) for senders in (1, 4)], receivers[0]
    for one in receivers:
        cells = []
        for form in forms:
            speeds = [count / seconds for seconds in one.seconds[form]]
            cells.append(f"{statistics.median(speeds):.0f} images/s ({min(speeds):.0f} to {max(speeds):.0f})")
        cells += [
            f"{statistics.median(one.seconds[form]) / statistics.median(ours.seconds[form]):.2f} x"
            for form in forms
        ]
        cells.append(", ".join(f"{statistics.median(one.cpu[form]) * 1000:.1f}" for form in forms))
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _inside_namespace() -> int | None:
    """Run again in a network namespace with an MTU of 1500; ``None`` when that is not possible."""
    if os.environ.get(INSIDE) or shutil.which("unshare") is None or os.geteuid() != 0:
        return None
    tried = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    if tried.returncode:
        return None
    inner = 'ip link set lo up mtu 1500 && exec "$@"'
    command = ["unshare", "--net", "bash", "-c", inner, "bash", sys.executable, "-m", "bench.bench_receive"]
    return subprocess.run([*command, *sys.argv[1:]], check=False, env={**os.environ, INSIDE: "1"}).returncode


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_receive", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--no-inference", action="store_true", help="leave out the rounds beside inference")
    parser.add_argument("--listeners", type=int, default=1, help="more than one: a row of so many listeners")
    parser.add_argument("--results", type=Path, help="file whose section is to be written anew")
    asked = parser.parse_args()
    if (code := _inside_namespace()) is not None:
        return code
    kinds: list[type[Receiver]] = [Ours, Stock]
    if shutil.which("storescp"):
        kinds.insert(1, Storescp)
    if shutil.which("Orthanc") and os.environ.get(INSIDE):
        kinds.insert(2, Orthanc)
    names = {Ours: "nodule-node (fsync)", Storescp: "storescp --fork", Orthanc: "Orthanc", Stock: "pynetdicom SCP"}
    load = os.getloadavg()
    numbers = iter(range(1, 10**6))
    images = study(asked.rows)
    with tempfile.TemporaryDirectory() as folder:
        receivers = [kind(names[kind], "RECEIVER", Path(folder) / kind.__name__) for kind in kinds]
        if asked.listeners > 1:
            name = f"nodule-node, {asked.listeners} listeners"
            receivers.insert(1, Several(name, "RECEIVER", Path(folder) / "Several", listeners=asked.listeners))
        for beside in (False,) if asked.no_inference else (False, True):
            measure(receivers, images, asked.images, asked.rounds, numbers, beside=beside)
        text = report(receivers, asked.images, asked.rows, load)
        text += "\n\n" + crowd(receivers[0], images, numbers)
    publish(asked.results, NAME, "Receiving", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
