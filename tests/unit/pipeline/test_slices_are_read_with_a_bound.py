"""Headers to Slices: what is read, what counts as missing, and files made to hurt."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.domain.outcome import Code
from pipeline.reading import read_headers
from pipeline.slices import Instance, Unreadable, read_instance
from tests.builders import ChestSeries, as_bytes
from tests.dicom_forms import write_as


@pytest.fixture
def image():
    return ChestSeries(slices=3, rows=32, columns=32, pixel_mm=4.0).datasets()[1]


def read(raw, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(raw)
    inventory = read_headers([path])
    found = [*(i for group in inventory.series.values() for i in group), *inventory.unreadable]
    assert len(found) + inventory.skipped == 1
    return found[0] if found else None


def test_a_file_that_is_not_dicom_is_skipped(tmp_path):
    assert read(b"a report, not an image", tmp_path) is None
    assert read(b"", tmp_path) is None


def test_the_patient_shows_in_no_representation(image, tmp_path):
    instance = read(as_bytes(image), tmp_path)
    assert instance.patient_id == "TEST-0001"
    assert "TEST-0001" not in repr(instance)
    assert "CHEST" not in repr(instance)


@pytest.mark.parametrize(
    ("change", "years"),
    [
        ({"PatientAge": "067Y"}, 67),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "", "PatientBirthDate": "20100302", "StudyDate": "20260301"}, 15),
        ({"PatientAge": None, "PatientBirthDate": None}, None),
    ],
)
def test_age_comes_from_the_age_or_else_the_dates(image, tmp_path, change, years):
    for keyword, value in change.items():
        if value is None:
            delattr(image, keyword)
        else:
            image[keyword].value = value
    assert read(as_bytes(image), tmp_path).age_years == years


def test_a_value_that_breaks_its_vr_counts_as_missing(image, tmp_path):
    raw = as_bytes(image).replace(b"\x18\x00\x50\x00DS\x04\x002.5 ", b"\x18\x00\x50\x00DS\x04\x00thin")
    instance = read(raw, tmp_path)
    assert isinstance(instance, Instance)
    assert instance.slices[0].thickness_mm is None


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_positions_that_are_no_numbers_are_no_positions(image, tmp_path, value):
    raw = as_bytes(image)
    at = raw.index(b"\x20\x00\x32\x00DS")
    length = int.from_bytes(raw[at + 6 : at + 8], "little")
    broken = f"{value}\\0\\0".encode().ljust(length)
    assert read(raw[: at + 8] + broken + raw[at + 8 + length :], tmp_path).slices[0].plane is None


def test_a_secondary_capture_of_a_ct_has_no_slices(image, tmp_path):
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    instance = read(as_bytes(image), tmp_path)
    assert isinstance(instance, Instance)
    assert instance.slices == ()


def test_a_file_cut_off_inside_its_header_is_corrupt(image, tmp_path):
    raw = as_bytes(image)
    found = read(raw[: raw.index(b"\x20\x00\x0d\x00UI") + 20], tmp_path)
    assert isinstance(found, Unreadable)
    assert found.refusal.code is Code.CORRUPT_INSTANCE


def test_a_file_cut_off_inside_its_pixels_shows_it_in_the_header(image, tmp_path):
    form = read(as_bytes(image)[:-100], tmp_path).slices[0].pixels
    assert form.stored_bytes < form.rows * form.columns * 2


def test_sequences_nested_beyond_reason_are_corrupt_and_still_belong_to_their_series(image, tmp_path):
    nested = b"".join([b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff"] * 4000)
    raw = as_bytes(image)
    at = raw.index(b"\x20\x00\x11\x00IS")
    found = read(raw[:at] + b"\x20\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff" + nested, tmp_path)
    assert isinstance(found, Unreadable)
    assert found.refusal.code is Code.CORRUPT_INSTANCE
    assert found.series_uid == image.SeriesInstanceUID


def test_an_element_that_claims_gigabytes_allocates_nothing(image, tmp_path):
    raw = as_bytes(image)
    at = raw.index(b"\x28\x00\x02\x00US")
    raw = raw[:at] + b"\x21\x00\x01\x10OB\x00\x00\xf0\xff\xff\xef" + raw[at:]
    (tmp_path / "a").write_bytes(raw)
    tracemalloc.start()
    read_instance(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_deflated_bomb_is_too_large_and_never_inflated_whole(image, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.slices.MAX_INFLATED_BYTES", 1 << 20)
    path = write_as(image, tmp_path / "d", DeflatedExplicitVRLittleEndian)
    raw = path.read_bytes()
    meta_end = 132 + 12 + dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(1, wbits=-15)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(64)]) + packer.flush()
    (tmp_path / "bomb").write_bytes(raw[:meta_end] + bomb)
    tracemalloc.start()
    found = read_instance(tmp_path / "bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.refusal.code is Code.TOO_LARGE
    assert found.refusal.text == "A deflated image inflates to more than 1048576 bytes."
    assert peak < 8 << 20


def test_a_dicomdir_is_no_image(image, tmp_path):
    image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dcmwrite(tmp_path / "DICOMDIR", image)
    assert read_instance(tmp_path / "DICOMDIR") is None


def test_no_real_odd_file_makes_the_reader_raise(test_data):
    inventory = read_headers(p for p in sorted((test_data / "hard").rglob("*")) if p.is_file())
    assert len(inventory.series) > 60
    nested = next(u for u in inventory.unreadable if u.path.name == "2026-05-06-Deeply-Nested-Sequence.dcm")
    assert nested.series_uid == "1.2.3.4.5.6"
