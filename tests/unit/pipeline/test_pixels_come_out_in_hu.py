"""Pixels to Hounsfield units: every transfer syntax, signs, padding, and headers that lie."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSLossless

from pipeline.domain.outcome import Code, Refusal
from pipeline.pixels import Pixels, is_lossy, pixel_fault, read_pixels
from pipeline.slices import read_instance
from tests.builders import ChestSeries
from tests.dicom_forms import LOSSLESS_FORMS, write_as


@pytest.fixture
def image():
    return ChestSeries(slices=3, rows=48, columns=64, pixel_mm=4.0).datasets()[1]


def decode(path):
    instance = read_instance(path)
    (pixels,) = read_pixels(instance.slices)
    return pixels


def written(dataset, path):
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def stored(dataset, values):
    """Give a data set the stored values of a 16-bit array."""
    dataset.PixelData = np.asarray(values).astype("<u2").tobytes()
    return dataset


@pytest.mark.parametrize("form", LOSSLESS_FORMS)
def test_every_lossless_form_gives_the_same_hu(image, tmp_path, form):
    plain = decode(written(image, tmp_path / "plain"))
    again = decode(write_as(image, tmp_path / "again", LOSSLESS_FORMS[form]))
    assert np.array_equal(plain.hu, again.hu)
    assert plain.hu.min() < -900 < 0 < plain.hu.max()


def test_twelve_bits_signed_are_extended_from_the_high_bit(image, tmp_path):
    image.BitsStored, image.HighBit, image.RescaleIntercept = 12, 11, 0
    values = np.zeros((48, 64), int)
    values[0, :3] = 0x0FFF, 0x3001, 0x0800
    pixels = decode(written(stored(image, values), tmp_path / "a"))
    assert pixels.hu[0, :4].tolist() == [-1, 1, -1024, 0]


def test_unsigned_pixels_stay_unsigned(image, tmp_path):
    image.PixelRepresentation = 0
    pixels = decode(written(stored(image, np.full((48, 64), 40000)), tmp_path / "a"))
    assert pixels.hu.max() == pixels.hu.min() == 3071


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_is_air_even_where_the_tag_is_written_unsigned(image, tmp_path, padding):
    values = np.full((48, 64), 1024)
    values[:, :10] = 63536
    raw = written(stored(image, values), tmp_path / "a").read_bytes()
    image.PixelPaddingValue = -2000
    raw = written(image, tmp_path / "a").read_bytes()
    tag = b"\x28\x00\x20\x01SS\x02\x00"
    assert tag in raw
    if padding > 0:
        (tmp_path / "a").write_bytes(raw.replace(tag, tag.replace(b"SS", b"US")))
    pixels = decode(tmp_path / "a")
    assert (pixels.hu[:, :10] == -1024).all()
    assert (pixels.hu[:, 10:] == 0).all()
    assert not pixels.padding_guessed


def test_padding_minus_2000_no_tag(image, tmp_path):
    values = np.full((48, 64), 1024)
    values[:, :10] = 63536
    pixels = decode(written(stored(image, values), tmp_path / "a"))
    assert (pixels.hu[:, :10] == -1024).all()
    assert pixels.padding_guessed


def test_a_padding_range_covers_both_its_ends(image, tmp_path):
    values = np.full((48, 64), 1024)
    values[0, :3] = 5000, 5001, 5002
    image.PixelPaddingValue, image.PixelPaddingRangeLimit = 5000, 5001
    pixels = decode(written(stored(image, values), tmp_path / "a"))
    assert pixels.hu[0, :4].tolist() == [-1024, -1024, 3071, 0]


def test_a_padding_value_that_is_also_tissue_counts_only_from_the_edge_of_the_image(image, tmp_path):
    values = np.full((48, 64), 1060)
    values[:5] = 1024
    values[20, 20] = 1024
    image.PixelPaddingValue = 1024
    pixels = decode(written(stored(image, values), tmp_path / "a"))
    assert (pixels.hu[:5] == -1024).all()
    assert pixels.hu[20, 20] == 0


def test_monochrome1_has_the_same_hu_as_monochrome2(image, tmp_path):
    plain = decode(written(image, tmp_path / "plain"))
    image.PhotometricInterpretation = "MONOCHROME1"
    assert np.array_equal(decode(written(image, tmp_path / "inverse")).hu, plain.hu)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"RescaleSlope": None}, Code.HU_UNDEFINED, "no usable Rescale Slope"),
        ({"RescaleIntercept": None}, Code.HU_UNDEFINED, "no usable Rescale Slope"),
        ({"RescaleSlope": 0}, Code.HU_UNDEFINED, "no usable Rescale Slope"),
        ({"RescaleType": "US"}, Code.HU_UNDEFINED, "a Rescale Type other than HU"),
        ({"BitsAllocated": 8}, Code.UNSUPPORTED_PIXELS, "Bits Allocated 8"),
        ({"BitsAllocated": 32}, Code.UNSUPPORTED_PIXELS, "Bits Allocated 32"),
        ({"HighBit": 12}, Code.UNSUPPORTED_PIXELS, "High Bit 12"),
        ({"BitsStored": None}, Code.UNSUPPORTED_PIXELS, "Bits Stored missing"),
        ({"PixelRepresentation": None}, Code.UNSUPPORTED_PIXELS, "Pixel Representation missing"),
        ({"SamplesPerPixel": 3}, Code.UNSUPPORTED_PIXELS, "Samples per Pixel 3"),
        ({"PhotometricInterpretation": "RGB"}, Code.UNSUPPORTED_PIXELS, "not a monochrome image"),
        ({"Rows": 30000, "Columns": 30000}, Code.TOO_LARGE, "claims 1 frames of 30000 x 30000"),
        ({"NumberOfFrames": 100000}, Code.TOO_LARGE, "claims 100000 frames"),
        ({"Rows": 49}, Code.CORRUPT_INSTANCE, "cut short"),
        ({"PixelData": None}, Code.CORRUPT_INSTANCE, "holds no pixel data"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused_before_anything_is_decoded(image, tmp_path, change, code, words):
    for keyword, value in change.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    instance = read_instance(written(image, tmp_path / "a"))
    refusal = pixel_fault(instance.slices[0])
    assert refusal.code is code
    assert words in refusal.text
    assert decode(tmp_path / "a") == refusal


def test_a_compressed_multi_frame_that_claims_far_more_than_it_holds_is_refused(image, tmp_path):
    path = write_as(image, tmp_path / "a", JPEGLSLossless)
    piece = read_instance(path).slices[0]
    lying = replace(piece, pixels=replace(piece.pixels, rows=512, columns=512, frames=400))
    assert pixel_fault(lying).code is Code.TOO_LARGE
    blank = replace(piece, pixels=replace(piece.pixels, rows=512, columns=512, stored_bytes=200))
    assert pixel_fault(blank) is None


def test_a_damaged_stream_is_decode_failed(image, tmp_path):
    path = write_as(image, tmp_path / "a", JPEGLSLossless)
    raw = path.read_bytes()
    at = raw.index(b"\xff\xd8\xff")
    path.write_bytes(raw[: at + 60] + b"\xff\xd9" * 200)
    refusal = decode(path)
    assert isinstance(refusal, Refusal)
    assert refusal.code in {Code.DECODE_FAILED, Code.CORRUPT_INSTANCE}


def test_a_syntax_without_a_decoder_is_decode_failed_and_named(image, tmp_path):
    path = write_as(image, tmp_path / "a", JPEGLSLossless)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.55"))
    refusal = decode(path)
    assert refusal.code is Code.DECODE_FAILED
    assert "Process 10 and 12" in refusal.text


def test_lossy_is_known_from_the_header_or_the_syntax(image, tmp_path):
    plain = read_instance(written(image, tmp_path / "plain")).slices[0]
    assert not is_lossy(plain)
    flagged = copy.deepcopy(image)
    flagged.LossyImageCompression = "01"
    assert is_lossy(read_instance(written(flagged, tmp_path / "flagged")).slices[0])
    for syntax in (JPEG2000, JPEGExtended12Bit, JPEGBaseline8Bit):
        assert is_lossy(replace(plain, pixels=replace(plain.pixels, transfer_syntax=str(syntax))))


def all_forms(test_data):
    return {
        path.name.rsplit("_", 1)[1].removesuffix(".dcm"): path
        for path in (test_data / "hard/ct_all_transfer_syntaxes").glob("CTImage.dcm_*")
    }


def test_the_nine_lossless_forms_of_one_real_image_agree_to_the_bit(test_data):
    forms = all_forms(test_data)
    plain = decode(forms["1.2.840.10008.1.2.1"]).hu
    lossless = ["1.2.840.10008.1.2" + s for s in ("", ".1.99", ".2", ".5", ".4.57", ".4.70", ".4.80", ".4.90")]
    for syntax in lossless:
        assert np.array_equal(decode(forms[syntax]).hu, plain), syntax


@pytest.mark.parametrize(("syntax", "most_hu"), [("81", 1), ("91", 5)])
def test_the_lossy_forms_of_one_real_image_are_near_and_said(test_data, syntax, most_hu):
    forms = all_forms(test_data)
    plain, near = (decode(forms["1.2.840.10008.1.2" + s]).hu.astype(int) for s in (".1", f".4.{syntax}"))
    assert np.abs(plain - near).max() <= most_hu
    assert is_lossy(read_instance(forms[f"1.2.840.10008.1.2.4.{syntax}"]).slices[0])


@pytest.mark.parametrize(
    ("syntax", "code"), [("50", Code.UNSUPPORTED_PIXELS), ("53", Code.DECODE_FAILED), ("55", Code.DECODE_FAILED)]
)
def test_the_undecodable_forms_of_one_real_image_are_refused(test_data, syntax, code):
    assert decode(all_forms(test_data)[f"1.2.840.10008.1.2.4.{syntax}"]).code is code


def test_twelve_bit_jpeg_extended_is_decoded_only_with_the_optional_codec(test_data):
    try:
        import libjpeg  # noqa: F401
    except ImportError:
        assert decode(all_forms(test_data)["1.2.840.10008.1.2.4.51"]).code is Code.DECODE_FAILED
    else:
        plain, near = (decode(all_forms(test_data)["1.2.840.10008.1.2" + s]).hu for s in (".1", ".4.51"))
        inside = plain > -1000
        assert np.abs(plain[inside].astype(int) - near[inside]).mean() < 6


def test_a_codestream_whose_sign_disagrees_with_the_header_comes_out_signed(test_data):
    pixels = decode(test_data / "hard/pydicom/J2K_pixelrep_mismatch.dcm")
    assert isinstance(pixels, Pixels)
    assert (pixels.hu.min(), pixels.hu.max()) == (-1024, 1896)
    assert pixels.padding_guessed


def test_padding_written_unsigned_in_a_real_file_is_understood(test_data):
    piece = read_instance(test_data / "hard/fodicom/GH1308.dcm").slices[0]
    assert piece.pixels.padding == (-2000, -2000)
    assert not decode(test_data / "hard/fodicom/GH1308.dcm").padding_guessed
