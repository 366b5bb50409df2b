"""The first stored outcome of a step counts; a slot is held by one boot until its lease ends; both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.ledger.engine import patiently
from scp_node.ledger.steps import Leases, Steps
from scp_node.ledger.tables import event
from tests.ledgers import empty_ledger


class StoppedClock:
    def now(self) -> float:
        return 100.0


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


@pytest.fixture
def steps(engine):
    return Steps(engine, executor="worker-0", clock=StoppedClock(), retry_s=0.0)


def test_a_step_with_a_stored_outcome_is_not_done_again(steps):
    assert steps.once("a", lambda: {"n": 1}) == {"n": 1}
    assert steps.once("a", lambda: pytest.fail("done twice")) == {"n": 1}
    assert steps.starts("a") == 2


def test_who_loses_the_race_takes_the_stored_outcome(engine, steps):
    def overtaken():
        Steps(engine, executor="worker-1", clock=StoppedClock()).once("a", lambda: {"by": 1})
        return {"by": 0}

    assert steps.once("a", overtaken) == {"by": 1}


def test_a_step_that_fails_leaves_its_start_and_no_outcome(steps):
    with pytest.raises(RuntimeError, match="broken"):
        steps.once("a", lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    assert steps.outcome("a") is None
    assert steps.starts("a") == 1


def test_an_outcome_and_its_rows_are_stored_together_or_not_at_all(engine, steps):
    def rows(connection, value):
        connection.execute(event.insert().values(at=1.0, kind="x", text=value["text"]))
        raise RuntimeError("no row")

    with pytest.raises(RuntimeError, match="no row"):
        steps.once("a", lambda: {"text": "t"}, rows)
    assert steps.outcome("a") is None
    with engine.connect() as connection:
        assert connection.execute(sa.select(event)).all() == []


def gone(times):
    left = [sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))] * times

    def work():
        if left:
            raise left.pop()
        return "here"

    return work


def test_a_database_that_comes_back_in_time_is_waited_for():
    pauses = []
    assert patiently(gone(5), limit_s=10.0, sleep=pauses.append) == "here"
    assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0]


def test_a_database_that_stays_away_raises_after_the_limit():
    pauses = []
    with pytest.raises(sa.exc.OperationalError):
        patiently(gone(1000), limit_s=120.0, sleep=pauses.append)
    assert 120.0 <= sum(pauses) < 123.0


def test_a_slot_belongs_to_one_boot_until_its_lease_runs_out(engine):
    leases = Leases(engine)
    assert leases.take("slot", "a", now=100.0, lease_s=10.0)
    assert not leases.take("slot", "b", now=110.0, lease_s=10.0)
    assert leases.holder("slot") == ("a", 110.0)
    assert leases.take("slot", "b", now=110.1, lease_s=10.0)
    assert not leases.renew("slot", "a", now=111.0, lease_s=10.0)
    assert leases.renew("slot", "b", now=111.0, lease_s=10.0)


def test_a_released_slot_is_free_at_once_and_only_by_its_holder(engine):
    leases = Leases(engine)
    leases.take("slot", "a", now=100.0, lease_s=10.0)
    leases.release("slot", "b")
    assert leases.live(now=100.0) == {"slot"}
    leases.release("slot", "a")
    assert leases.live(now=100.0) == frozenset()


def test_leases_that_ran_out_are_not_live(engine):
    leases = Leases(engine)
    leases.take("dead", "a", now=100.0, lease_s=10.0)
    leases.take("alive", "b", now=105.0, lease_s=10.0)
    assert leases.live(now=112.0) == {"alive"}
