"""Run by a test: opens many connections, says so, and holds them until it is closed."""

from __future__ import annotations

import resource
import socket
import sys


def main(port: int, count: int, beginning: bytes) -> None:
    """Every second connection sends the beginning of a request; the others say nothing."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 200), hard))
    held = []
    for number in range(count):
        held.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        if number % 2:
            held[-1].sendall(beginning)
    print("held", len(held), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
