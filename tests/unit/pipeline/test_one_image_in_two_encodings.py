"""The same image in another encoding is no other image; another value or pixel makes it one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.content import same_content
from tests.dicom_forms import write_as


@pytest.fixture
def image(small_series):
    return small_series.datasets()[5]


@pytest.fixture
def plain(image, tmp_path):
    return write_as(image, tmp_path / "plain.dcm", ExplicitVRLittleEndian)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_lossless_encoding_changes_nothing(image, plain, tmp_path, syntax):
    assert same_content(plain, write_as(image, tmp_path / "other.dcm", syntax))


def test_a_deflated_data_set_changes_nothing(image, plain, tmp_path):
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dcmwrite(tmp_path / "deflated.dcm", image, enforce_file_format=True)
    assert same_content(plain, tmp_path / "deflated.dcm")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", [0.0, 0.0, 1.0]),
        ("RescaleIntercept", -1000),
        ("PatientID", "TEST-0002"),
        ("SeriesDescription", "Another"),
        ("PixelPaddingValue", -1024),
    ],
)
def test_another_value_makes_another_image(image, plain, tmp_path, keyword, value):
    setattr(image, keyword, value)
    assert not same_content(plain, write_as(image, tmp_path / "other.dcm", ExplicitVRLittleEndian))


def test_one_other_pixel_makes_another_image(image, plain, tmp_path):
    pixels = np.frombuffer(image.PixelData, "<i2").copy()
    pixels[100] += 1
    image.PixelData = pixels.tobytes()
    assert not same_content(plain, write_as(image, tmp_path / "other.dcm", RLELossless))


def test_what_cannot_be_read_is_like_nothing(image, plain, tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(plain.read_bytes()[:700])
    cut = copy.deepcopy(image)
    cut.PixelData = cut.PixelData[:100]
    dcmwrite(tmp_path / "cut.dcm", cut, enforce_file_format=True)
    for file in (broken, tmp_path / "cut.dcm"):
        assert not same_content(file, file)
        assert not same_content(plain, file)
