"""A patient's name leaves in the bytes in which it came, whatever its character set, declared rightly or not."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from sr_writer.report import build_report, encode
from tests.reports import SMALL, analysis, frozen, headers, not_analysed

THREE = replace(SMALL, slices=3)
NAME = Tag(0x0010, 0x0010)
CHARACTER_SET = Tag(0x0008, 0x0005)

ROWS = {
    "no set, ASCII": (None, b"Smith^John"),
    "ISO_IR 100": (b"ISO_IR 100", "Müller^Jörg".encode("latin-1")),
    "ISO_IR 101": (b"ISO_IR 101", "Wałęsa^L".encode("iso8859-2")),
    "ISO_IR 144": (b"ISO_IR 144", "Люкceмбypг^И".encode("iso8859-5")),
    "ISO_IR 192": (b"ISO_IR 192", "Wang^XiaoDong=王^小东".encode()),
    "GB18030": (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "GBK": (b"GBK", "Wang^XiaoDong=王^小东".encode("gbk")),
    "half-width and kanji": (
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    "usual Japanese": (
        b"\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "Korean": (
        b"\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    "empty set": (b"", b"Smith^John"),
    "ISO_IR 6": (b"ISO_IR 6", b"Smith^John"),
    "misspelt with a hyphen": (b"ISO-IR 100", b"M\xfcller^J\xf6rg"),
    "misspelt with a space": (b"ISO IR 100", b"M\xfcller^J\xf6rg"),
    "misspelt with an underscore": (b"ISO_IR_100", b"M\xfcller^J\xf6rg"),
    "LATIN1": (b"LATIN1", b"M\xfcller^J\xf6rg"),
    "UTF8": (b"UTF8", "Müller^Jörg".encode()),
    "unknown set": (b"ISO_IR 999", b"M\xfcller^J"),
    "ISO_IR 192 with a second set": (b"ISO_IR 192\\ISO 2022 IR 87", "Müller^Jörg".encode()),
    "no set, but bytes above 127": (None, b"M\xfcller^J\xf6rg"),
    "UTF-8 declared, Latin-1 inside": (b"ISO_IR 192", b"M\xfcller^J\xf6rg"),
    "UTF-8 cut in a character": (b"ISO_IR 192", "Müller^Jö".encode()[:-1]),
    "trailing spaces": (b"ISO_IR 100", b"Smith^John  "),
    "leading spaces": (b"ISO_IR 100", b"  Smith^John"),
    "no caret": (b"ISO_IR 100", b"ANON"),
    "five components": (b"ISO_IR 100", b"Smith^John^Q^Dr^Jr"),
    "longer than 64": (b"ISO_IR 100", b"A" * 70 + b"^B"),
    "longer than 64 kB": (b"ISO_IR 100", b"A" * 0xFFFE),
    "empty name": (b"ISO_IR 100", b""),
}


def raw(tag: Tag, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def report_name(dicom: bytes) -> bytes:
    """The name's bytes, found in the file without a DICOM library's help."""
    at = dicom.index(b"\x10\x00\x10\x00PN")
    length = int.from_bytes(dicom[at + 6 : at + 8], "little")
    return dicom[at + 8 : at + 8 + length]


@pytest.mark.parametrize("result", [analysis(), not_analysed()], ids=["findings", "not analysed"])
@pytest.mark.parametrize(("character_set", "name"), ROWS.values(), ids=ROWS)
def test_name_bytes_out_are_name_bytes_in(character_set, name, result):
    slices = headers(THREE)
    for header in slices:
        del header[CHARACTER_SET]
        if character_set is not None:
            header[CHARACTER_SET] = raw(CHARACTER_SET, "CS", character_set)
        header[NAME] = raw(NAME, "PN", name)
    dicom = encode(build_report(frozen(result), slices))
    assert report_name(dicom) == name + b" " * (len(name) % 2)
    if character_set:
        padded = character_set + b" " * (len(character_set) % 2)
        assert b"\x08\x00\x05\x00CS" + len(padded).to_bytes(2, "little") + padded in dicom
    else:
        assert b"\x08\x00\x05\x00CS" not in dicom


def files_with_names() -> list[Path]:
    folder = os.environ.get("NODULE_NODE_TEST_DATA")
    root = Path(folder, "charset") if folder else Path("unset")
    return sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".txt")


@pytest.mark.skipif(not os.environ.get("NODULE_NODE_TEST_DATA"), reason="NODULE_NODE_TEST_DATA is not set")
def test_there_are_real_names_to_try():
    assert len(files_with_names()) > 50


def names_in(dataset: Dataset, inherited: RawDataElement | None = None) -> list[tuple[object, RawDataElement]]:
    """Every patient name of a file, with the character set in force there: some files hide it in a sequence."""
    character_set = dataset.get_item(CHARACTER_SET) if CHARACTER_SET in dataset else inherited
    found = [(character_set, dataset.get_item(NAME))] if NAME in dataset else []
    sequences = [tag for tag in sorted(dataset.keys()) if dataset.get_item(tag).VR == "SQ"]
    return found + [
        name for tag in sequences for item in dataset[tag].value for name in names_in(item, character_set)
    ]


@pytest.mark.parametrize("path", files_with_names(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_real_name_in_its_character_set_keeps_its_bytes(path):
    """One frozen result; each file's patients are given to the images of the small series."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files are odd on purpose, and pydicom says so
        source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        names = names_in(source)
    assert names
    for character_set, name in names:
        slices = headers(THREE)
        for header in slices:
            del header[CHARACTER_SET]
            if character_set is not None:
                header[CHARACTER_SET] = character_set
            header[NAME] = name
        dicom = encode(build_report(frozen(), slices))
        assert report_name(dicom) == name.value
        assert name.value in path.read_bytes()


def test_one_record_serves_every_name_with_one_uid():
    assert frozen().sop_instance_uid == frozen(analysis(series=SMALL)).sop_instance_uid
