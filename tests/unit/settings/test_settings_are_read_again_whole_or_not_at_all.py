"""What SIGHUP means: a snapshot of checked settings, what changed, and which process has to do what."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from scp_node.reload import RESTARTS, Signals, changed, effect, read_again, take_up, write_snapshot
from scp_node.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = """
[[senders]]
ae_title = "CT"
[routing]
"CT" = []
[storage]
folder = "data"
[tls]
certificate = "tls/node.pem"
[selection]
skip_patient_ids = ["QA"]
"""


def written(folder: Path, text: str = FILE) -> Path:
    (folder / "node.toml").write_text(text)
    return folder / "node.toml"


def test_a_snapshot_means_the_same_wherever_it_lies_and_takes_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODULE_NODE__STUDY__QUIET_S", "7.5")
    settings = load_settings(written(tmp_path))
    snapshot = write_snapshot(settings, 3)
    monkeypatch.setenv("NODULE_NODE__STUDY__QUIET_S", "99.0")
    monkeypatch.chdir("/")
    again = load_settings(snapshot)
    assert changed(settings, again) == frozenset()
    assert again.study.quiet_s == 7.5
    assert again.storage.folder == tmp_path / "data"
    assert (again.path, again.snapshot, again.version) == (tmp_path / "node.toml", snapshot, 3)
    assert again.tls.certificate == str(tmp_path / "tls" / "node.pem")


def test_a_snapshot_is_for_our_user_alone_and_replaces_the_last_one_whole(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path))
    write_snapshot(settings, 1)
    snapshot = write_snapshot(settings, 2)
    assert snapshot.stat().st_mode & 0o777 == 0o600
    assert snapshot.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(snapshot.read_text())["version"] == 2
    assert [path.name for path in snapshot.parent.iterdir()] == ["settings.json"]


def test_a_broken_snapshot_is_a_fault_like_any_other(tmp_path: Path) -> None:
    broken = tmp_path / "settings.json"
    for text in ("", "[]", "{}", '{"source": 1}'):
        broken.write_text(text)
        with pytest.raises(SettingsError, match="is not the snapshot of a running node"):
            load_settings(broken)


def test_a_bad_file_gives_every_fault_and_a_good_one_the_new_settings(tmp_path: Path) -> None:
    running = load_settings(written(tmp_path))
    bad = written(tmp_path, FILE + "[node]\nport = 0\n[wurker]\n")
    faults = read_again(running, bad)
    assert isinstance(faults, tuple)
    assert len(faults) == 2
    good = read_again(running, written(tmp_path, FILE + '[[senders]]\nae_title = "MR"\n'))
    assert isinstance(good, Settings)
    assert changed(running, good) == {"senders"}


@pytest.mark.parametrize("key", ["folder", "database_url"])
def test_what_holds_the_nodes_memory_cannot_change_while_it_runs(tmp_path: Path, key: str) -> None:
    running = load_settings(written(tmp_path))
    text = FILE.replace(
        'folder = "data"', f'folder = "data"\n{key} = "sqlite:///x"' if key != "folder" else 'folder = "x"'
    )
    faults = read_again(running, written(tmp_path, text))
    assert faults == (
        f"{tmp_path / 'node.toml'}: storage.{key} cannot change while the node runs: stop it, and start it again",
    )


def test_every_section_means_something_to_some_process() -> None:
    for section in Settings.model_fields:
        assert any(effect(process, frozenset({section})) != "nothing" for process in RESTARTS), section


def test_only_what_changed_is_touched() -> None:
    assert effect("listen", frozenset({"senders", "routing"})) == "swap"
    assert effect("listen", frozenset({"senders", "node"})) == "restart"
    assert effect("listen", frozenset({"study", "detector"})) == "nothing"
    assert effect("work", frozenset({"senders"})) == "restart"
    assert effect("work", frozenset({"metrics", "audit"})) == "nothing"
    assert effect("metrics", frozenset({"detector"})) == "nothing"


def test_a_process_that_is_told_keeps_its_settings_when_the_file_is_bad(tmp_path: Path) -> None:
    running = load_settings(written(tmp_path))
    assert take_up("listen", running, written(tmp_path, "[node]\nport = 0\n")) == (running, "nothing")
    new, following = take_up("listen", running, written(tmp_path, FILE + '[[senders]]\nae_title = "MR"\n'))
    assert ([sender.ae_title for sender in new.senders], following) == (["CT", "MR"], "swap")


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_hanging_up_asks_to_read_again_and_terminating_to_stop(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.wait() == "reload"
    assert signals.take_hangup()
    assert not signals.take_hangup()
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.wait() == "stop"
    assert signals.wait() == "stop"
