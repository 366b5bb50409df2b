"""Every metric that the example dashboard and the alert rules name is one that the node shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.ledgers import add_study, empty_ledger, new_report

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "monitoring"
NAME = re.compile(r"\bnodule_node_[a-z_]+")

PAGE = """
import sys
from pathlib import Path
from scp_node.counters import shared_counters
from scp_node.settings import load_settings
settings = load_settings(Path(sys.argv[1]))
counters = shared_counters(settings.counters_folder)
counters.accepted()
from scp_node.clock import SystemClock
from scp_node.ledger.engine import make_engine
from scp_node.monitoring.process import Watch
sys.stdout.buffer.write(Watch(settings, make_engine(settings.database_url), SystemClock()).metrics())
"""


def names_in(text: str) -> set[str]:
    return set(NAME.findall(text))


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> set[str]:
    """The names of all samples of a node that has seen a study, a delivery and a destination."""
    from scp_node.ledger import outbox, tables

    folder = tmp_path_factory.mktemp("node")
    (folder / "node.toml").write_text('[storage]\nfolder = "."\n')
    with empty_ledger(folder) as ledger:
        add_study(ledger)
        with ledger.begin() as connection:
            outbox.put(connection, [new_report()], now=100.0)
            connection.execute(tables.delivery.update().values(state="delivered", state_changed_at=160.0))
            connection.execute(tables.destination.insert().values(name="pacs", failures=0))
            connection.execute(tables.lease.insert().values(slot="worker-0", boot="b", expires_at=100.0))
            for at, kind in ((110.0, "study_ready"), (120.0, "analysing"), (150.0, "reported")):
                row = {"at": at, "study_uid": "1.2", "kind": kind, "text": "x"}
                connection.execute(tables.event.insert().values(row))
    page = subprocess.run(
        [sys.executable, "-c", PAGE, str(folder / "node.toml")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}


def test_every_metric_of_the_dashboard_is_shown(shown):
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    used = names_in(json.dumps([target["expr"] for p in dashboard["panels"] for target in p["targets"]]))
    assert len(used) > 20
    assert used - shown == set()


def test_every_metric_of_the_alerts_is_shown_and_every_alert_says_what_to_do(shown):
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    used = names_in(" ".join(rule["expr"] for rule in rules))
    assert used - shown == set()
    assert all(rule["annotations"]["summary"] and rule["annotations"]["action"] for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8


def test_every_metric_is_on_the_dashboard(shown):
    families = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in shown}
    on_it = {re.sub(r"_(bucket|total)$", "", name) for name in names_in((FOLDER / "dashboard.json").read_text())}
    assert families - on_it == {"nodule_node_build_info", "nodule_node_listening"}
