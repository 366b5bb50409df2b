"""What a hostile header claims is judged before anything of that size is read: sizes, VRs, texts, paths."""

from __future__ import annotations

import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from pipeline.domain.outcome import Code, Refusal
from pipeline.pixels import pixel_fault, read_pixels
from pipeline.slices import Instance, Unreadable, read_instance
from tests.builders import ChestSeries, as_bytes
from tests.dicom_forms import write_as


@pytest.fixture
def image():
    return ChestSeries(slices=1, rows=32, columns=32).datasets()[0]


def written(content: bytes, tmp_path):
    path = tmp_path / "one.dcm"
    path.write_bytes(content)
    return read_instance(path)


def with_sides(content: bytes, side: int) -> bytes:
    for tag in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
        assert content.count(tag) == 1
        at = content.index(tag) + len(tag)
        content = content[:at] + side.to_bytes(2, "little") + content[at + 2 :]
    return content


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_65535_by_65535_pixels_are_too_large_whatever_their_encoding(image, tmp_path, syntax):
    content = as_bytes(image) if syntax is None else write_as(image, tmp_path / "source", syntax).read_bytes()
    found = written(with_sides(content, 65535), tmp_path)
    assert isinstance(found, Instance)
    fault = pixel_fault(found.slices[0])
    assert fault == Refusal(Code.TOO_LARGE, fault.text)
    assert "65535 x 65535 pixels" in fault.text
    assert next(read_pixels(found.slices)).code is Code.TOO_LARGE


def test_a_small_compressed_stream_that_claims_much_is_refused_with_a_code(image, tmp_path):
    content = write_as(image, tmp_path / "source", RLELossless).read_bytes()
    found = written(with_sides(content, 4096), tmp_path)
    assert next(read_pixels(found.slices)).code in {Code.DECODE_FAILED, Code.CORRUPT_INSTANCE, Code.TOO_LARGE}


@pytest.mark.parametrize("claimed", [0xFFFFFFFE, 0xFFFFFFF0, 0x7FFFFFFF])
def test_pixel_data_that_claims_gigabytes_is_cut_short(image, tmp_path, claimed):
    content = as_bytes(image)
    at = content.index(b"\xe0\x7f\x10\x00OW\x00\x00") + 8
    found = written(content[:at] + claimed.to_bytes(4, "little") + content[at + 4 : -100], tmp_path)
    assert isinstance(found, Instance | Unreadable)
    if isinstance(found, Instance):
        assert isinstance(pixel_fault(found.slices[0]) or next(read_pixels(found.slices)), Refusal)


@pytest.mark.parametrize(
    ("tag", "vr"),
    [
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SQ"),  # Rows as a sequence
        (b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00OB"),  # Image Position (Patient) as bytes
        (b"\x28\x00\x52\x10DS", b"\x28\x00\x52\x10AT"),  # Rescale Intercept as a tag
        (b"\x20\x00\x13\x00IS", b"\x20\x00\x13\x00ZZ"),  # Instance Number as nothing known
    ],
)
def test_a_wrong_vr_never_raises(image, tmp_path, tag, vr):
    content = as_bytes(image)
    assert content.count(tag) == 1
    found = written(content.replace(tag, vr), tmp_path)
    assert isinstance(found, Instance | Unreadable)
    if isinstance(found, Instance):
        for piece in found.slices:
            pixel_fault(piece)


@pytest.mark.parametrize(
    "name",
    ["ISO_IR 999", "../../etc/passwd", "ISO 2022 IR 87\\ISO 2022 IR 87\\\\", "utf-7", "\x1b$B", "A" * 60],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's own, about the unknown character set
def test_an_unknown_character_set_never_raises(image, tmp_path, name):
    image.PatientName = "X"
    content = as_bytes(image)
    value = name.encode("latin-1")
    value += b" " * (len(value) % 2)
    element = b"\x08\x00\x05\x00CS" + len(value).to_bytes(2, "little") + value
    at = content.index(b"\x08\x00", 132 + 12 + int.from_bytes(content[140:144], "little"))
    found = written(content[:at] + element + content[at:], tmp_path)
    assert isinstance(found, Instance | Unreadable)


def test_uids_that_are_paths_stay_texts(image, tmp_path):
    content = as_bytes(image)
    real = str(image.SeriesInstanceUID).encode()
    path = b"../" * (len(real) // 3) + b"x" * (len(real) % 3)
    found = written(content.replace(real, path), tmp_path)
    assert isinstance(found, Instance | Unreadable)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one.dcm"]
