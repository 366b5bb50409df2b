"""What the commands show was true at one moment."""

from __future__ import annotations

import sqlalchemy as sa

from scp_node.ledger import outbox, overview, tables
from scp_node.ledger.engine import make_engine
from scp_node.ledger.figures import read_figures
from tests.ledgers import add_study, empty_ledger, new_report


def test_a_report_filed_while_the_overview_is_read_does_not_appear_without_its_delivery(tmp_path):
    filed = []

    def file_one_behind_the_deliveries(_connection, _cursor, statement, *_):
        if "FROM nn_delivery" in statement and not filed:
            filed.append(statement)
            other = make_engine(f"sqlite:///{tmp_path / 'node.sqlite'}")
            with other.begin() as connection:
                outbox.put(connection, [new_report()], now=200.0)
            other.dispose()

    with empty_ledger(tmp_path) as engine:
        add_study(engine)
        sa.event.listen(engine, "after_cursor_execute", file_one_behind_the_deliveries)
        (before,) = overview.studies(engine)
        (after,) = overview.studies(engine)
    assert filed
    assert before.reports == ()
    assert [len(report.deliveries) for report in after.reports] == [1]


def test_the_size_of_the_database_is_known_and_grows_with_it(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        before = read_figures(engine).database_bytes
        with engine.begin() as connection:
            row = {"at": 1.0, "kind": "failed", "text": "x" * 200}
            connection.execute(tables.event.insert(), [row] * 2000)
        assert read_figures(engine).database_bytes >= before + 2000 * 200
