"""What a child tells of a fault never quotes a header, and a report's file is named by its UID."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.domain.outcome import Outcome
from scp_node.child import describe
from scp_node.children import ChildFailure, TransientFaultError, WrittenReport, file_report

RECORD = SimpleNamespace(
    sop_instance_uid="2.25.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    image_series_instance_uid="1.2.1",
    outcome=Outcome.FINDINGS,
    to_json=lambda: {"schema": 1},
)


def raised(fault):
    try:
        raise fault
    except Exception as caught:  # noqa: BLE001 - the traceback is the subject
        return caught


def test_a_fault_is_named_by_kind_and_place_only():
    told = describe(raised(ValueError("Patient's Name is MUELLER^JOERG")))
    assert told.startswith("ValueError at test_what_children_say.py:")
    assert "MUELLER" not in told


def test_a_child_gets_no_more_memory_than_its_limit():
    greedy = "from scp_node.child import limit_memory; limit_memory(512); bytearray(1 << 30)"
    ended = subprocess.run([sys.executable, "-c", greedy], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.strip().splitlines()[-1]) == (1, "MemoryError")


def test_a_fault_of_the_system_says_what_the_system_says():
    told = describe(raised(OSError(errno.ENOSPC, "No space left on device", "/spool/MUELLER.dcm")))
    assert told.startswith("OSError No space left on device at ")
    assert "MUELLER" not in told


def test_a_report_is_filed_under_the_hash_of_its_uid(tmp_path):
    reader = SimpleNamespace(write_report=lambda record, images, target, cancelled: WrittenReport("ab" * 32))
    filed = file_report(RECORD, [Path("a.dcm")], tmp_path, reader, lambda: False)
    assert filed["path"] == f"reports/{hashlib.sha256(b'2.25.1').hexdigest()[:32]}.dcm"
    assert (filed["sha256"], filed["outcome"], filed["record"]) == ("ab" * 32, "findings", {"schema": 1})


def test_a_report_that_could_not_be_written_may_be_tried_again(tmp_path):
    failed = ChildFailure("write_report", "the reader gave no answer in 300 s")
    reader = SimpleNamespace(write_report=lambda *_: failed)
    with pytest.raises(
        TransientFaultError, match=r"report of series 1\.2\.1: the reader gave no answer in 300 s\."
    ):
        file_report(RECORD, [], tmp_path, reader, lambda: False)
