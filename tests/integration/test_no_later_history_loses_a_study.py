"""The second thousand of histories, in a file of its own so that two workers share them (decision 0120)."""

from __future__ import annotations

import pytest

from tests.simulator.run import Tally, simulate

PART = 500


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", [1000, 1500])
def test_later_histories_keep_every_promise(first, quiet_simulator):
    tally = simulate(range(first, first + PART), Tally())
    assert tally.histories == PART
    assert tally.broken == {}
    assert tally.happened["reports"] > PART
