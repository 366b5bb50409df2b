"""``network.guard = false``: the library's own server and reader; everything that honest peers need still works."""

from __future__ import annotations

import pytest

from tests.builders import ChestSeries, as_bytes
from tests.integration.test_receive_admission import VERIFICATION, ask
from tests.listening import listening
from tests.raw_sender import raw, send_raw


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path, network="guard = false\nacse_timeout_s = 20.0") as running:
        yield running


def test_echo_and_storage_are_served(node):
    datasets = ChestSeries(slices=3, rows=32, columns=32).datasets()
    assert ask(node.port, sop_class=VERIFICATION) is None
    assert send_raw(node.port, [raw(dataset) for dataset in datasets]) == [0x0000] * 3
    for dataset, row in zip(datasets, node.instances(), strict=True):
        content = as_bytes(dataset)
        sent = content[144 + int.from_bytes(content[140:144], "little") :]
        assert node.spool.read(row.path).endswith(sent)


def test_strangers_and_wrong_titles_are_rejected(node):
    assert ask(node.port, calling="STRANGER") == (1, 1, 3)
    assert ask(node.port, called="OTHER") == (1, 1, 7)


def test_a_refused_object_keeps_its_status_and_the_association_goes_on(node):
    good = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])
    odd = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0], sop_instance_uid="1.2.3")
    assert send_raw(node.port, [odd, good]) == [0xA900, 0x0000]
