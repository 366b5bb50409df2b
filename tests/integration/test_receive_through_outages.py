"""Disk full in mid file, database gone: "try again later", nothing half-written, and recovery without a restart."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine
from scp_node.ledger.tables import event, instance
from scp_node.network.library import send_encoded
from scp_node.network.listener import _assembled
from scp_node.spool import Spool
from tests.builders import ChestSeries
from tests.listening import listening, settings_for
from tests.raw_sender import association, raw, send_raw
from tests.worker_node import wait_for

BIG = ChestSeries("big", slices=3, rows=512, columns=512)
SMALL = ChestSeries("small", slices=3, rows=32, columns=32)
LIMIT = 200 * 1024  # less than one image, more than what the database writes


def objects(series):
    return [raw(dataset) for dataset in series.datasets()]


def statuses_on_one_association(port, images, meanwhile):
    """Send on one association; ``meanwhile[i]`` is done before the i-th image."""
    answers = []
    with association(port, images) as opened:
        for image, act in zip(images, meanwhile, strict=True):
            act()
            context = opened.accepted_contexts[0]
            answers.append(
                send_encoded(opened, context, image.sop_class_uid, image.sop_instance_uid, image.dataset)
            )
    return answers


def files_of(node):
    return sorted(path for path in node.folder.rglob("*") if path.is_file() and "sqlite" not in path.name)


def test_a_disk_that_is_full_in_mid_file_is_a700_and_the_next_image_is_stored_on_the_same_association(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))  # a write beyond fails half-way

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with listening(tmp_path) as node:
        try:
            answers = statuses_on_one_association(node.port, objects(BIG), (full, lambda: None, free))
        finally:
            free()
        assert answers == [0xA700, 0xA700, 0x0000]
        (row,) = node.instances()
        assert [path.relative_to(node.folder).as_posix() for path in files_of(node)] == [row.path]
        assert send_raw(node.port, objects(BIG)) == [0x0000] * 3
        assert len(node.instances()) == len(files_of(node)) == 3


def test_a_database_server_that_is_gone_is_a700_and_served_again_when_it_is_back(tmp_path, postgres):
    url = postgres.new_database()
    with listening(tmp_path, storage=f'database_url = "{url}"') as node:
        first, second, third = objects(SMALL)
        assert send_raw(node.port, [first]) == [0x0000]
        postgres.stop()
        try:
            assert send_raw(node.port, [second, third]) == [0xA700, 0xA700]
        finally:
            postgres.start()
        assert len(node.instances()) == 1
        assert send_raw(node.port, [second, third]) == [0x0000, 0x0000]
        rows = node.instances()
        assert sorted(row.path for row in rows) == [
            path.relative_to(node.folder).as_posix() for path in files_of(node)
        ]
        assert len(rows) == 3


def test_a_database_server_that_dies_in_mid_association_costs_no_image_that_was_accepted(tmp_path, postgres):
    url = postgres.new_database()
    with listening(tmp_path, storage=f'database_url = "{url}"') as node:
        images = objects(SMALL)
        meanwhile = (lambda: None, lambda: postgres.stop(kill=True), postgres.start)
        answers = statuses_on_one_association(node.port, images, meanwhile)
        assert answers == [0x0000, 0xA700, 0x0000]
        accepted = {images[0].sop_instance_uid, images[2].sop_instance_uid}
        assert {row.sop_instance_uid for row in node.instances()} == accepted


def test_the_start_heals_what_a_crash_left_and_says_what_it_did(tmp_path):
    with listening(tmp_path) as node:
        assert send_raw(node.port, objects(SMALL)) == [0x0000] * 3
        orphan, lost, _ = node.instances()
    settings = settings_for(tmp_path)
    (settings.storage.folder / "incoming" / "999999999-dead.part").write_bytes(b"half")
    (settings.storage.folder / lost.path).unlink()
    engine = make_engine(settings.database_url)
    with engine.begin() as connection:
        connection.execute(instance.delete().where(instance.c.id == orphan.id))
    with capture_logs() as said:
        _assembled(settings, Spool(settings.storage.folder), Arrivals(engine))
    (checked,) = (line for line in said if line["event"] == "spool checked")
    counts = {"partial_files_deleted": 1, "files_indexed": 1, "files_lost": 1}
    assert counts.items() <= checked.items()
    with engine.connect() as connection:
        told = [row.text for row in connection.execute(event.select())]
    engine.dispose()
    assert f"Instance {orphan.sop_instance_uid} was found on disk after a crash and counted in." in told
    assert f"The file of instance {lost.sop_instance_uid} is gone from the disk; send it again." in told
    assert list((settings.storage.folder / "incoming").iterdir()) == []


def test_below_the_watermark_images_come_later_and_are_taken_when_there_is_room_again(tmp_path, monkeypatch):
    room = [False]
    monkeypatch.setattr(Spool, "has_room", lambda _self: room[0])
    with listening(tmp_path) as node:
        with pytest.raises(ConnectionError):
            send_raw(node.port, objects(SMALL))
        assert files_of(node) == []
        room[0] = True
        wait_for(lambda: send_raw(node.port, objects(SMALL)) == [0x0000] * 3, within_s=60)
        room[0] = False
        with pytest.raises(ConnectionError):
            send_raw(node.port, objects(replace(SMALL, name="late")))
