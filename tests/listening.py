"""A listener on loopback for tests: real sockets, SQLite, a temporary folder."""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import SimpleNamespace

import sqlalchemy as sa

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.network.listener import Listener
from scp_node.receive import Receiver
from scp_node.settings import load_settings
from scp_node.spool import Spool

SETTINGS = """
[node]
ae_title = "NODULE_NODE"
{node}
{senders}
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
[storage]
folder = "data"
min_free_mib = 0
min_free_percent = 0.0
{storage}
[network]
database_timeout_s = 1.0
{network}
"""
SENDER = '[[senders]]\nae_title = "SENDER"'


def settings_for(folder, *, node="", senders=SENDER, storage="", network=""):
    path = folder / "node.toml"
    path.write_text(SETTINGS.format(node=node, senders=senders, storage=storage, network=network))
    return load_settings(path)


@contextmanager
def listening(folder, *, receiver=None, spool=None, **sections):
    """A running node's listener; gives its port, its parts and ways to look at its ledger."""
    settings = settings_for(folder, **sections)
    settings.storage.folder.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    engine = make_engine(settings.database_url, busy_timeout_s=settings.network.database_timeout_s)
    spool = spool or Spool(settings.storage.folder)
    spool.prepare()
    arrivals = Arrivals(engine, keeps_connection=True)  # as the listener's process does
    receiver = receiver or Receiver(
        spool,
        arrivals,
        SystemClock(),
        keep_other_objects=settings.storage.other_objects == "keep",
        max_object_bytes=settings.network.max_object_mib * 1024 * 1024,
    )
    listener = Listener(settings, receiver, arrivals, SystemClock(), port=0)
    listener.start()

    def rows(table: sa.Table):
        with engine.connect() as connection:
            return connection.execute(sa.select(table)).all()

    def events(at_least: int = 0):
        """The events, waiting a little for those that are noted after the answer."""
        deadline = time.monotonic() + 5
        while len(found := rows(tables.event)) < at_least and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    try:
        yield SimpleNamespace(
            port=listener.port,
            listener=listener,
            receiver=receiver,
            spool=spool,
            arrivals=arrivals,
            engine=engine,
            settings=settings,
            folder=settings.storage.folder,
            rows=rows,
            instances=lambda: rows(tables.instance),
            studies=lambda: rows(tables.study),
            events=events,
        )
    finally:
        listener.stop()
        engine.dispose()
