"""Copies the whole database, ours and the workflow engine's tables, into one file while the node runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from scp_node.ledger.engine import has_tables, make_engine, schema_is_current

if TYPE_CHECKING:
    from pathlib import Path


class BackupFailed(Exception):  # noqa: N818 (names the state, as the sentence does)
    """No backup was made; the text says why and what to do."""


def back_up(url: str, file: Path) -> None:
    """Write a consistent copy of the database into a new file, readable by us alone.

    A SQLite file is copied by ``VACUUM INTO``, a PostgreSQL database by ``pg_dump`` (custom format, for
    ``pg_restore``), which has to be installed.

    Raises
    ------
    BackupFailed
        The file exists, cannot be written, or the database's own tool failed.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as fault:
        raise BackupFailed(f"The backup {file} cannot be made: {fault.strerror}.") from None
    try:
        if sa.make_url(url).get_backend_name() == "sqlite":
            _vacuum_into(url, file)
        else:
            _dump(sa.make_url(url), file)
    except BackupFailed:
        file.unlink(missing_ok=True)
        raise


def back_up_before_upgrade(url: str, folder: Path) -> Path | None:
    """Copy a database whose schema is not of this version; ``None`` when it is new or needs no upgrade."""
    engine = make_engine(url)
    try:
        if not has_tables(engine, "nn_study") or schema_is_current(engine):
            return None
    finally:
        engine.dispose()
    kind = "sqlite" if sa.make_url(url).get_backend_name() == "sqlite" else "dump"
    file = folder / f"before-upgrade-{datetime.now(UTC):%Y%m%dT%H%M%S}.{kind}"
    back_up(url, file)
    return file


def _vacuum_into(url: str, file: Path) -> None:
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(file),))
    except sa.exc.DatabaseError as fault:
        raise BackupFailed(f"The database could not be copied: {fault.orig}.") from None
    finally:
        engine.dispose()


def _dump(url: sa.URL, file: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise BackupFailed("pg_dump is not installed: install PostgreSQL's client programs (postgresql-client).")
    address = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}
    command = [program, "--format=custom", f"--file={file}", f"--dbname={address}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | secret)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackupFailed(f"pg_dump failed: {last[0]}")
