"""Everything of a report outside its content tree: patient, study, series, equipment, document.

What identifies patient and study is copied byte for byte from the images; dates, times and codes only where they
are valid. Nothing here can fail on a header: a missing or broken value becomes empty or is left out.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from sr_writer import codes
from sr_writer.raw import copied, copied_items, from_text, items, put, text_of
from sr_writer.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.sr.coding import Code as Concept

    from sr_writer.record import Predecessor, ReportRecord

MANUFACTURER = "nodule-node project"
MODEL_NAME = "nodule-node"
SERIES_NUMBER_BASE = 9000

AS_RECEIVED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "EthnicGroup",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "DeidentificationMethod",
)
"""Copied byte for byte."""

SEQUENCES = (
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "IssuerOfAccessionNumberSequence",
    "ProcedureCodeSequence",
    "ReferencedStudySequence",
    "DeidentificationMethodCodeSequence",
)
"""Copied item by item where not empty."""

_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_DECIMAL = re.compile(r"(?=.{1,16}$)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")

WHERE_VALID = {
    "PatientBirthDate": _DATE,
    "PatientBirthTime": _TIME,
    "PatientSex": re.compile("[MFO]"),
    "PatientAge": re.compile(r"\d{3}[DWMY]"),
    "PatientSize": _DECIMAL,
    "PatientWeight": _DECIMAL,
    "StudyDate": _DATE,
    "StudyTime": _TIME,
    "TimezoneOffsetFromUTC": re.compile(r"-(0\d|1[0-2])[0-5]\d|\+(0\d|1[0-4])[0-5]\d"),
    "PatientIdentityRemoved": re.compile("YES|NO"),
}
"""Copied only when the whole value fits; dates must be real calendar days too."""

REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Type 2: present, empty when there is nothing to copy."""


def document_header(record: ReportRecord, reference: Dataset, description: str) -> Dataset:
    """Make the document without its content tree and evidence.

    Parameters
    ----------
    record
        The frozen result.
    reference
        Header of the reference image, its elements not yet read.
    description
        Series Description: ASCII, at most 64 characters.

    References
    ----------
    PS3.3 A.35.13 (Comprehensive 3D SR IOD) and C.7.1.1, C.7.2.1, C.7.2.2, C.7.5.1, C.12.1, C.17.1, C.17.2.
    """
    document = Dataset()
    document.file_meta = _file_meta(record)
    _copy_patient_and_study(document, record, reference)
    _describe_series(document, record, reference, description)
    _describe_equipment(document, record)
    _set_times(document, local_time(record, reference))
    document.CompletionFlag = "COMPLETE"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.PerformedProcedureCodeSequence = []
    requests = _referenced_requests(record, reference)
    if requests:
        document.ReferencedRequestSequence = requests
    if record.predecessors:
        document.PredecessorDocumentsSequence = _predecessor_items(record.predecessors)
    return document


def local_time(record: ReportRecord, reference: Dataset) -> datetime:
    """Give the time of the result in the images' time zone where they name one, else in the site's.

    Timezone Offset From UTC rules every date and time of a data set (PS3.3 C.12.1.1.8).
    """
    offset = _valid(reference, "TimezoneOffsetFromUTC")
    if not offset:
        return record.finished
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return record.finished.astimezone(zone)


def procedure_of(reference: Dataset) -> Dataset | None:
    """Give a copy of the first valid item of the images' Procedure Code Sequence."""
    limits = {"CodeValue": 16, "CodingSchemeDesignator": 16, "CodeMeaning": 64}
    for item in items(reference, "ProcedureCodeSequence"):
        if all(0 < len(text_of(item, keyword)) <= most for keyword, most in limits.items()):
            code = Dataset()
            for keyword in ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"):
                put(code, copied(item, keyword))
            return code
    return None


def code_item(concept: Concept) -> Dataset:
    """Make the item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept[:3]
    return item


def _file_meta(record: ReportRecord) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(record.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(record.sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _copy_patient_and_study(document: Dataset, record: ReportRecord, reference: Dataset) -> None:
    for keyword in AS_RECEIVED:
        if text_of(reference, keyword) or keyword in REQUIRED:
            put(document, copied(reference, keyword))
    for keyword in SEQUENCES:
        found = copied_items(reference, keyword)
        if found:
            setattr(document, keyword, found)
    for keyword in WHERE_VALID:
        value = _valid(reference, keyword)
        if value:
            put(document, from_text(keyword, value))
    for keyword in REQUIRED:
        if keyword not in document:
            setattr(document, keyword, "")
    put(document, from_text("StudyInstanceUID", record.study_instance_uid))


def _describe_series(document: Dataset, record: ReportRecord, reference: Dataset, description: str) -> None:
    document.SOPClassUID = record.sop_class_uid
    document.SOPInstanceUID = record.sop_instance_uid
    document.SeriesInstanceUID = record.series_instance_uid
    document.Modality = "SR"
    document.SeriesDescription = description
    document.SeriesNumber = _series_number(reference)
    document.InstanceNumber = 1
    document.ReferencedPerformedProcedureStepSequence = []


def _describe_equipment(document: Dataset, record: ReportRecord) -> None:
    node = record.node
    document.Manufacturer = MANUFACTURER
    document.ManufacturerModelName = MODEL_NAME
    document.SoftwareVersions = node.version
    document.DeviceSerialNumber = node.ae_title
    if node.institution:
        document.InstitutionName = node.institution[:64]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code_item(codes.PROCESSING_EQUIPMENT)]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = MODEL_NAME
    equipment.DeviceSerialNumber = node.ae_title
    equipment.SoftwareVersions = [node.version]
    if record.model is not None:
        equipment.SoftwareVersions = [node.version, f"weights sha256 {record.model.sha256}"[:64]]
    document.ContributingEquipmentSequence = [equipment]


def _set_times(document: Dataset, moment: datetime) -> None:
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    for kind in ("InstanceCreation", "Series", "Content"):
        setattr(document, f"{kind}Date", date)
        setattr(document, f"{kind}Time", time)
    for equipment in document.ContributingEquipmentSequence:
        equipment.ContributionDateTime = date + time


def _referenced_requests(record: ReportRecord, reference: Dataset) -> list[Dataset]:
    requests = []
    for request in items(reference, "RequestAttributesSequence"):
        item = Dataset()
        put(item, from_text("StudyInstanceUID", record.study_instance_uid))
        item.ReferencedStudySequence = []
        item.PlacerOrderNumberImagingServiceRequest = ""
        item.FillerOrderNumberImagingServiceRequest = ""
        item.RequestedProcedureCodeSequence = []
        item.AccessionNumber = item.RequestedProcedureID = item.RequestedProcedureDescription = ""
        put(item, copied(reference, "AccessionNumber"))
        put(item, copied(request, "RequestedProcedureID"))
        put(item, copied(request, "RequestedProcedureDescription"))
        requests.append(item)
    return requests


def _predecessor_items(predecessors: Sequence[Predecessor]) -> list[Dataset]:
    studies = []
    for predecessor in predecessors:
        document = Dataset()
        document.ReferencedSOPClassUID = predecessor.sop_class_uid
        document.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
        series = Dataset()
        series.ReferencedSOPSequence = [document]
        series.SeriesInstanceUID = predecessor.series_instance_uid
        study = Dataset()
        put(study, from_text("StudyInstanceUID", predecessor.study_instance_uid))
        study.ReferencedSeriesSequence = [series]
        studies.append(study)
    return studies


def _series_number(reference: Dataset) -> int:
    text = text_of(reference, "SeriesNumber")
    number = int(text) if re.fullmatch(r"\+?\d{1,12}", text) else 0
    return SERIES_NUMBER_BASE + number % 1000


def _valid(reference: Dataset, keyword: str) -> str:
    text = text_of(reference, keyword)
    pattern = WHERE_VALID[keyword]
    fits = pattern.fullmatch(text) is not None and (pattern is not _DATE or _is_calendar_day(text))
    return text if fits else ""


def _is_calendar_day(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True
