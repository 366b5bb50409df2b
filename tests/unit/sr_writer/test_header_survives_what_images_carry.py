"""Patient, study, series and document attributes: what is copied, what is ours, and no header that breaks it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from pipeline.domain.outcome import Outcome
from sr_writer.record import NodeIdentity
from sr_writer.report import build_report, encode
from tests.builders import as_bytes
from tests.reports import (
    MODEL,
    NODE,
    SMALL,
    analysis,
    children,
    frozen,
    groups,
    headers,
    not_analysed,
    reread,
    value_of,
)

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


def with_bytes(changes: dict[str, bytes], series=SMALL):
    """Headers in which some elements hold exactly these bytes, right or wrong."""
    slices = headers(series)
    for header in slices:
        for keyword, value in changes.items():
            element = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag_for_keyword(keyword)),
                pydicom.datadict.dictionary_VR(keyword),
                len(value),
                value,
                0,
                False,
                True,
            )
            header[element.tag] = element
    return slices


def report_on(slices, record=None):
    """The report as bytes and as read back."""
    dicom = encode(build_report(frozen() if record is None else record, slices))
    return dicom, reread(dicom)


@pytest.mark.parametrize("keyword", TYPE_2)
def test_a_missing_type_2_attribute_becomes_empty(keyword):
    slices = headers(replace(SMALL, extra={keyword: None}))
    assert keyword not in slices[0]
    _, document = report_on(slices)
    assert document[keyword].is_empty
    assert len(groups(document)) == 3


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientSex", b"W "),
        ("PatientSex", b"m "),
        ("PatientSex", b"M\\F "),
        ("StudyDate", b"2026-03-01"),
        ("StudyDate", b"20260230"),
        ("StudyTime", b"10:15:00"),
        ("StudyTime", b"245959"),
        ("PatientBirthDate", b"00000000"),
        ("PatientBirthDate", b"1958.04.07"),
    ],
)
def test_an_invalid_type_2_value_becomes_empty(keyword, value):
    _, document = report_on(with_bytes({keyword: value}))
    assert document[keyword].is_empty


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", b"45"),
        ("PatientSize", b"1,75"),
        ("PatientWeight", b"heavy "),
        ("PatientBirthTime", b"9:30"),
        ("TimezoneOffsetFromUTC", b"CET "),
        ("PatientIdentityRemoved", b"MAYBE "),
    ],
)
def test_an_invalid_type_3_value_is_left_out(keyword, value):
    _, document = report_on(with_bytes({keyword: value}))
    assert keyword not in document


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientAge", "067Y"),
        ("PatientSize", "1.75"),
        ("PatientWeight", "7.2e1"),
        ("PatientBirthTime", "0930"),
        ("PatientIdentityRemoved", "NO"),
        ("PatientBirthDate", "19580407"),
        ("PatientSex", "O"),
        ("StudyTime", "101500.123"),
    ],
)
def test_a_valid_value_is_copied(keyword, value):
    _, document = report_on(with_bytes({keyword: value.encode()}))
    assert str(document[keyword].value) == value


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", b"  0042 / x"),
        ("IssuerOfPatientID", b"HOSP-A"),
        ("AccessionNumber", b"A much longer number than sixteen "),
        ("StudyID", b"\xe4\xf6"),
        ("StudyDescription", b"CT Thorax nativ, \xe4 ..."),
        ("ReferringPhysicianName", b"\xff^No such encoding"),
        ("EthnicGroup", b"X "),
    ],
)
def test_identity_is_copied_byte_for_byte(keyword, value):
    dicom, document = report_on(with_bytes({keyword: value}))
    padded = value + b" " * (len(value) % 2)
    assert document.get_item(tag_for_keyword(keyword)).value == padded
    assert padded in dicom


@pytest.mark.parametrize("uid", ["1.2.00840.5", "not-a-uid", "1.2." + "3" * 70])
def test_a_malformed_study_uid_stays_the_filing_key(uid):
    record = frozen(study_instance_uid=uid)
    _, document = report_on(with_bytes({"StudyInstanceUID": uid.encode()}), record)
    raw = document.get_item("StudyInstanceUID").value
    assert raw.rstrip(b"\0").decode() == uid


def test_malformed_uids_of_images_and_frame_are_referred_to_as_they_are():
    slices = with_bytes({"FrameOfReferenceUID": b"1.2.003", "SOPClassUID": b"1.02"})
    for number, header in enumerate(slices):
        value = f"1.0{number}.7".encode()
        header[0x00080018] = header.get_item(0x00080018)._replace(value=value, length=len(value))
    dicom, document = report_on(slices)
    assert len(groups(document)) == 3
    assert dicom.count(b"1.2.003") == 6
    assert all(f"1.0{n}.7".encode() in dicom for n in range(SMALL.slices))


def test_a_header_with_nothing_but_its_uids_still_gives_a_not_analysed_report():
    bare = []
    for header in headers():
        kept = Dataset({tag: header.get_item(tag) for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)})
        bare.append(kept)
    _, document = report_on(bare, frozen(not_analysed()))
    assert all(document[keyword].is_empty for keyword in TYPE_2)
    assert document.SeriesNumber == 9000


@pytest.mark.parametrize(
    "extra",
    [
        {"SliceThickness": None},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"PixelSpacing": None},
        {"Rows": None},
        {"FrameOfReferenceUID": None},
        {"SpecificCharacterSet": None},
        {"SeriesNumber": None},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_a_not_analysed_report_needs_no_geometry(extra):
    slices = headers(replace(SMALL, extra=extra))
    _, document = report_on(slices, frozen(not_analysed()))
    assert document.SeriesDescription == "AI nodules: NOT DONE (unverified)"


@pytest.mark.parametrize("value", [b"one\\two\\three", b"1\\2", b"nan\\0\\0 ", b""])
def test_broken_geometry_of_one_slice_does_not_break_the_report(value):
    slices = headers()
    slices[0][0x00200032] = slices[0].get_item(0x00200032)._replace(value=value, length=len(value))
    _, document = report_on(slices)
    assert len(groups(document)) == 3


def test_an_implicit_vr_image_gives_the_same_explicit_vr_report():
    slices = []
    for dataset in SMALL.datasets():
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        slices.append(reread(as_bytes(dataset)))
    assert report_on(slices)[0] == report_on(headers())[0]


def test_headers_that_were_looked_at_before_give_the_same_report():
    slices = headers()
    for header in slices:
        str(header)
    assert report_on(slices)[0] == report_on(headers())[0]


def test_the_first_slice_along_the_normal_lends_its_header():
    slices = headers()
    slices[0][0x00100020] = slices[0].get_item(0x00100020)._replace(value=b"LOWEST", length=6)
    _, document = report_on([*slices[1:], slices[0]])
    assert document.PatientID == "LOWEST"


def test_sequences_are_copied_item_by_item_in_the_reports_encoding():
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "ELSEWHERE", "TEXT"
    other.add_new(0x00091001, "LO", "private")
    study = Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", "2.25.8"
    series = replace(SMALL, extra={"OtherPatientIDsSequence": [other], "ReferencedStudySequence": [study]})
    _, document = report_on(headers(series))
    (copied,) = document.OtherPatientIDsSequence
    assert (copied.PatientID, copied.TypeOfPatientID, len(copied)) == ("ELSEWHERE", "TEXT", 2)
    assert document.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "2.25.8"


def test_an_empty_sequence_and_a_damaged_one_are_left_out():
    damaged = b"\xfe\xff\x00\xe0\x10\x00\x00\x00\x10\x00"
    _, document = report_on(with_bytes({"OtherPatientIDsSequence": damaged, "ReferencedStudySequence": b""}))
    assert "OtherPatientIDsSequence" not in document
    assert "ReferencedStudySequence" not in document
    assert len(groups(document)) == 3


def code(value, scheme="L", meaning="CT Thorax"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def test_the_first_valid_procedure_code_of_the_images_is_reported():
    series = replace(SMALL, extra={"ProcedureCodeSequence": [code("", "L"), code("CTTHX")]})
    _, document = report_on(headers(series))
    assert value_of(children(document, named="121058")[0]) == "L CTTHX"
    assert [item.CodeValue for item in document.ProcedureCodeSequence] == ["", "CTTHX"]


def test_copying_the_procedure_code_can_be_switched_off():
    series = replace(SMALL, extra={"ProcedureCodeSequence": [code("CTTHX")]})
    _, document = report_on(headers(series), frozen(copy_procedure=False))
    assert value_of(children(document, named="121058")[0]) == "LN 25045-6"


def test_referenced_requests_have_all_their_mandatory_attributes():
    request = Dataset()
    request.RequestedProcedureID, request.RequestedProcedureDescription = "RP1", "CT CHEST"
    request.ScheduledProcedureStepID = "SP1"
    bare = Dataset()
    bare.ScheduledProcedureStepID = "SP2"
    _, document = report_on(headers(replace(SMALL, extra={"RequestAttributesSequence": [request, bare]})))
    first, second = document.ReferencedRequestSequence
    assert (
        {element.keyword for element in first}
        == {element.keyword for element in second}
        == {
            "StudyInstanceUID",
            "ReferencedStudySequence",
            "AccessionNumber",
            "PlacerOrderNumberImagingServiceRequest",
            "FillerOrderNumberImagingServiceRequest",
            "RequestedProcedureID",
            "RequestedProcedureDescription",
            "RequestedProcedureCodeSequence",
        }
    )
    assert (first.StudyInstanceUID, first.AccessionNumber) == (SMALL.study_uid, "ACC123")
    assert (first.RequestedProcedureID, first.RequestedProcedureDescription) == ("RP1", "CT CHEST")
    assert second.RequestedProcedureID == ""


def test_without_request_attributes_there_is_no_referenced_request():
    assert "ReferencedRequestSequence" not in report_on(headers())[1]


@pytest.mark.parametrize(
    ("offset", "date", "time"),
    [("+0100", "20260301", "104012"), ("-0930", "20260301", "001012"), ("+1400", "20260301", "234012")],
)
def test_all_our_times_are_the_frozen_one_in_the_images_zone(offset, date, time):
    slices = with_bytes({"TimezoneOffsetFromUTC": offset.encode()})
    _, document = report_on(slices, frozen(finished_at=datetime(2026, 3, 1, 9, 40, 12, 999, tzinfo=UTC)))
    assert offset == document.TimezoneOffsetFromUTC
    assert_times(document, date, time)


def test_without_a_zone_in_the_images_the_sites_own_is_used_and_not_named():
    _, document = report_on(headers())
    assert "TimezoneOffsetFromUTC" not in document
    assert_times(document, "20260301", "104012")


def assert_times(document, date, time):
    for kind in ("InstanceCreation", "Series", "Content"):
        assert (document[f"{kind}Date"].value, document[f"{kind}Time"].value) == (date, time)
    assert [e.ContributionDateTime for e in document.ContributingEquipmentSequence] == [date + time]


def test_the_equipment_is_ours_and_names_the_weights():
    _, document = report_on(headers())
    assert document.Manufacturer == "nodule-node project"
    assert document.ManufacturerModelName == "nodule-node"
    assert document.SoftwareVersions == "0.1.0"
    assert document.DeviceSerialNumber == "NODULE1"
    assert document.InstitutionName == "Test Hospital"
    (equipment,) = document.ContributingEquipmentSequence
    assert list(equipment.SoftwareVersions) == ["0.1.0", f"weights sha256 {MODEL.sha256}"[:64]]
    assert document.file_meta.ImplementationVersionName == "NODULE-NODE"
    assert document.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"


def test_without_a_configured_institution_the_images_one_is_not_taken():
    slices = headers(replace(SMALL, extra={"InstitutionName": "Elsewhere"}))
    _, document = report_on(slices, frozen(node=NodeIdentity("NODULE1", "6a1c", "0.1.0")))
    assert "InstitutionName" not in document


def test_names_that_are_configured_with_accents_are_written_in_ascii():
    _, document = report_on(headers(), frozen(node=replace(NODE, institution="Klinikum München\\Süd")))
    assert document.InstitutionName == "Klinikum Munchen/Sud"


@pytest.mark.parametrize("outcome", Outcome)
def test_the_document_is_complete_unverified_and_preliminary(outcome):
    result = {Outcome.FINDINGS: analysis(), Outcome.NO_FINDINGS: analysis(())}.get(outcome, not_analysed())
    _, document = report_on(headers(), frozen(result))
    flags = (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert list(document.PerformedProcedureCodeSequence) == []
    assert list(document.ReferencedPerformedProcedureStepSequence) == []
    assert (document.Modality, document.InstanceNumber) == ("SR", 1)
    assert "BodyPartExamined" not in document


@pytest.mark.parametrize(
    ("number", "expected"),
    [(b"3 ", 9003), (b"1203", 9203), (b"0 ", 9000), (b"-4", 9000), (b"x ", 9000), (b"", 9000)],
)
def test_the_series_number_follows_that_of_the_images(number, expected):
    assert report_on(with_bytes({"SeriesNumber": number}))[1].SeriesNumber == expected


def test_a_report_about_no_images_is_refused():
    with pytest.raises(ValueError, match="needs the headers of the images"):
        build_report(frozen(), [])
