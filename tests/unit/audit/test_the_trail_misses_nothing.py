"""The audit trail follows the ledger to a file and a syslog server; an outage delays messages, it loses none."""

from __future__ import annotations

import socket
import ssl
import threading
from xml.etree import ElementTree as ET

import pytest
import sqlalchemy as sa

from scp_node.audit.trail import Trail
from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.settings import load_settings
from tests.certificates import authority
from tests.ledgers import add_image, add_study, empty_ledger, new_report
from tests.unit.audit.schema import faults

SETTINGS = """
[storage]
folder = "."
[report]
institution = "Hospital"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.9"
port = 104
[audit]
file = "{file}"
syslog = "{syslog}"
"""
EVENT = ("EventID", "EventTypeCode")
KEPT_OUT = "STRANGER at 10.0.0.66 called NODULE_NODE and was rejected (1/1/3). The calling AE title is not known."


@pytest.fixture
def ledger(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as ledger:
        yield ledger


def trail(folder, ledger, *, file: str = "audit.log", syslog: str = "", tls: str = "") -> Trail:
    (folder / "node.toml").write_text(SETTINGS.format(file=file, syslog=syslog) + tls)
    return Trail(load_settings(folder / "node.toml"), ledger, SystemClock())


def event(ledger, kind: str, text: str = "x", **values) -> None:
    with ledger.begin() as connection:
        row = {"at": 100.0, "study_uid": None, "kind": kind, "code": None, "text": text}
        connection.execute(tables.event.insert().values(row | values))


def codes(lines) -> list[str]:
    """Event and type of each message, which all keep the schema."""
    found = []
    for line in lines:
        assert faults(line) == []
        root = ET.fromstring(line).find("EventIdentification")
        found.append(":".join(root.find(name).get("csd-code") for name in EVENT if root.find(name) is not None))
    return found


def test_every_kind_of_event_becomes_its_message(tmp_path, ledger):
    from scp_node.ledger import outbox

    event(ledger, "node_started")
    event(ledger, "rejected_association", KEPT_OUT, code="1/1/3")
    event(ledger, "rejected_association", KEPT_OUT, code="2/3/2")
    event(ledger, "refused", "From X (10.0.0.5): instance 1.2 refused with 0x0124. No.", code="NOT_AUTHORISED")
    event(ledger, "refused", "From X (10.0.0.5): instance 1.2 refused with 0xA700. No room.", code="NO_ROOM")
    event(ledger, "tls_refused", "10.0.0.67 could not open a connection over TLS. Its certificate has expired.")
    event(ledger, "settings_changed", "Settings were read again.")
    event(ledger, "file_indexed", study_uid="1.2")
    add_study(ledger, images=3)
    with ledger.begin() as connection:
        outbox.put(connection, [new_report()], now=100.0)
        connection.execute(tables.delivery.update().values(state="delivered", state_changed_at=160.0))
    event(ledger, "delivery_delivered", "Report to pacs.", study_uid="1.2", at=160.0)
    event(ledger, "node_stopped")
    trail(tmp_path, ledger).write(None)
    lines = (tmp_path / "audit.log").read_bytes().splitlines()
    assert codes(lines) == [
        "110104",
        "110100:110120",
        "110113:110126",
        "110113:110132",
        "110113:110126",
        "110113:110131",
        "110107",
        "110106",
        "110100:110121",
    ]
    alert = ET.fromstring(lines[2]).findall("ActiveParticipant")[1]
    assert (alert.get("UserID"), alert.get("NetworkAccessPointID")) == ("STRANGER", "10.0.0.66")
    assert b'NetworkAccessPointID="10.0.0.67"' in lines[4]
    assert b'UserID="dicom://10.0.0.9:104/PACS"' in lines[7]


def test_each_instance_is_told_once_over_many_looks_and_restarts(tmp_path, ledger):
    add_study(ledger, images=2)
    for turn in range(3):
        trail(tmp_path, ledger).write(None)
        add_image(ledger, "1.2", f"1.2.9.{turn}")
    trail(tmp_path, ledger).write(None)
    counts = [
        int(ET.fromstring(line).find(".//SOPClass").get("NumberOfInstances"))
        for line in (tmp_path / "audit.log").read_bytes().splitlines()
    ]
    assert counts == [2, 1, 1, 1]


def test_our_own_report_that_comes_back_is_no_transfer(tmp_path, ledger):
    add_study(ledger, images=0)
    add_image(ledger, "1.2", "9.1", purpose="own")
    trail(tmp_path, ledger).write(None)
    assert not (tmp_path / "audit.log").exists()


def test_the_file_is_for_our_user_alone_and_is_made_anew_after_a_rotation(tmp_path, ledger):
    event(ledger, "node_started")
    told = trail(tmp_path, ledger)
    told.write(None)
    file = tmp_path / "audit.log"
    assert file.stat().st_mode & 0o777 == 0o600
    file.rename(tmp_path / "audit.log.1")
    event(ledger, "node_stopped")
    told.write(None)
    assert codes(file.read_bytes().splitlines()) == ["110100:110121"]


def test_messages_go_by_udp_in_rfc_5424_frames(tmp_path, ledger):
    event(ledger, "node_started")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)
        trail(tmp_path, ledger, file="", syslog=f"udp://127.0.0.1:{server.getsockname()[1]}").write(None)
        header, message = server.recv(65536).split(b"\xef\xbb\xbf")
    assert header.startswith(b"<85>1 ")
    version, _, host, program, process, kind, data, end = header.split(b" ")
    assert (version, program, kind, data, end) == (b"<85>1", b"nodule-node", b"DICOM+RFC3881", b"-", b"")
    assert host
    assert process.isdigit()
    assert codes([message]) == ["110100:110120"]


class StreamServer(threading.Thread):
    """A syslog server that takes one connection."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self.context = context
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(60)
        self.port = self.server.getsockname()[1]
        self.received = b""

    def run(self) -> None:
        peer, _ = self.server.accept()
        peer.settimeout(60)
        plain = self.context is None
        with self.server, peer if plain else self.context.wrap_socket(peer, server_side=True) as stream:
            while chunk := stream.recv(65536):
                self.received += chunk

    def messages(self) -> list[bytes]:
        """The messages, by their counted frames."""
        self.join(60)
        found, rest = [], self.received
        while rest:
            length, _, rest = rest.partition(b" ")
            found.append(rest[: int(length)].split(b"\xef\xbb\xbf")[1])
            rest = rest[int(length) :]
        return found


def test_messages_go_by_tcp_counted(tmp_path, ledger):
    event(ledger, "node_started")
    event(ledger, "node_stopped")
    server = StreamServer()
    server.start()
    trail(tmp_path, ledger, file="", syslog=f"tcp://127.0.0.1:{server.port}").write(None)
    assert codes(server.messages()) == ["110100:110120", "110100:110121"]


def test_an_audit_server_that_is_away_gets_everything_when_it_is_back_and_the_file_does_not_wait(tmp_path, ledger):
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        port = closed_at_once.getsockname()[1]
    told = trail(tmp_path, ledger, syslog=f"tcp://127.0.0.1:{port}")
    event(ledger, "node_started")
    told.write(None)
    event(ledger, "node_stopped")
    told.write(None)
    assert len((tmp_path / "audit.log").read_bytes().splitlines()) == 2
    server = StreamServer()
    server.start()
    trail(tmp_path, ledger, syslog=f"tcp://127.0.0.1:{server.port}").write(None)
    assert codes(server.messages()) == ["110100:110120", "110100:110121"]
    with ledger.connect() as connection:
        query = sa.select(tables.installation.c.value).where(tables.installation.c.key == "audit syslog")
        assert connection.execute(query).scalar_one() == "2 0"


def test_messages_go_by_tls_with_certificates_of_both_sides(tmp_path, ledger):
    site = authority(tmp_path)
    ours, theirs = site.identity("node"), site.identity("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs.certificate, theirs.key)
    context.load_verify_locations(theirs.authorities)
    event(ledger, "node_started")
    server = StreamServer(context)
    server.start()
    tls = f'[tls]\ncertificate = "{ours.certificate}"\nkey = "{ours.key}"\nca = "{ours.authorities}"\n'
    trail(tmp_path, ledger, file="", syslog=f"tls://127.0.0.1:{server.port}", tls=tls).write(None)
    assert codes(server.messages()) == ["110100:110120"]
