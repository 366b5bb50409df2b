"""Real senders: dcmtk's dcmsend and storescu against the listener."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from pydicom import dcmwrite
from pydicom.uid import JPEGLSLossless, RLELossless, XRayRadiationDoseSRStorage

from tests.builders import ChestSeries
from tests.listening import listening
from tests.raw_sender import PRIVATE_CLASS, another

SMALL = ChestSeries(slices=4, rows=64, columns=64)
pytestmark = [
    pytest.mark.skipif(shutil.which("dcmsend") is None, reason="dcmtk (dcmsend, storescu) is not installed")
]


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path) as running:
        yield running


@pytest.fixture
def mixed(tmp_path):
    """A study with a dose report, and an object of a private class, in the midst of its images."""
    folder = tmp_path / "study"
    SMALL.write(folder)
    for name, sop_class in (("0001_dose", XRayRadiationDoseSRStorage), ("0002_private", PRIVATE_CLASS)):
        dcmwrite(folder / f"{name}.dcm", another(SMALL.datasets()[0], sop_class, name), enforce_file_format=True)
    return folder


def run(*command) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)


def test_dcmsend_delivers_a_study_with_dose_report_and_private_class(node, mixed):
    done = run(
        "dcmsend",
        "-v",
        "-aet",
        "SENDER",
        "-aec",
        "NODULE_NODE",
        "--no-uid-checks",
        "127.0.0.1",
        node.port,
        "+sd",
        mixed,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(row.purpose for row in node.instances()) == ["ct"] * 4 + ["other"] * 2


def test_storescu_delivers_images_and_dose_report(node, mixed):
    (mixed / "0002_private.dcm").unlink()  # storescu itself does not send unknown classes
    done = run("storescu", "-aet", "SENDER", "-aec", "NODULE_NODE", "-R", "127.0.0.1", node.port, "+sd", mixed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(row.purpose for row in node.instances()) == ["ct"] * 4 + ["other"]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_dcmsend_delivers_compressed_images(node, tmp_path, syntax):
    dataset = SMALL.datasets()[0]
    dataset.compress(syntax)
    path = tmp_path / "one.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    done = run(
        "dcmsend", "-aet", "SENDER", "-aec", "NODULE_NODE", "--decompress-never", "127.0.0.1", node.port, path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row.transfer_syntax_uid for row in node.instances()] == [syntax]


def test_echoscu_is_answered(node):
    assert run("echoscu", "-aet", "SENDER", "-aec", "NODULE_NODE", "127.0.0.1", node.port).returncode == 0
