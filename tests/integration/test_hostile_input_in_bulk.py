"""20,000 inputs made from real ones by mutation; ``make fuzz`` runs a million. See ``tests/fuzz``."""

from __future__ import annotations

import pytest

from tests.fuzz.run import FLAT, SHARES, fuzz

EXECUTIONS = 20_000


@pytest.mark.timeout(1800)  # it takes 20 s of CPU time; a slow or busy machine may take its time
def test_twenty_thousand_damaged_inputs_crash_nothing_and_fill_no_memory(monkeypatch):
    monkeypatch.delenv("NODULE_NODE_TEST_DATA", raising=False)
    tallies = fuzz(EXECUTIONS, seed=1, ledger=None, say=lambda _text: None)
    assert [f"{name}: {crash}" for name, one in tallies.items() for crash in one.crashes] == []
    assert sum(one.executions for one in tallies.values()) >= EXECUTIONS - len(SHARES)
    assert {name: one.growth for name, one in tallies.items() if one.growth > FLAT} == {}
