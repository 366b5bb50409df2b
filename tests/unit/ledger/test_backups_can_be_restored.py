"""A backup is a whole, private copy, made while the database is in use; nothing is ever overwritten."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.backup import BackupFailed, back_up, back_up_before_upgrade
from scp_node.ledger.engine import make_engine, schema_is_current
from scp_node.workflow import upgrade_database
from tests.ledgers import add_study


@pytest.fixture
def database(new_database_url):
    """A database with all tables and one study; its engine stays open."""
    upgrade_database(new_database_url)
    engine = make_engine(new_database_url)
    add_study(engine)
    yield new_database_url, engine
    engine.dispose()


def restored(file, request):
    """The URL of a database made from a backup."""
    if file.suffix == ".sqlite":
        return f"sqlite:///{file}"
    url = request.getfixturevalue("postgres").new_database()
    program = shutil.which("pg_restore")
    if program is None:
        pytest.skip("pg_restore is not installed")
    address = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run([program, "--no-owner", f"--dbname={address}", str(file)], check=True)
    return url


def backup_name(url):
    return "copy.sqlite" if url.startswith("sqlite") else "copy.dump"


def test_a_backup_holds_our_tables_and_the_engines_and_is_for_our_eyes_only(database, tmp_path, request):
    url, engine = database
    file = tmp_path / "backups" / backup_name(url)
    with engine.begin() as connection:
        connection.execute(tables.study.update().values(sender="UNDER_WAY"))  # not yet committed: not in the copy
        back_up(url, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    copy = make_engine(restored(file, request))
    with copy.connect() as connection:
        assert connection.execute(sa.select(tables.study.c.sender)).scalar_one() == "MODALITY"
        schema = "" if copy.dialect.name == "sqlite" else "dbos."
        assert connection.execute(sa.text(f"SELECT count(*) FROM {schema}dbos_migrations")).scalar_one() == 1
    assert schema_is_current(copy)
    copy.dispose()


def test_a_file_that_exists_is_not_overwritten(database, tmp_path):
    file = tmp_path / "kept"
    file.write_text("precious")
    with pytest.raises(BackupFailed, match="File exists"):
        back_up(database[0], file)
    assert file.read_text() == "precious"


def test_a_backup_that_fails_leaves_no_file(tmp_path, postgres):
    file = tmp_path / "copy.dump"
    with pytest.raises(BackupFailed, match="pg_dump failed"):
        back_up(postgres.url("nowhere"), file)
    assert not file.exists()


def test_only_an_older_database_is_copied_before_an_upgrade(database, tmp_path):
    url, engine = database
    assert back_up_before_upgrade(url, tmp_path / "backups") is None
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_alembic_version SET version_num = '0001'"))
    file = back_up_before_upgrade(url, tmp_path / "backups")
    assert file is not None
    assert file.stat().st_size > 0


def test_a_new_database_needs_no_copy(tmp_path):
    assert back_up_before_upgrade(f"sqlite:///{tmp_path / 'new.sqlite'}", tmp_path / "backups") is None
    assert not (tmp_path / "backups").exists()
