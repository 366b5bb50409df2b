"""A PostgreSQL server for tests: its own folder, a socket in it and no network port, run by an ordinary user.

It comes from the Debian package ``postgresql`` (``tests/install_debian.sh``) and ends with the process that
started it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = "nodule"
NO_SERVER = "PostgreSQL is not installed (Debian package postgresql)"
DATABASES = ("sqlite", "postgresql")
# As an ordinary user, and dying with the process that started it: a fast shutdown (SIGINT) sent by the kernel. The
# death signal comes last, because a change of user clears it; the interpreter may lie where that user cannot go.
_AS_USER = """
import ctypes, os, sys
uid, gid, *command = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([]), os.setgid(int(gid)), os.setuid(int(uid))
ctypes.CDLL(None).prctl(1, 2)
os.execv(command[0], command)
"""
_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",  # processes are killed in these tests, not machines
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "shared_buffers": "16MB",
}


def programs() -> Path | None:
    """The folder of the server's programs; ``None`` when it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve())
    return found[-1].parent if found else None


@dataclass
class PostgresServer:
    """One server; :meth:`stop` and :meth:`start` are outages of the database."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers; in the main thread, since it dies with the thread."""
        binaries = programs()
        assert binaries is not None, NO_SERVER
        options = [part for item in _OPTIONS.items() for part in ("-c", "=".join(item))]
        command = [str(binaries / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(_as_user(command), stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 120.0
        while True:
            try:
                psycopg.connect(self._dsn("postgres")).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """Cut all connections and stop; ``kill`` as a power cut of the server's processes would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if kill else signal.SIGINT)
            self._process.wait(120)
            self._process = None

    def new_database(self, template: str = "template0") -> str:
        """Make a database; gives its SQLAlchemy URL."""
        name = f"node{next(self._numbers)}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return self.url(name)

    def new_ledger(self) -> str:
        """Make a database that holds the ledger's tables, without rows."""
        return self.new_database(self._ledger_template)

    def url(self, name: str) -> str:
        """Give the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    @cached_property
    def _ledger_template(self) -> str:
        url = self.new_database()
        engine = make_engine(url)
        tables.metadata.create_all(engine)
        engine.dispose()
        return str(engine.url.database)

    def _dsn(self, name: str) -> str:
        return f"user={USER} dbname={name} host={self.folder} connect_timeout=5"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server; the test is skipped where none is installed."""
    binaries = programs()
    if binaries is None:
        pytest.skip(NO_SERVER)
    folder = Path(tempfile.mkdtemp(prefix="nn-pg-"))  # short: a socket's path has 107 characters at most
    try:
        account = _account()
        os.chown(folder, account.pw_uid, account.pw_gid)
        command = [
            str(binaries / "initdb"), "-D", str(folder / "data"), "-U", USER, "--auth=trust", "--no-sync",
            "--encoding=UTF8", "--locale=C",
        ]  # fmt: skip
        done = subprocess.run(_as_user(command), cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    """Who runs the server, which refuses to be root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    names = {account.pw_name for account in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _as_user(command: list[str]) -> list[str]:
    account = _account()
    return [sys.executable, "-c", _AS_USER, str(account.pw_uid), str(account.pw_gid), *command]
