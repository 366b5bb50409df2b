"""A release ends although the library's threads misunderstand each other (found by ``make chaos``)."""

from __future__ import annotations

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from scp_node.network.library import release
from tests.small_archive import small_archive
from tests.worker_node import wait_for


@pytest.fixture
def association():
    with small_archive() as archive:
        ae = AE("NODULE")
        ae.acse_timeout = 60
        ae.add_requested_context(Verification)
        opened = ae.associate("127.0.0.1", archive.port)
        assert opened.is_established
        yield opened
        opened.kill()


def test_an_association_is_released(association):
    release(association)
    assert association.is_released
    assert not association.is_established


@pytest.mark.timeout(120)
def test_a_pause_that_a_third_thread_took_back_holds_up_no_release(association):
    """As when a storage commitment answer was served while the reactor paused already."""
    association._reactor_checkpoint.clear()
    wait_for(lambda: association._is_paused)
    association._is_paused = False
    release(association)
    assert association.is_released


def test_a_release_of_what_has_ended_does_nothing(association):
    association.abort()
    release(association)
    assert not association.is_released
