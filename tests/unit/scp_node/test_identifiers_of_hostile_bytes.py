"""The identifier reader: what it finds, what it survives, and that it never takes long."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from scp_node.identifiers import (
    MAX_INFLATED,
    Identifiers,
    NotPart10,
    Part10,
    Unreadable,
    is_conformant_uid,
    is_key,
    is_uid,
    read_identifiers,
    split_file,
)
from tests.builders import ChestSeries, as_bytes

EXPECTED = Identifiers("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.4", "1.2.5")


def sample(*, undefined: bool = False) -> Dataset:
    """A data set with sequences in front of the identifiers of study and series."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = EXPECTED.sop_class_uid, EXPECTED.sop_instance_uid
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "9.9.9"
    inner.StudyInstanceUID = "6.6.6"
    ds.ReferencedImageSequence = Sequence([inner, inner])
    if undefined:
        ds["ReferencedImageSequence"].is_undefined_length = True
        inner.is_undefined_length_sequence_item = True
    ds.PatientName = "Some^Body"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = EXPECTED.study_instance_uid, EXPECTED.series_instance_uid
    ds.PixelData = b"\0" * 64
    ds["PixelData"].VR = "OW"
    return ds


def encoded(ds: Dataset, *, implicit=False, little=True) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = implicit, little
    write_dataset(out, ds)
    return out.getvalue()


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    ("syntax", "how"),
    [
        (ExplicitVRLittleEndian, {}),
        (ImplicitVRLittleEndian, {"implicit": True}),
        (ExplicitVRBigEndian, {"little": False}),
    ],
)
def test_the_four_uids_are_found_in_each_encoding(syntax, how, undefined):
    assert read_identifiers(encoded(sample(undefined=undefined), **how), syntax) == EXPECTED


@pytest.mark.parametrize("claimed", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_sender_that_negotiates_one_encoding_and_sends_the_other_is_read(claimed, implicit):
    assert read_identifiers(encoded(sample(), implicit=implicit), claimed) == EXPECTED


def test_a_deflated_data_set_is_inflated_as_far_as_needed():
    packer = zlib.compressobj(wbits=-15)
    deflated = packer.compress(encoded(sample())) + packer.flush()
    assert read_identifiers(deflated, DeflatedExplicitVRLittleEndian) == EXPECTED


def test_a_deflate_bomb_is_inflated_to_the_cap_only():
    bomb = encoded(sample())[:60] + b"\0" * (32 * 1024 * 1024)
    packer = zlib.compressobj(9, wbits=-15)
    deflated = packer.compress(bomb) + packer.flush()
    started = time.monotonic()
    found = read_identifiers(deflated, DeflatedExplicitVRLittleEndian)
    assert isinstance(found, (Unreadable, Identifiers))
    assert found != EXPECTED
    assert time.monotonic() - started < 10
    assert MAX_INFLATED <= 4 * 1024 * 1024


def test_bytes_that_do_not_inflate_are_unreadable():
    found = read_identifiers(b"\xff\xff\xff", DeflatedExplicitVRLittleEndian)
    assert found == Unreadable("The deflated data set cannot be inflated.")


def test_a_hundred_thousand_nested_sequences_are_walked_not_recursed():
    depth = 90_000
    deep = (
        b"\x08\x00\x05\x00CS\x00\x00"
        + (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    )
    found = read_identifiers(deep, ExplicitVRLittleEndian)
    assert isinstance(found, Unreadable)


def test_endless_tiny_elements_end_at_a_bound():
    flood = b"\x08\x00\x05\x00CS\x00\x00" * 300_000
    assert read_identifiers(flood, ExplicitVRLittleEndian) == Unreadable(
        "The data set does not parse: more than 200000 elements before the identifiers."
    )


def test_a_length_that_claims_more_than_there_is_names_the_element():
    lie = b"\x08\x00\x05\x00CS\x00\x00" + b"\x09\x00\x10\x00OB\0\0" + struct.pack("<I", 3_000_000_000)
    assert read_identifiers(lie, ExplicitVRLittleEndian) == Unreadable(
        "The data set does not parse: (0009,0010) claims 3000000000 bytes, 0 are left."
    )


def test_a_data_set_without_identifiers_has_empty_ones():
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.Modality = "CT"
    assert read_identifiers(encoded(ds), ExplicitVRLittleEndian) == Identifiers("", "", "", "")
    assert read_identifiers(b"", ExplicitVRLittleEndian) == Identifiers("", "", "", "")


def test_a_un_sequence_of_undefined_length_is_implicit_inside():
    inside = (
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\x00\x60\x00\x02\x00\x00\x00CT" + b"\xfe\xff\x0d\xe0\0\0\0\0"
    )
    un = b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff" + inside + b"\xfe\xff\xdd\xe0\0\0\0\0"
    whole = encoded(sample())
    at = whole.index(b"\x10\x00\x10\x00PN")
    assert read_identifiers(whole[:at] + un + whole[at:], ExplicitVRLittleEndian) == EXPECTED


@settings(max_examples=300, deadline=1000)
@given(
    st.binary(max_size=600),
    st.sampled_from(
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
    ),
)
def test_any_bytes_give_an_answer_and_never_an_exception(junk, syntax):
    assert isinstance(read_identifiers(junk, syntax), (Identifiers, Unreadable))
    assert isinstance(split_file(b"\0" * 128 + b"DICM" + junk), (Part10, NotPart10))


@settings(max_examples=200, deadline=1000)
@given(st.data())
def test_a_damaged_data_set_gives_an_answer(data):
    whole = bytearray(encoded(sample(undefined=True)))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_identifiers(bytes(whole), ExplicitVRLittleEndian), (Identifiers, Unreadable))


@pytest.mark.parametrize(
    ("text", "letters", "conformant", "key"),
    [
        ("1.2.840", True, True, True),
        ("1.02", True, False, True),
        ("", False, False, False),
        ("1" * 65, False, False, False),
        ("../x", False, False, True),
        ("1.2\n", False, False, False),
        ("REM SAMPLES 1", False, False, True),
        ("1.2\ufffd", False, False, False),
    ],
)
def test_what_counts_as_a_uid(text, letters, conformant, key):
    assert (is_uid(text), is_conformant_uid(text), is_key(text)) == (letters, conformant, key)


def test_a_file_is_split_where_its_data_set_begins():
    dataset = ChestSeries(slices=1, rows=32, columns=32).datasets()[0]
    content = as_bytes(dataset)
    part10 = split_file(content)
    assert isinstance(part10, Part10)
    assert part10.sop_instance_uid == dataset.SOPInstanceUID
    assert content[part10.dataset_at : part10.dataset_at + 4] == b"\x08\x00\x05\x00"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello", "there is no DICM at byte 128."),
        (b"\0" * 128 + b"DICM", "there is no group length of the file meta information."),
        (
            b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff\x00\x00\x00",
            "the file ends in its file meta information.",
        ),
        (
            b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00",
            "its file meta information lacks SOP class, instance or transfer syntax.",
        ),
    ],
)
def test_what_is_no_dicom_file_says_why(content, text):
    assert split_file(content) == NotPart10(text)


@given(
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 700),
    big=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_short_way_over_plain_elements_finds_what_the_long_way_finds(changes, cut, big):
    body = bytearray(encoded(sample(undefined=True), little=not big))
    for at, value in changes:
        body[at % len(body)] = value
    body = bytes(body[: max(len(body) - cut, 0)])
    syntax = str(ExplicitVRBigEndian if big else ExplicitVRLittleEndian)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scp_node.identifiers._Walk._pass_plain", lambda *_: None)
        expected = read_identifiers(body, syntax)
    assert read_identifiers(body, syntax) == expected


def test_a_data_set_that_ends_with_a_plain_element_has_no_identifiers():
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = EXPECTED.sop_class_uid, EXPECTED.sop_instance_uid, "CT"
    assert read_identifiers(encoded(ds), str(ExplicitVRLittleEndian)) == Identifiers(
        EXPECTED.sop_class_uid, EXPECTED.sop_instance_uid, "", ""
    )
