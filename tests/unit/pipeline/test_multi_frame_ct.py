"""Enhanced and Legacy Converted CT: each frame is a slice, then the same checks."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import dcmwrite
from pydicom.uid import LegacyConvertedEnhancedCTImageStorage

from pipeline.analysis import analyse_path
from pipeline.domain.outcome import Code, Outcome, Refusal
from pipeline.reading import read_headers
from tests.builders import ChestSeries, uid_of
from tests.dicom_forms import compressed_frames, enhanced
from tests.fakes import scripted_detector

LEGACY = LegacyConvertedEnhancedCTImageStorage


@pytest.fixture
def datasets():
    return ChestSeries(slices=14, rows=48, columns=64, pixel_mm=4.0, slice_step=2.0, thickness=2.0).datasets()


def analysed(images, folder, limits):
    folder.mkdir()
    for k, image in enumerate(images):
        dcmwrite(folder / str(k), image, enforce_file_format=True)
    detector = scripted_detector()
    analysis = analyse_path(folder, detector, limits, operating_point="default")
    assert analysis.outcome is Outcome.FINDINGS, analysis.reason
    return analysis, detector.volumes[0]


@pytest.mark.parametrize("shared_orientation", [True, False])
@pytest.mark.parametrize("sop_class", [None, LEGACY])
def test_frames_in_any_order_give_the_volume_of_the_classic_slices(
    datasets, small_limits, tmp_path, shared_orientation, sop_class
):
    _, classic = analysed(datasets, tmp_path / "classic", small_limits)
    shuffled = random.Random(1).sample(datasets, len(datasets))
    kind = {} if sop_class is None else {"sop_class": sop_class}
    image = enhanced(shuffled, shared_orientation=shared_orientation, **kind)
    _, volume = analysed([image], tmp_path / "enhanced", small_limits)
    assert np.array_equal(volume.hu, classic.hu)
    assert volume.grid == classic.grid
    frames = [s.frame_number for s in volume.slices]
    assert frames == [1 + shuffled.index(d) for d in datasets]
    assert {s.sop_instance_uid for s in volume.slices} == {image.SOPInstanceUID}


def test_each_frame_has_its_own_rescale(datasets, small_limits, tmp_path):
    _, classic = analysed(datasets, tmp_path / "classic", small_limits)
    for k, dataset in enumerate(datasets):
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<i2") - k).astype("<i2").tobytes()
        dataset.RescaleIntercept = -1024 + k
    _, volume = analysed([enhanced(datasets)], tmp_path / "enhanced", small_limits)
    assert np.array_equal(volume.hu, classic.hu)


def test_compressed_frames_without_an_offset_table(datasets, small_limits, tmp_path):
    for dataset in datasets:
        dataset.PixelRepresentation = 0
    _, plain = analysed([enhanced(datasets)], tmp_path / "plain", small_limits)
    _, packed = analysed([compressed_frames(enhanced(datasets))], tmp_path / "packed", small_limits)
    assert np.array_equal(plain.hu, packed.hu)


def test_a_missing_frame_is_noticed(datasets, small_limits, tmp_path):
    del datasets[5]
    analysis, volume = analysed([enhanced(datasets)], tmp_path / "enhanced", small_limits)
    assert volume.filled_slices == (5,)
    assert Code.SLICES_INTERPOLATED in [n.code for n in analysis.notices]


@pytest.mark.parametrize("claimed", [13, 15])
def test_frames_that_the_header_does_not_describe_are_never_left_out_in_silence(
    datasets, small_limits, tmp_path, claimed
):
    image = enhanced(datasets)
    image.NumberOfFrames = claimed
    dcmwrite(tmp_path / "image", image, enforce_file_format=True)
    detector = scripted_detector()
    analysis = analyse_path(tmp_path, detector, small_limits, operating_point="default")
    assert analysis.outcome is Outcome.NOT_ANALYSED
    assert analysis.reason == Refusal(
        Code.CORRUPT_INSTANCE,
        f"An image of the series claims {claimed} frames and describes 14; send it again as the scanner made it.",
    )
    assert detector.volumes == []


def test_concatenations_are_joined(datasets, small_limits, tmp_path):
    _, classic = analysed(datasets, tmp_path / "classic", small_limits)
    parts = [enhanced(datasets[8:]), enhanced(datasets[:8])]
    for k, part in enumerate(parts):
        part.ConcatenationUID = uid_of("concatenation")
        part.InConcatenationNumber = 2 - k
    _, volume = analysed(parts, tmp_path / "parts", small_limits)
    assert np.array_equal(volume.hu, classic.hu)
    assert [s.frame_number for s in volume.slices] == [*range(1, 9), *range(1, 7)]


def test_a_legacy_converted_image_of_another_implementation(datasets, small_limits, tmp_path):
    _, classic = analysed(datasets, tmp_path / "classic", small_limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = LegacyConvertedEnhancedCTImage(
            legacy_datasets=datasets,
            series_instance_uid=uid_of("legacy series"),
            series_number=9,
            sop_instance_uid=uid_of("legacy"),
            instance_number=1,
        )
        _, volume = analysed([image], tmp_path / "legacy", small_limits)
    assert np.array_equal(volume.hu, classic.hu)
    assert volume.grid.origin_lps_mm == pytest.approx(classic.grid.origin_lps_mm)


def test_the_real_legacy_converted_image_has_its_three_frames(test_data):
    folder = test_data / "hard/legacy_converted_ct_tiny"
    (instance,) = next(iter(read_headers([folder / "mf.dcm"]).series.values()))
    assert [s.frame_number for s in instance.slices] == [1, 2, 3]
    assert all(s.plane is not None and s.plane.rows == 38 and s.plane.columns == 23 for s in instance.slices)
    assert instance.slices[0].image_type == ("ORIGINAL", "PRIMARY", "AXIAL", "NONE")
