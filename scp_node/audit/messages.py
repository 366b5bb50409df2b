"""DICOM audit messages as XML: what happened, who took part, which studies (PS3.15 Annex A.5).

Studies are named by their Study Instance UID alone. No patient participant is written: this node keeps no patient
name or identifier outside the images; the archive beside it audits the same transfers with both (decision 0114).
"""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value of the DICOM controlled terminology, PS3.16 Annex D."""

    value: str
    meaning: str


APPLICATION_ACTIVITY: Final = Code("110100", "Application Activity")
APPLICATION_START: Final = Code("110120", "Application Start")
APPLICATION_STOP: Final = Code("110121", "Application Stop")
INSTANCES_TRANSFERRED: Final = Code("110104", "DICOM Instances Transferred")
EXPORT: Final = Code("110106", "Export")
IMPORT: Final = Code("110107", "Import")
SECURITY_ALERT: Final = Code("110113", "Security Alert")
NODE_AUTHENTICATION: Final = Code("110126", "Node Authentication")
RESTRICTED_FUNCTION: Final = Code("110132", "Use of Restricted Function")
SOFTWARE_CONFIGURATION: Final = Code("110131", "Software Configuration")
ROLE_APPLICATION: Final = Code("110150", "Application")
ROLE_DESTINATION: Final = Code("110152", "Destination Role ID")
ROLE_SOURCE: Final = Code("110153", "Source Role ID")
ROLE_DESTINATION_MEDIA: Final = Code("110154", "Destination Media")
ROLE_SOURCE_MEDIA: Final = Code("110155", "Source Media")
MEDIA_URI: Final = Code("110037", "URI")
STUDY_UID: Final = Code("110180", "Study Instance UID")
NODE_ID: Final = Code("110182", "Node ID")

SUCCESS, MINOR_FAILURE = "0", "4"
_MACHINE, _ADDRESS = "1", "2"
_SYSTEM_OBJECT, _REPORT, _SECURITY_RESOURCE = "2", "3", "13"
_APPLICATION_SERVER = "4"


@dataclass(frozen=True, slots=True)
class Auditor:
    """Who reports: our AE title, the machine, and the institution, which may be empty."""

    ae_title: str
    machine: str
    institution: str = ""

    @classmethod
    def here(cls, ae_title: str, institution: str) -> Auditor:
        """Name this machine."""
        return cls(ae_title, socket.gethostname(), institution)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another application entity: its AE title and address, either may be empty."""

    ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Studies:
    """Instances of one study, by SOP class."""

    study_uid: str
    instances: Mapping[str, int]


def application(auditor: Auditor, at: float, *, started: bool) -> bytes:
    """The node started or stopped (A.5.3.1)."""
    message = _message(APPLICATION_ACTIVITY, "E", at, type_code=APPLICATION_START if started else APPLICATION_STOP)
    _ourselves(message, auditor, ROLE_APPLICATION)
    return _whole(message, auditor)


def transferred(auditor: Auditor, at: float, sender: Peer, studies: Studies, *, changed: bool) -> bytes:
    """Instances of a study arrived from a sender (A.5.3.7)."""
    message = _message(INSTANCES_TRANSFERRED, "U" if changed else "C", at)
    _participant(message, sender, ROLE_SOURCE, requestor=True)
    _ourselves(message, auditor, ROLE_DESTINATION)
    return _whole(message, auditor, studies)


def imported(auditor: Auditor, at: float, place: str, studies: Studies) -> bytes:
    """Instances were found on disk and counted in (A.5.3.5)."""
    message = _message(IMPORT, "C", at)
    _ourselves(message, auditor, ROLE_DESTINATION)
    _medium(message, place, ROLE_SOURCE_MEDIA)
    return _whole(message, auditor, studies)


def exported(auditor: Auditor, at: float, destination: Peer, studies: Studies) -> bytes:
    """A result went to a destination (A.5.3.4)."""
    message = _message(EXPORT, "R", at)
    _ourselves(message, auditor, ROLE_SOURCE)
    _medium(message, f"dicom://{destination.address}/{destination.ae_title}", ROLE_DESTINATION_MEDIA)
    return _whole(message, auditor, studies)


def alert(auditor: Auditor, at: float, kind: Code, peer: Peer | None, text: str, *, outcome: str) -> bytes:
    """Somebody was kept out, or the node's rules changed (A.5.3.10)."""
    message = _message(SECURITY_ALERT, "E", at, type_code=kind, outcome=outcome)
    _ourselves(message, auditor, ROLE_APPLICATION)
    if peer is not None:
        _participant(message, peer, None, requestor=True)
    _source(message, auditor)
    subject = ET.SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=auditor.machine if peer is None else peer.address or peer.ae_title,
        ParticipantObjectTypeCode=_SYSTEM_OBJECT,
        ParticipantObjectTypeCodeRole=_SECURITY_RESOURCE,
    )
    _coded(subject, "ParticipantObjectIDTypeCode", NODE_ID)
    ET.SubElement(subject, "ParticipantObjectName").text = (
        auditor.ae_title if peer is None else _printable(peer.ae_title)
    )
    value = base64.b64encode(text.encode("ascii", errors="replace")).decode("ascii")
    ET.SubElement(subject, "ParticipantObjectDetail", type="Alert Description", value=value)
    return _encoded(message)


def _message(
    event: Code, action: str, at: float, *, type_code: Code | None = None, outcome: str = SUCCESS
) -> ET.Element:
    message = ET.Element("AuditMessage")
    identification = ET.SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=outcome,
    )
    _coded(identification, "EventID", event)
    if type_code is not None:
        _coded(identification, "EventTypeCode", type_code)
    return message


def _ourselves(message: ET.Element, auditor: Auditor, role: Code) -> None:
    participant = ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=auditor.ae_title,
        AlternativeUserID=f"AETITLES={auditor.ae_title}",
        UserIsRequestor="false",
        NetworkAccessPointID=auditor.machine,
        NetworkAccessPointTypeCode=_MACHINE,
    )
    _coded(participant, "RoleIDCode", role)


def _participant(message: ET.Element, peer: Peer, role: Code | None, *, requestor: bool) -> None:
    participant = ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=_printable(peer.ae_title),
        AlternativeUserID=f"AETITLES={_printable(peer.ae_title)}",
        UserIsRequestor="true" if requestor else "false",
    )
    if peer.address:
        participant.set("NetworkAccessPointID", peer.address)
        participant.set("NetworkAccessPointTypeCode", _ADDRESS)
    if role is not None:
        _coded(participant, "RoleIDCode", role)


def _medium(message: ET.Element, place: str, role: Code) -> None:
    participant = ET.SubElement(message, "ActiveParticipant", UserID=place, UserIsRequestor="false")
    _coded(participant, "RoleIDCode", role)
    _coded(ET.SubElement(participant, "MediaIdentifier"), "MediaType", MEDIA_URI)


def _whole(message: ET.Element, auditor: Auditor, studies: Studies | None = None) -> bytes:
    _source(message, auditor)
    if studies is not None:
        found = ET.SubElement(
            message,
            "ParticipantObjectIdentification",
            ParticipantObjectID=studies.study_uid,
            ParticipantObjectTypeCode=_SYSTEM_OBJECT,
            ParticipantObjectTypeCodeRole=_REPORT,
        )
        _coded(found, "ParticipantObjectIDTypeCode", STUDY_UID)
        ET.SubElement(found, "ParticipantObjectName").text = "study"
        description = ET.SubElement(found, "ParticipantObjectDescription")
        for uid, count in studies.instances.items():
            ET.SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(count))
    return _encoded(message)


def _source(message: ET.Element, auditor: Auditor) -> None:
    source = ET.SubElement(
        message, "AuditSourceIdentification", AuditSourceID=f"{auditor.ae_title}@{auditor.machine}"
    )
    if auditor.institution:
        source.set("AuditEnterpriseSiteID", auditor.institution)
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})


def _coded(parent: ET.Element, name: str, code: Code) -> None:
    ET.SubElement(parent, name, {"csd-code": code.value, "codeSystemName": "DCM", "originalText": code.meaning})


def _encoded(message: ET.Element) -> bytes:
    """Encode as one line of UTF-8."""
    encoded: bytes = ET.tostring(message, encoding="utf-8", xml_declaration=True)
    return encoded.replace(b"\n", b"")


def _printable(text: str) -> str:
    """Replace what a peer may choose and XML cannot hold."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
