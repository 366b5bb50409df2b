"""Damaged chests through a node: whatever is missing or replaced, a report without findings says so.

Two of each kind and six intact ones here; the long form is ``make damage``: 500 damaged chests and 50 intact ones.
"""

from __future__ import annotations

import pytest

from tests.damage import DAMAGES, HARMLESS, SmallNode, arriving_late, run_case

SEEDS = (1, 2)
SOMETIMES_HARMLESS = {"duplicates", "missing_inner", "wrong_order"}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = SmallNode(tmp_path_factory.mktemp("node"))
    yield node
    node.engine.dispose()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_damage_ends_in_a_clean_report(node, damage, seed):
    case = run_case(node, damage, seed)
    assert not case.silent
    assert not case.unseen
    if damage.__name__ not in SOMETIMES_HARMLESS:
        assert case.loss > 0
    if damage is arriving_late:
        assert case.final.outcome == "no_findings"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("harmless", HARMLESS, ids=lambda harmless: harmless.__name__)
def test_intact_chests_raise_no_alarm(node, harmless, seed):
    case = run_case(node, harmless, seed)
    assert case.final.clean, case
