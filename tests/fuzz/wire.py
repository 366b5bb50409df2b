"""Damaged conversations over real sockets, against the listener as a process of its own."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.fuzz import seeds
from tests.fuzz.mutation import damaged, rng_for

NAME = "wire"
SHARE = 5
HONEST_EVERY = 50
HONEST_S = 60.0
OURS = re.compile(r"[0-9a-f]{32}(\.v\d+)?\.dcm")
SITE = """
[node]
port = {port}
[[senders]]
ae_title = "SENDER"
[storage]
folder = "{folder}/root/data"
min_free_mib = 0
min_free_percent = 0.0
[network]
acse_timeout_s = 2.0
pdu_timeout_s = 2.0
idle_timeout_s = 3.0
[log]
level = "error"
"""


class Wire:
    """A listener and those who speak to it; one execution is one damaged conversation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inputs = seeds.conversations()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "root").mkdir()
        settings = folder / "node.toml"
        settings.write_text(SITE.format(port=self.port, folder=folder))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scp_node.cli.main", "listen", "--config", str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "stderr.txt").open("wb"),
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        self.slowest_s = 0.0
        self._wait()
        self._outside = sorted(folder.iterdir()), sorted((folder / "root").iterdir())

    def run(self, rng: random.Random) -> None:
        """Speak as a damaged sender, in one piece or in several."""
        data = damaged(rng.choice(self._inputs), self._inputs, rng)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=HONEST_S) as peer,
        ):
            cut = rng.randrange(len(data) + 1) if rng.random() < 0.3 else len(data)
            peer.sendall(data[:cut])
            peer.sendall(data[cut:])
            peer.settimeout(0.02)
            peer.recv(65536)

    def honest(self) -> None:
        """Check that a good sender is served, and that nothing lies where it should not."""
        started = time.monotonic()
        if not self._echo():
            raise AssertionError("an honest C-ECHO was not answered")
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if self._process.poll() is not None:
            raise AssertionError("the listener died")
        if (sorted(self._folder.iterdir()), sorted((self._folder / "root").iterdir())) != self._outside:
            raise AssertionError("a file lies outside the storage folder")
        for kind in ("objects", "quarantine"):
            for path in (self._folder / "root" / "data" / kind).rglob("*"):
                if path.is_file() and not OURS.fullmatch(path.name):
                    raise AssertionError(f"a file has a name of the sender's: {path.name}")

    def rss(self) -> int:
        """Memory of the listener; bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def close(self) -> None:
        """Stop the listener."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def _wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._echo():
                return
            time.sleep(0.2)
        raise AssertionError("the listener does not answer: " + (self._folder / "stderr.txt").read_text()[-2000:])

    def _echo(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=HONEST_S) as peer:
                peer.sendall(seeds.requests()[0])
                if _pdu(peer)[:1] != b"\x02":
                    return False
                peer.sendall(seeds.data_pdu(1, 3, seeds.ECHO))
                answered = _pdu(peer)[:1] == b"\x04"
                peer.sendall(seeds.RELEASE)
                return answered
        except OSError:
            return False


def _pdu(peer: socket.socket) -> bytes:
    received = b""
    while len(received) < 6 or len(received) < 6 + int.from_bytes(received[2:6], "big"):
        piece = peer.recv(65536)
        if not piece:
            break
        received += piece
    return received


def execute(folder: Path, seed: int, first: int, count: int, progress) -> dict[str, float]:
    """Hold so many conversations; gives the listener's memory after a fifth of them and at the end."""
    wire = Wire(folder)
    try:
        base = 0
        for number in range(first, first + count):
            progress(number)
            wire.run(rng_for(NAME, seed, number))
            if number % HONEST_EVERY == 0:
                wire.honest()
            if number - first == count // 5:
                time.sleep(4)  # what is half open ends
                base = wire.rss()
        time.sleep(4)
        wire.honest()
        return {"base": base, "end": wire.rss(), "slowest_s": round(wire.slowest_s, 3)}
    finally:
        wire.close()
