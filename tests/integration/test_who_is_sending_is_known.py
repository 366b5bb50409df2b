"""The listener knows which open associations may bring images, and by which title."""

from __future__ import annotations

from contextlib import contextmanager

from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from tests.listening import listening
from tests.worker_node import wait_for


@contextmanager
def association(port, sop_class):
    ae = AE("SENDER")
    ae.add_requested_context(sop_class)
    opened = ae.associate("127.0.0.1", port, ae_title="NODULE_NODE")
    assert opened.is_established
    try:
        yield
    finally:
        opened.release()


def test_an_association_that_may_bring_images_counts_until_it_is_closed(tmp_path):
    with listening(tmp_path) as node:
        assert node.listener.sending() == {}
        with association(node.port, CTImageStorage):
            assert list(node.listener.sending().values()) == ["SENDER"]
        wait_for(lambda: node.listener.sending() == {}, within_s=60.0)


def test_an_echo_is_nobody_sending(tmp_path):
    with listening(tmp_path) as node, association(node.port, Verification):
        assert node.listener.sending() == {}
