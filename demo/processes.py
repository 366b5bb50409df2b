"""Programs that run beside ours: started, waited for until they answer, and always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from demo.dicom_client import Peer, echo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0


class ProgramError(RuntimeError):
    """A program did not start; the text holds the end of its log."""


@contextmanager
def running(
    command: Sequence[object], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for the length of a block, its output in a file; at the end ask it to stop, then insist."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends us; we end the others, in order
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"  {command[-1]} did not stop within {STOP_LIMIT_S:.0f} s and was killed", file=sys.stderr)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_echo(peer: Peer, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a peer answers a C-ECHO.

    Raises
    ------
    ProgramError
        When its process ended, or after ``START_LIMIT_S``.
    """
    end = time.monotonic() + START_LIMIT_S
    while not echo(peer):
        if process.poll() is not None or time.monotonic() > end:
            raise ProgramError(f"{peer.ae_title} did not start; {log} says:\n{tail(log)}")
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback address that nobody uses at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
