"""C-STORE over real sockets: what is stored, as which bytes, and what a second arrival does."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace

import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    XRayRadiationDoseSRStorage,
)
from pynetdicom import AE, build_context

from scp_node.identifiers import split_file
from scp_node.ledger.states import EventKind, Purpose, StudyState
from scp_node.network.library import send_encoded
from tests.builders import ChestSeries
from tests.listening import listening
from tests.raw_sender import PRIVATE_CLASS, another, association, raw, send_raw

SMALL = ChestSeries(slices=3, rows=32, columns=32)


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path) as running:
        yield running


def test_a_ct_image_is_stored_byte_for_byte_and_counted(node):
    (first, *_) = SMALL.datasets()
    assert send_raw(node.port, [raw(first)]) == [0x0000]
    (row,) = node.instances()
    content = (node.folder / row.path).read_bytes()
    part10 = split_file(content)
    assert content[part10.dataset_at :] == raw(first).dataset
    assert (part10.calling_ae, part10.called_ae) == ("SENDER", "NODULE_NODE")
    assert row.sha256 == hashlib.sha256(raw(first).dataset).hexdigest()
    assert (row.purpose, row.version, row.is_newest) == (Purpose.CT, 1, True)
    assert (row.calling_ae, row.called_ae, row.peer) == ("SENDER", "NODULE_NODE", "127.0.0.1")
    (study,) = node.studies()
    assert (study.study_uid, study.state, study.sender) == (SMALL.study_uid, StudyState.RECEIVING, "SENDER")
    assert pydicom.dcmread(node.folder / row.path).PatientID == "TEST-0001"


def test_what_a_re_encoding_would_lose_is_kept(node):
    odd = raw(SMALL.datasets()[0])
    with_group_length = b"\x08\x00\x00\x00UL\x04\x00\x99\x00\x00\x00" + odd.dataset
    assert send_raw(node.port, [replace(odd, dataset=with_group_length)]) == [0x0000]
    content = (node.folder / node.instances()[0].path).read_bytes()
    assert content.endswith(with_group_length)


def test_file_names_do_not_show_uids(node):
    send_raw(node.port, [raw(d) for d in SMALL.datasets()])
    names = {row.path for row in node.instances()}
    digest = hashlib.sha256(SMALL.datasets()[0].SOPInstanceUID.encode()).hexdigest()[:32]
    assert f"objects/{digest[:2]}/{digest}.dcm" in names
    assert list((node.folder / "incoming").iterdir()) == []


def test_the_same_bytes_again_change_nothing(node):
    one = raw(SMALL.datasets()[0])
    send_raw(node.port, [one])
    before = (node.instances(), node.studies(), node.events())
    assert send_raw(node.port, [one, one]) == [0x0000, 0x0000]
    assert (node.instances(), node.studies(), node.events()) == before
    assert len(list(node.spool.objects())) == 1


def test_other_bytes_under_the_same_uid_are_both_kept_and_noted(node):
    first = SMALL.datasets()[0]
    send_raw(node.port, [raw(first)])
    first.SeriesDescription = "CORRECTED"
    assert send_raw(node.port, [raw(first)]) == [0x0000]
    old, new = sorted(node.instances(), key=lambda row: row.version)
    assert (old.version, old.is_newest, new.version, new.is_newest) == (1, False, 2, True)
    assert new.path == old.path.replace(".dcm", ".v2.dcm")
    assert pydicom.dcmread(node.folder / new.path).SeriesDescription == "CORRECTED"
    assert pydicom.dcmread(node.folder / old.path).SeriesDescription == "CHEST 2.5"
    (event,) = node.events()
    assert (event.kind, event.code, event.study_uid) == (EventKind.CHANGED, "INSTANCE_CHANGED", SMALL.study_uid)
    assert event.text == (
        f"Instance {first.SOPInstanceUID} arrived again from SENDER with other content; "
        "both are kept, the newest counts."
    )


def test_a_study_with_dose_report_and_private_class_is_accepted_whole(node):
    images = SMALL.datasets()
    dose = another(SMALL.datasets()[0], XRayRadiationDoseSRStorage, "dose")
    private = another(SMALL.datasets()[0], PRIVATE_CLASS, "private")
    assert send_raw(node.port, [raw(d) for d in (images[0], dose, private, *images[1:])]) == [0x0000] * 5
    purposes = {row.sop_class_uid: row.purpose for row in node.instances()}
    assert purposes == {
        str(CTImageStorage): Purpose.CT,
        str(XRayRadiationDoseSRStorage): Purpose.OTHER,
        PRIVATE_CLASS: Purpose.OTHER,
    }
    (event,) = node.events()
    assert event.kind == EventKind.PRIVATE_CLASS
    assert PRIVATE_CLASS in event.text


def test_other_objects_can_be_noted_without_their_bytes(tmp_path):
    with listening(tmp_path, storage='other_objects = "header"') as node:
        dose = another(SMALL.datasets()[0], XRayRadiationDoseSRStorage, "dose")
        assert send_raw(node.port, [raw(dose), raw(SMALL.datasets()[0])]) == [0x0000, 0x0000]
        paths = {row.purpose: row.path for row in node.instances()}
        assert paths[Purpose.OTHER] is None
        assert paths[Purpose.CT] is not None
        assert len(list(node.spool.objects())) == 1


def test_a_sender_that_has_only_a_compressed_syntax_is_served(node):
    compressed = raw(SMALL.datasets()[0], transfer_syntax_uid=str(JPEG2000Lossless))
    assert send_raw(node.port, [compressed]) == [0x0000]
    assert node.instances()[0].transfer_syntax_uid == JPEG2000Lossless


def test_uncompressed_is_preferred_whatever_order_the_sender_proposes(node):
    ae = AE(ae_title="SENDER")
    proposed = [JPEG2000Lossless, ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    opened = ae.associate(
        "127.0.0.1",
        node.port,
        [build_context(CTImageStorage, proposed), build_context(PRIVATE_CLASS, proposed)],
        ae_title="NODULE_NODE",
    )
    chosen = {str(c.abstract_syntax): c.transfer_syntax[0] for c in opened.accepted_contexts}
    opened.release()
    assert chosen == {str(CTImageStorage): ExplicitVRLittleEndian, PRIVATE_CLASS: ExplicitVRLittleEndian}


def test_two_parallel_associations_make_one_study(node):
    objects = [raw(d) for d in ChestSeries(slices=20, rows=32, columns=32).datasets()]
    answers: list[list[int | None]] = []
    threads = [
        threading.Thread(target=lambda part=part: answers.append(send_raw(node.port, part)))
        for part in (objects[::2], objects[1::2], objects[::2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for part in answers for status in part] == [0x0000] * 30
    assert len(node.instances()) == 20
    assert len(node.studies()) == 1


def test_sent_again_after_an_abort_the_result_is_the_same(node):
    objects = [raw(d) for d in SMALL.datasets()]
    with association(node.port, objects) as opened:
        context = opened.accepted_contexts[0]
        send_encoded(opened, context, objects[0].sop_class_uid, objects[0].sop_instance_uid, objects[0].dataset)
        opened.abort()
    assert send_raw(node.port, objects) == [0x0000] * 3
    assert sorted(row.version for row in node.instances()) == [1, 1, 1]
    assert node.events() == []


def test_echo_is_answered(node):
    opened = AE(ae_title="SENDER").associate(
        "127.0.0.1", node.port, [build_context("1.2.840.10008.1.1")], ae_title="NODULE_NODE"
    )
    assert opened.send_c_echo().Status == 0x0000
    opened.release()
