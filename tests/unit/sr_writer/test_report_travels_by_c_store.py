"""The report over a real association on loopback: what arrives is what was sent."""

from __future__ import annotations

import contextlib

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, ComprehensiveSRStorage

from tests.reports import analysis, frozen, not_analysed, reread, written

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


@contextlib.contextmanager
def archive(*sop_classes):
    """A storage SCP on a free port; yields the port and what was stored."""
    stored = []

    def keep(event):
        stored.append((event.dataset, event.context.transfer_syntax, event.encoded_dataset()))
        return 0x0000

    ae = AE("ARCHIVE")
    for sop_class in sop_classes:
        ae.add_supported_context(sop_class, SYNTAXES)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield server.server_address[1], stored
    finally:
        server.shutdown()


def send(port, document):
    """Offer both SR classes; store the document if its class was accepted. Gives the status or ``None``."""
    ae = AE("NODULE1")
    for sop_class in (Comprehensive3DSRStorage, ComprehensiveSRStorage):
        ae.add_requested_context(sop_class, SYNTAXES)
    association = ae.associate("127.0.0.1", port, ae_title="ARCHIVE")
    assert association.is_established
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        return association.send_c_store(document).Status if document.SOPClassUID in accepted else None
    finally:
        association.release()


@pytest.mark.parametrize("result", [analysis(), analysis(()), not_analysed()], ids=lambda a: a.outcome)
@pytest.mark.parametrize("form", ["comprehensive3d", "comprehensive"])
def test_what_the_archive_stores_is_what_was_sent(result, form):
    document = written(frozen(result, sr=form))
    with archive(Comprehensive3DSRStorage, ComprehensiveSRStorage) as (port, stored):
        assert send(port, document) == 0x0000
    ((received, syntax, file),) = stored
    assert syntax == ExplicitVRLittleEndian
    assert received == document
    assert reread(file).SOPInstanceUID == document.SOPInstanceUID


def test_an_archive_that_refuses_3d_takes_the_other_form_as_another_instance():
    first, second = frozen(), frozen(sr="comprehensive")
    with archive(ComprehensiveSRStorage) as (port, stored):
        assert send(port, written(first)) is None
        assert send(port, written(second)) == 0x0000
    assert [received.SOPInstanceUID for received, _, _ in stored] == [second.sop_instance_uid]
    assert first.sop_instance_uid != second.sop_instance_uid
