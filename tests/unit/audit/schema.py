"""The rules of the audit message schema (PS3.15 A.5.1, RELAX NG) and of the message tables, as a checker."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from xml.etree import ElementTree as ET

TOKEN = re.compile(r"^\S(.*\S)?$")
DIGITS = {"EventOutcomeIndicator": {"0", "4", "8", "12"}, "NetworkAccessPointTypeCode": set("12345")}
CHOICES = {
    **DIGITS,
    "EventActionCode": set("CRUDE"),
    "UserIsRequestor": {"true", "false", "1", "0"},
    "ParticipantObjectTypeCode": set("1234"),
    "ParticipantObjectTypeCodeRole": {str(n) for n in range(1, 27)},
    "ParticipantObjectDataLifeCycle": {str(n) for n in range(1, 16)},
}
CODED = ({"csd-code", "codeSystemName", "originalText"}, {"displayName"}, ())
# name: required attributes, optional attributes, children in order with how often (min, max)
ELEMENTS = {
    "AuditMessage": (
        set(),
        set(),
        (
            ("EventIdentification", 1, 1),
            ("ActiveParticipant", 1, None),
            ("AuditSourceIdentification", 1, 1),
            ("ParticipantObjectIdentification", 0, None),
        ),
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        (("EventID", 1, 1), ("EventTypeCode", 0, None), ("EventOutcomeDescription", 0, 1)),
    ),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        (("RoleIDCode", 0, None), ("MediaIdentifier", 0, 1)),
    ),
    "MediaIdentifier": (set(), set(), (("MediaType", 1, 1),)),
    "AuditSourceIdentification": (
        {"AuditSourceID"},
        {"AuditEnterpriseSiteID"},
        (("AuditSourceTypeCode", 0, None),),
    ),
    "AuditSourceTypeCode": ({"csd-code"}, {"codeSystemName", "originalText", "displayName"}, ()),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
        (
            ("ParticipantObjectIDTypeCode", 1, 1),
            ("ParticipantObjectName", 1, 1),
            ("ParticipantObjectDetail", 0, None),
            ("ParticipantObjectDescription", 0, None),
        ),
    ),
    "ParticipantObjectName": (set(), set(), ()),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ()),
    "ParticipantObjectDescription": (set(), set(), (("SOPClass", 0, None),)),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, ()),
    **dict.fromkeys(("EventID", "EventTypeCode", "RoleIDCode", "MediaType", "ParticipantObjectIDTypeCode"), CODED),
}
# event code: action codes allowed, roles that must take part (PS3.15 A.5.3)
TABLES = {
    "110100": ({"E"}, {"110150"}),
    "110104": ({"C", "R", "U"}, {"110152", "110153"}),
    "110106": ({"R"}, {"110153", "110154"}),
    "110107": ({"C"}, {"110152", "110155"}),
    "110113": ({"E"}, set()),
}
STUDY_EVENTS = {"110104", "110106", "110107"}


def faults(message: bytes) -> list[str]:
    """Everything in which a message breaks the schema or its table."""
    root = ET.fromstring(message)
    assert root.tag == "AuditMessage"
    return [*_element_faults(root), *_table_faults(root)]


def _element_faults(element: ET.Element) -> list[str]:
    required, optional, children = ELEMENTS[element.tag]
    names = set(element.attrib)
    found = [f"{element.tag}: lacks {name}" for name in required - names]
    found += [f"{element.tag}: unknown {name}" for name in names - required - optional]
    found += [
        f"{element.tag}: {name}={value}"
        for name, value in element.attrib.items()
        if (name in CHOICES and value not in CHOICES[name]) or not TOKEN.match(value)
    ]
    found += _order_faults(element, children)
    if element.tag == "EventIdentification" and datetime.fromisoformat(element.get("EventDateTime")).tzinfo is None:
        found.append("EventDateTime has no zone")
    if element.tag == "ParticipantObjectDetail":
        base64.b64decode(element.get("value"), validate=True)
    if element.tag == "SOPClass":
        int(element.get("NumberOfInstances"))
    return found + [fault for child in element for fault in _element_faults(child)]


def _order_faults(element: ET.Element, children) -> list[str]:
    order = [name for name, _, _ in children]
    tags = [child.tag for child in element]
    if set(tags) - set(order):
        return [f"{element.tag}: unknown {sorted(set(tags) - set(order))}"]
    found = [] if sorted(tags, key=order.index) == tags else [f"{element.tag}: order {tags}"]
    for name, least, most in children:
        count = tags.count(name)
        if count < least or (most is not None and count > most):
            found.append(f"{element.tag}: {count} {name}")
    return found


def _table_faults(root: ET.Element) -> list[str]:
    event = root.find("EventIdentification/EventID").get("csd-code")
    actions, roles = TABLES[event]
    found = []
    if root.find("EventIdentification").get("EventActionCode") not in actions:
        found.append(f"{event}: action")
    there = {role.get("csd-code") for role in root.iterfind("ActiveParticipant/RoleIDCode")}
    found += [f"{event}: lacks the role {role}" for role in roles - there]
    kinds = [kind.get("csd-code") for kind in root.iterfind(".//ParticipantObjectIDTypeCode")]
    if event in STUDY_EVENTS and kinds != ["110180"]:
        found.append(f"{event}: participant objects {kinds}")
    if event in {"110100", "110113"} and root.find("EventIdentification/EventTypeCode") is None:
        found.append(f"{event}: lacks EventTypeCode")
    return found
