"""Audit messages keep the schema of PS3.15 A.5.1 and the tables of A.5.3, and name no patient."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from scp_node.audit import messages
from scp_node.audit.messages import Auditor, Peer, Studies
from tests.unit.audit.schema import faults

OURS = Auditor("NODULE_NODE", "ai-node", "Hospital")
STUDY = Studies("1.2.3", {"1.2.840.10008.5.1.4.1.1.2": 300})
SENDER = Peer("CT_ROUTER", "10.0.0.7")

EVERY = {
    "start": messages.application(OURS, 1.5, started=True),
    "stop": messages.application(OURS, 1.5, started=False),
    "received": messages.transferred(OURS, 1.5, SENDER, STUDY, changed=False),
    "received again": messages.transferred(OURS, 1.5, SENDER, STUDY, changed=True),
    "imported": messages.imported(OURS, 1.5, "file:///var/lib/nodule-node", Studies("1.2.3", {})),
    "exported": messages.exported(OURS, 1.5, Peer("PACS", "10.0.0.9:104"), STUDY),
    "kept out": messages.alert(OURS, 1.5, messages.NODE_AUTHENTICATION, SENDER, "No.", outcome="4"),
    "forbidden": messages.alert(OURS, 1.5, messages.RESTRICTED_FUNCTION, Peer("X", ""), "No.", outcome="4"),
    "settings": messages.alert(OURS, 1.5, messages.SOFTWARE_CONFIGURATION, None, "Other settings.", outcome="0"),
}


@pytest.mark.parametrize("message", EVERY.values(), ids=EVERY)
def test_a_message_keeps_schema_and_table(message):
    assert faults(message) == []


def test_the_checker_finds_what_is_wrong():
    broken = EVERY["received"].replace(b'EventActionCode="C"', b'EventActionCode="X"')
    assert "EventIdentification: EventActionCode=X" in faults(broken)
    assert "110104: lacks the role 110153" in faults(broken.replace(b"110153", b"110150"))
    assert faults(EVERY["start"].replace(b' EventOutcomeIndicator="0"', b"")) == [
        "EventIdentification: lacks EventOutcomeIndicator"
    ]


@pytest.mark.parametrize("message", EVERY.values(), ids=EVERY)
def test_a_message_is_one_line_and_has_no_patient_participant(message):
    assert b"\n" not in message
    roles = [
        o.get("ParticipantObjectTypeCodeRole")
        for o in ET.fromstring(message).iter("ParticipantObjectIdentification")
    ]
    assert "1" not in roles


def test_what_a_peer_writes_cannot_break_the_xml():
    nasty = Peer('A<b>&"\x01', "10.0.0.7")
    message = messages.alert(OURS, 1.5, messages.NODE_AUTHENTICATION, nasty, "text\x00 & more", outcome="4")
    assert faults(message) == []
    assert ET.fromstring(message).findall("ActiveParticipant")[1].get("UserID") == 'A<b>&"?'


def test_a_transfer_says_who_sent_how_much_to_whom():
    root = ET.fromstring(EVERY["received"])
    source, destination = root.findall("ActiveParticipant")
    assert (source.get("UserID"), source.get("NetworkAccessPointID")) == ("CT_ROUTER", "10.0.0.7")
    assert destination.get("UserID") == "NODULE_NODE"
    found = root.find(".//SOPClass")
    assert (found.get("UID"), found.get("NumberOfInstances")) == ("1.2.840.10008.5.1.4.1.1.2", "300")
    assert root.find("EventIdentification").get("EventDateTime") == "1970-01-01T00:00:01.500+00:00"
