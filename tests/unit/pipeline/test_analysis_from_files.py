"""Files to findings: which series, what is said, and what never leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest
from pydicom import dcmwrite

from pipeline.analysis import Decision, analyse_path, analyse_series, decide, operating_point_of
from pipeline.domain.finding import Finding
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import to_document
from pipeline.domain.volume import ReceivedGeometry
from pipeline.reading import files_in
from tests.builders import uid_of
from tests.fakes import ScriptedDetector, scripted_detector

SCHEMA = json.loads(files("pipeline").joinpath("schemas/detect-1.json").read_text(encoding="ascii"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def in_one_study(series, number, **changes):
    """Another series of the same study."""
    return replace(
        series,
        seed=number,
        extra={"SeriesInstanceUID": uid_of("n", number), "SeriesNumber": number, **changes},
    )


def write(series, folder, tail=""):
    folder.mkdir(exist_ok=True)
    paths = []
    for k, dataset in enumerate(series.datasets()):
        dataset.SOPInstanceUID = uid_of(dataset.SeriesInstanceUID, k)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        paths.append(folder / f"{dataset.SeriesNumber}-{k}{tail}")
        dcmwrite(paths[-1], dataset, enforce_file_format=True)
    return paths


def analyse(folder, limits, detector=None, point="default"):
    return analyse_path(folder, detector or scripted_detector(), limits, operating_point=point)


def codes(analysis):
    return [n.code for n in analysis.notices]


def test_a_folder_with_other_files_gives_findings_and_a_valid_document(small_series, small_limits, tmp_path):
    write(small_series, tmp_path)
    (tmp_path / "readme.txt").write_text("not an image")
    analysis = analyse(tmp_path, small_limits)
    assert analysis.outcome is Outcome.FINDINGS
    assert analysis.series_instance_uid == small_series.series_uid
    assert analysis.received == ReceivedGeometry(
        14, (pytest.approx(2.0), 4.0, 4.0), (pytest.approx(28.0), 192.0, 256.0)
    )
    assert set(analysis.timings_s) >= {"read", "assemble", "decode", "detect"}
    document = to_document(analysis)
    VALIDATOR.validate(document)
    assert "TEST-0001" not in json.dumps(document)


def test_a_folder_without_dicom_is_not_analysed(small_limits, tmp_path):
    (tmp_path / "readme.txt").write_text("not an image")
    analysis = analyse(tmp_path, small_limits)
    assert analysis.reason == Refusal(Code.NOT_CT, "No DICOM image was found.")
    VALIDATOR.validate(to_document(analysis))


def test_nothing_above_the_operating_point_is_no_findings(small_series, small_limits, tmp_path):
    write(small_series, tmp_path)
    analysis = analyse(tmp_path, small_limits, point=0.95)
    assert analysis.outcome is Outcome.NO_FINDINGS
    assert len(analysis.findings) == 2
    assert analysis.operating_point.name == "custom"
    VALIDATOR.validate(to_document(analysis))


def test_a_refusal_of_the_detector_is_not_analysed(small_series, small_limits, tmp_path):
    write(small_series, tmp_path)
    no_lung = Refusal(Code.NO_LUNG_FOUND, "No lungs were found in the images.")
    analysis = analyse(tmp_path, small_limits, ScriptedDetector(refusal=no_lung))
    assert analysis.outcome is Outcome.NOT_ANALYSED
    assert analysis.reason == no_lung
    assert analysis.received.slices == 14
    VALIDATOR.validate(to_document(analysis))


def test_notices_of_headers_pixels_and_detector_come_together(small_series, small_limits, tmp_path):
    extra = {"ConvolutionKernel": "LUNG", "ContrastBolusAgent": "IV", "LossyImageCompression": "01"}
    write(replace(small_series, extra=extra), tmp_path)
    cut = Notice(Code.LUNG_CUT, "Lung touches the first slice.")
    analysis = analyse(tmp_path, small_limits, ScriptedDetector((Finding((0, 0, 0), 5.0, 0.9),), notices=(cut,)))
    assert codes(analysis) == [Code.SHARP_KERNEL, Code.CONTRAST, Code.LOSSY_INPUT, Code.LUNG_CUT]


def test_the_detector_sees_the_notices_too(small_series, small_limits, tmp_path):
    write(replace(small_series, extra={"ConvolutionKernel": "LUNG"}), tmp_path)
    detector = scripted_detector()
    analyse(tmp_path, small_limits, detector)
    assert [n.code for n in detector.volumes[0].notices] == [Code.SHARP_KERNEL]


def test_the_better_of_two_series_is_analysed(small_series, small_limits, tmp_path):
    write(in_one_study(small_series, 2, ConvolutionKernel="BONE"), tmp_path)
    write(in_one_study(small_series, 5), tmp_path)
    decision = decide(files_in(tmp_path), small_limits)
    assert [v.series_number for v in decision.eligible] == [5, 2]
    assert decision.refusal is None
    assert analyse(tmp_path, small_limits).series_instance_uid == uid_of("n", 5)
    chosen = analyse_series(
        files_in(tmp_path),
        scripted_detector(),
        small_limits,
        operating_point="default",
        series_instance_uid=uid_of("n", 2),
    )
    assert chosen.series_instance_uid == uid_of("n", 2)


def test_when_the_best_series_cannot_be_decoded_the_next_is_tried(small_series, small_limits, tmp_path):
    write(in_one_study(small_series, 2, ConvolutionKernel="BONE"), tmp_path)
    wrong = {"RescaleIntercept": 500}
    write(in_one_study(small_series, 5, **wrong), tmp_path)
    assert analyse(tmp_path, small_limits).series_instance_uid == uid_of("n", 2)
    alone = analyse_series(files_in(tmp_path), scripted_detector(), small_limits, operating_point="default")
    assert alone.reason.code is Code.HU_IMPLAUSIBLE
    assert alone.received.slices == 14


def test_a_damaged_image_of_the_series_ends_it(small_series, small_limits, tmp_path):
    paths = write(small_series, tmp_path)
    raw = paths[4].read_bytes()
    paths[4].write_bytes(raw[:-10])
    analysis = analyse(tmp_path, small_limits)
    assert analysis.reason.code is Code.CORRUPT_INSTANCE
    assert "cut short" in analysis.reason.text


def test_two_patients_in_one_study_are_refused(small_series, small_limits, tmp_path):
    write(in_one_study(small_series, 2), tmp_path)
    write(in_one_study(small_series, 5, PatientID="SOMEBODY ELSE"), tmp_path)
    analysis = analyse(tmp_path, small_limits)
    assert analysis.reason.code is Code.MIXED_PATIENT
    assert "SOMEBODY" not in json.dumps(to_document(analysis))


def test_the_same_two_patients_in_two_studies_are_no_mixture(small_series, small_limits, tmp_path):
    write(in_one_study(small_series, 2), tmp_path)
    write(in_one_study(replace(small_series, name="B"), 5, PatientID="SOMEBODY ELSE"), tmp_path)
    assert len(decide(files_in(tmp_path), small_limits).eligible) == 2


@pytest.mark.parametrize(
    ("extra", "limits", "words"),
    [
        ({"PatientAge": "012Y"}, {}, "younger than 18"),
        ({}, {"skip_patient_ids": ("TEST-0001",)}, "skip list"),
    ],
)
def test_who_is_out_of_scope_is_not_analysed(small_series, small_limits, tmp_path, extra, limits, words):
    write(replace(small_series, extra=extra), tmp_path)
    analysis = analyse(tmp_path, replace(small_limits, **limits))
    assert analysis.reason.code is Code.OUT_OF_SCOPE
    assert words in analysis.reason.text


def test_a_decision_survives_json_and_holds_nothing_of_the_patient(small_series, small_limits, tmp_path):
    write(in_one_study(small_series, 2), tmp_path)
    write(in_one_study(replace(small_series, thickness=8.0), 5, LossyImageCompression="01"), tmp_path)
    (tmp_path / "damaged").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    decision = decide(files_in(tmp_path), small_limits)
    text = decision.to_json()
    assert Decision.from_json(text) == decision
    assert [v.eligible for v in decision.series] == [True, False]
    assert [r.code for r in decision.unreadable] == [Code.CORRUPT_INSTANCE]
    for secret in ("TEST-0001", "ller", "SCREENING", "19580407", str(tmp_path)):
        assert secret not in text


def test_the_evidence_of_a_study_without_result_is_its_best_ct(small_series, small_limits, tmp_path):
    write(in_one_study(replace(small_series, thickness=8.0), 5), tmp_path)
    write(in_one_study(small_series, 7, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), tmp_path)
    decision = decide(files_in(tmp_path), small_limits)
    assert decision.eligible == ()
    assert decision.best_ct.series_number == 5
    assert decision.refusal.code is Code.SLICES_TOO_THICK
    only_captures = replace(decision, series=decision.series[1:])
    assert only_captures.best_ct is None
    assert only_captures.refusal.code is Code.NOT_CT


def test_the_order_of_the_files_changes_nothing(small_series, small_limits, tmp_path):
    paths = write(small_series, tmp_path)
    assert decide(paths, small_limits) == decide(paths[::-1], small_limits)


def test_operating_points_go_by_name_or_number():
    detector = scripted_detector()
    assert operating_point_of(detector, "balanced") == operating_point_of(detector, "default")
    assert operating_point_of(detector, 0.0).threshold == 0.0
    with pytest.raises(ValueError, match="'sharp' is not in the weights' card; it has: balanced"):
        operating_point_of(detector, "sharp")
    with pytest.raises(ValueError, match=r"threshold 1\.5 is not between 0 and 1"):
        operating_point_of(detector, 1.5)


def test_progress_is_told_up_to_the_end(small_series, small_limits, tmp_path):
    write(small_series, tmp_path)
    told = []
    analyse_path(
        tmp_path,
        scripted_detector(),
        small_limits,
        operating_point="default",
        progress=lambda step, part: told.append((step, part)),
    )
    assert told[0] == ("decode", pytest.approx(1 / 14))
    assert told[-2:] == [("decode", 1.0), ("scripted", 1.0)]


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"outcome": "perhaps"},
        {"outcome": "no_findings"},
        {"outcome": "not_analysed"},
        {"reason": {"code": "NOT_CT", "text": "Why."}},
        {"model": None},
        {"schema": 2},
        {"findings": [{"position_lps_mm": [1, 2], "diameter_mm": 5, "probability": 0.5}]},
        {"findings": [{"position_lps_mm": [1, 2, 3], "diameter_mm": 5, "probability": 1.5}]},
        {"warnings": [{"code": "LUNG_CUT", "text": "Gr\u00f6\u00dfe"}]},
    ],
)
def test_the_schema_refuses_what_is_not_a_result(small_series, small_limits, tmp_path, change):
    write(small_series, tmp_path)
    document = to_document(analyse(tmp_path, small_limits))
    assert not VALIDATOR.is_valid(document | change)


def test_the_schema_itself_is_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
