"""``nodule-node db backup``: a copy while the node runs, a sentence when there is nothing or no room for it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from typer.testing import CliRunner

from scp_node.cli.main import application


def backup(site, file):
    return CliRunner().invoke(application(["db"]), ["db", "backup", str(file), "--config", str(site.config)])


def test_the_copy_is_a_database_with_every_study(site, tmp_path):
    site.study("2.25.1", "REPORTED")
    done = backup(site, tmp_path / "copy.sqlite")
    assert done.exit_code == 0
    assert "Copied to" in done.output
    with closing(sqlite3.connect(tmp_path / "copy.sqlite")) as copy:
        assert copy.execute("SELECT study_uid FROM nn_study").fetchall() == [("2.25.1",)]


def test_a_file_that_exists_is_kept(site, tmp_path):
    (tmp_path / "copy.sqlite").write_text("precious")
    done = backup(site, tmp_path / "copy.sqlite")
    assert done.exit_code == 1
    assert "File exists" in done.output
    assert (tmp_path / "copy.sqlite").read_text() == "precious"


def test_before_the_node_has_run_there_is_nothing_to_copy(tmp_path):
    (tmp_path / "node.toml").write_text('[storage]\nfolder = "nowhere"\n')
    command = ["db", "backup", str(tmp_path / "copy"), "--config", str(tmp_path / "node.toml")]
    done = CliRunner().invoke(application(["db"]), command)
    assert done.exit_code == 1
    assert "nothing to copy" in done.output
