"""Instances on disk: names, versions, durability, and what may not happen."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pydicom
import pytest

from scp_node.identifiers import Part10, split_file
from scp_node.spool import FileHeader, Spool

HEADER = FileHeader("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", "SENDER", "NODULE_NODE")
DATASET = b"\x08\x00\x18\x00UI\x06\x001.2.3\x00"


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "data")
    (tmp_path / "data").mkdir()
    spool.prepare()
    return spool


def test_the_file_is_a_dicom_file_with_both_titles(spool):
    path = spool.keep(HEADER, DATASET)
    read = pydicom.dcmread(spool.folder / path)
    assert read.SOPInstanceUID == "1.2.3"
    assert read.file_meta.SourceApplicationEntityTitle == "SENDER"
    assert read.file_meta.ReceivingApplicationEntityTitle == "NODULE_NODE"
    assert read.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    part10 = split_file(HEADER.encode() + DATASET)
    assert isinstance(part10, Part10)
    assert part10.called_ae == "NODULE_NODE"


def test_other_bytes_get_another_name_and_the_same_bytes_the_same(spool):
    first = spool.keep(HEADER, DATASET)
    second = spool.keep(HEADER, DATASET + b"\x08\x00\x60\x00CS\x02\x00CT")
    assert second == first.replace(".dcm", ".v2.dcm")
    assert spool.keep(HEADER, DATASET) == first
    assert list(spool.objects()) == sorted([first, second])
    assert spool.read(first).endswith(DATASET)


def test_a_name_that_is_taken_meanwhile_is_never_overwritten(spool, monkeypatch):
    first = spool.keep(HEADER, DATASET)
    real = type(spool.folder).exists
    monkeypatch.setattr(
        type(spool.folder), "exists", lambda path: False if path.name == first[-36:] else real(path)
    )
    assert spool.keep(HEADER, b"other") == first.replace(".dcm", ".v2.dcm")
    assert spool.read(first).endswith(DATASET)


def test_file_and_every_new_folder_are_synced_before_the_name_is_given_out(spool, monkeypatch):
    synced = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append(
            f"{kind} {str(Path(f'/proc/self/fd/{descriptor}').readlink()).removeprefix(str(spool.folder))}"
        )
        real_fsync(descriptor)

    def link(source, target):
        synced.append("name")
        real_link(source, target)

    monkeypatch.setattr("scp_node.spool.os.fsync", fsync)
    monkeypatch.setattr("scp_node.spool.os.link", link)
    path = spool.keep(HEADER, DATASET)
    shelf = "/" + path.rsplit("/", 1)[0]
    assert synced[0].startswith("file /incoming/")
    assert synced[1:] == ["name", f"folder {shelf}"]
    shutil.rmtree(spool.folder / "objects" / shelf[-2:])
    synced.clear()
    spool.keep(HEADER, DATASET)
    assert synced[0] == "folder /objects"
    assert synced[1].startswith("file /incoming/")
    assert synced[2:] == ["name", f"folder {shelf}"]


def test_a_system_that_takes_a_few_bytes_at_a_time_gets_all_of_them(spool, monkeypatch):
    real = os.writev
    monkeypatch.setattr(
        "scp_node.spool.os.writev", lambda descriptor, pieces: real(descriptor, [bytes(pieces[0][:7])])
    )
    path = spool.keep(HEADER, DATASET)
    assert spool.read(path) == HEADER.encode() + DATASET


def test_all_shelves_are_there_before_the_first_image(spool):
    assert len(list((spool.folder / "objects").iterdir())) == 256


def test_a_shelf_that_leads_outside_is_refused_at_start(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "objects").mkdir(parents=True)
    (tmp_path / "data" / "objects" / "00").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="would lie outside the storage folder"):
        Spool(tmp_path / "data").prepare()


def test_parts_of_dead_processes_are_swept_and_those_of_living_ones_stay(spool):
    incoming = spool.folder / "incoming"
    (incoming / f"{os.getppid()}-a.part").write_bytes(b"living")
    (incoming / f"{os.getpid()}-b.part").write_bytes(b"of a process that had our number before")
    (incoming / "999999999-c.part").write_bytes(b"dead")
    (incoming / "odd.part").write_bytes(b"nobody's")
    assert spool.sweep() == 3
    assert [path.name for path in incoming.iterdir()] == [f"{os.getppid()}-a.part"]


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "objects/../../x"])
def test_paths_outside_the_folder_are_refused(spool, path):
    with pytest.raises(OSError, match="would lie outside the storage folder"):
        spool.read(path)


def test_a_link_that_leads_outside_is_refused(spool, tmp_path):
    (spool.folder / "objects" / "trap").symlink_to(tmp_path)
    with pytest.raises(OSError, match="would lie outside the storage folder"):
        spool.read("objects/trap/secret")


def test_room_is_judged_by_the_larger_of_both_limits(tmp_path):
    assert Spool(tmp_path).has_room()
    assert not Spool(tmp_path, min_free_mib=1 << 40).has_room()
    assert not Spool(tmp_path, min_free_percent=99.9999).has_room()
