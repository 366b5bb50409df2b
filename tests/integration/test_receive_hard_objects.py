"""Every odd and broken object of the shared data through C-STORE: the answer that its table names."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.listening import listening
from tests.raw_sender import raw_object, send_raw

DATA = Path(os.environ.get("NODULE_NODE_TEST_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="NODULE_NODE_TEST_DATA is not set to the shared data")


def rows():
    if not DATA.is_dir():
        return []
    with (DATA / "expected.csv").open() as table:
        return [row for row in csv.DictReader(table) if row["path"].startswith("hard/")]


# Where the table says "mixed": these fail, by the way they do, and no others.
REFUSED = {
    "3gb-bulk-data-truncated": 0xA900,  # its UIDs hold letters
    "no_preamble_dicm_in_data": 0xC000,
    "FreezePattern.dcm": 0xA900,  # no SOP Instance UID
    "GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm": 0xC000,
    "GH223.dcm": 0xA900,  # no Study and Series UID
    "GH487.dcm": 0xA900,
    "JPEGLSNearLossless_16.dcm": 0xA900,
    "UN_sequence.dcm": 0xC000,  # no identifier at all
    "empty_charset_LEI.dcm": 0xA900,
    "meta_missing_tsyntax.dcm": 0xC000,
    "nested_priv_SQ.dcm": 0xC000,
    "no_meta.dcm": 0xC000,
    "no_meta_group_length.dcm": 0xA900,
    "HTJ2KLossless_08_RGB.dcm": 0xA900,
    "HTJ2K_08_RGB.dcm": 0xA900,
    "JLSL_16_15_1_1F.dcm": 0xA900,
    "bad_sequence.dcm": 0xA900,  # its UIDs are hexadecimal hashes
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with listening(tmp_path_factory.mktemp("hard")) as running:
        yield running


def objects_of(folder: Path):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): raw_object(path) for path in files}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["path"])
def test_the_answer_on_the_wire_is_the_one_of_the_table(node, row):
    sent = objects_of(DATA / row["path"])
    assert sent
    answers = dict(zip(sent, send_raw(node.port, list(sent.values())), strict=True))
    shown = {name: None if status is None else f"{status:04X}" for name, status in answers.items()}
    match row["store"]:
        case "success":
            assert set(answers.values()) == {0x0000}, shown
        case "failure":
            assert set(answers.values()) <= {0xA900, 0xC000}, shown
        case "mixed":
            assert answers == {name: REFUSED.get(name, 0x0000) for name in answers}, shown
        case other:
            pytest.fail(f"the table says {other!r}")
