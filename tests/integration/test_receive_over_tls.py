"""DICOM over TLS: its own port, both sides with a certificate, and a plain sentence for every refusal."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pynetdicom import AE, build_context, evt

from scp_node.network.library import socket_of
from scp_node.network.sender import DicomArchive
from scp_node.settings import Destination
from scp_node.tls import ClientContext, RememberingSocket, client_context
from tests.builders import ChestSeries, as_bytes
from tests.certificates import authority
from tests.integration.test_receive_admission import ask
from tests.integration.test_receive_guard import request
from tests.listening import listening

VERIFICATION = "1.2.840.10008.1.1"
DCMTK = shutil.which("storescu")


def tls_section(identity, more="") -> str:
    files = f'certificate = "{identity.certificate}"\nkey = "{identity.key}"\nca = "{identity.authorities}"'
    return f"[tls]\nport = 2762\n{files}\n{more}\n"


@pytest.fixture
def site(tmp_path):
    ours = authority(tmp_path)
    return SimpleNamespace(folder=tmp_path, authority=ours, node=ours.identity("node"), ct=ours.identity("ct"))


@pytest.fixture(params=["guard", "stock"])
def guard(request):
    return f"guard = {'true' if request.param == 'guard' else 'false'}\nacse_timeout_s = 20.0"


def sender(more="tls = true") -> str:
    return f'[[senders]]\nae_title = "SENDER"\n{more}\n'


def ask_tls(port, identity, *, calling="SENDER", name="localhost"):
    """Ask over TLS; ``None`` when accepted, else the rejection or why there was no handshake."""
    context = client_context(identity) if identity is not None else bare_context()
    assert isinstance(context, ClientContext)
    ae = AE(ae_title=calling)
    ae.acse_timeout = 20
    sockets = []
    opened = ae.associate(
        "127.0.0.1",
        port,
        [build_context(VERIFICATION)],
        ae_title="NODULE_NODE",
        tls_args=(context, name),
        evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: sockets.append(socket_of(event)))],
    )
    if opened.is_established:
        assert opened.send_c_echo().Status == 0
        opened.release()
        return None
    for left_open in sockets:
        left_open.close()
    answer = opened.acceptor.primitive
    if opened.is_rejected:
        return (answer.result, answer.result_source, answer.diagnostic)
    return context.failure or "no answer"


def bare_context():
    """A client without a certificate, who trusts everybody."""
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = RememberingSocket
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_closed(port) -> bool:
    """Ask without TLS; whether there is no answer but the end."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(60)
        peer.sendall(request())
        try:
            answer = peer.recv(100)
        except ConnectionError:
            return True
        return answer[:1] != b"\x02"


def logged(capsys, text) -> bool:
    """Wait for a line in the log."""
    seen, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        seen += capsys.readouterr().out
        if text in seen:
            return True
        time.sleep(0.05)
    print(seen)
    return False


def test_a_sender_with_a_certificate_is_served_on_the_tls_port(site, guard):
    with listening(site.folder, senders=sender() + tls_section(site.node), network=guard) as node:
        assert ask_tls(node.listener.tls_port, site.ct) is None


def test_with_tls_true_the_plain_port_is_refused_and_says_so(site):
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        assert ask(node.port) == (1, 1, 3)
        assert "SENDER may store over TLS only. Send to tls.port" in node.events(1)[0].text


def test_with_tls_false_the_tls_port_is_refused_and_says_so(site):
    with listening(site.folder, senders=sender("tls = false") + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, site.ct) == (1, 1, 3)
        assert "SENDER may store without TLS only. Send to node.port" in node.events(1)[0].text
        assert ask(node.port) is None


def test_by_default_a_sender_may_use_either_port(site):
    with listening(site.folder, senders=sender("") + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, site.ct) is None
        assert ask(node.port) is None


def test_the_plain_port_can_be_closed(site):
    with listening(site.folder, senders=sender() + tls_section(site.node, "plain = false")) as node:
        assert node.port == node.listener.tls_port
        assert is_closed(node.port)
        assert ask_tls(node.port, site.ct) is None


def test_a_certificate_for_another_name_is_rejected(site):
    named = sender('tls = true\ntls_name = "ct.example"')
    with listening(site.folder, senders=named + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, site.ct) == (1, 1, 3)
        assert (
            "The certificate of SENDER is for localhost, 127.0.0.1, not for ct.example." in node.events(1)[0].text
        )
        right = site.authority.identity("right", names=("ct.example",))
        assert ask_tls(node.listener.tls_port, right) is None


def test_a_client_without_a_certificate_gets_a_sentence_in_the_log(site, capsys):
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, None) is not None
        assert logged(capsys, "The peer showed no certificate; give it one that tls.ca has signed.")


def test_a_certificate_of_another_authority_gets_a_sentence_in_the_log(site, capsys):
    stranger = authority(site.folder, "stranger").identity("other", trusts=site.authority)
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, stranger) is not None
        assert logged(capsys, "signed by no authority that we trust; add its authority to tls.ca.")


def test_an_expired_certificate_gets_a_sentence_in_the_log(site, capsys):
    old = site.authority.identity("old", days=5, begins=-10)
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        assert ask_tls(node.listener.tls_port, old) is not None
        assert logged(capsys, "The certificate of the peer has expired; it needs a new one.")


def test_plain_dicom_on_the_tls_port_gets_a_sentence_in_the_log(site, capsys):
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        assert is_closed(node.listener.tls_port)
        assert logged(capsys, "The peer does not speak TLS; is it set to use TLS on this port?")


@pytest.mark.parametrize(("only", "spoken"), [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")])
def test_tls_1_2_and_1_3_are_spoken(site, only, spoken):
    client = client_context(site.ct)
    client.minimum_version = client.maximum_version = ssl.TLSVersion[only]
    limits = "acse_timeout_s = 120.0"
    with listening(site.folder, senders=sender() + tls_section(site.node), network=limits) as node:
        plain = socket.create_connection(("127.0.0.1", node.listener.tls_port), timeout=60)
        with client.wrap_socket(plain, server_hostname="localhost") as peer:
            peer.sendall(request())
            assert (peer.version(), peer.recv(1)) == (spoken, b"\x02")


def test_tls_1_1_is_refused(site):
    with listening(site.folder, senders=sender() + tls_section(site.node)) as node:
        old = bare_context()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", node.listener.tls_port)) as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain)


def test_silent_peers_on_the_tls_port_keep_nobody_out(site, guard):
    with (
        listening(site.folder, senders=sender() + tls_section(site.node), network=guard) as node,
        ExitStack() as held,
    ):
        for number in range(20):
            peer = held.enter_context(socket.create_connection(("127.0.0.1", node.listener.tls_port)))
            if number % 2:
                peer.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
        assert ask_tls(node.listener.tls_port, site.ct) is None


def test_images_arrive_over_tls_in_full(site, guard):
    series = ChestSeries(slices=3, rows=64, columns=64)
    with listening(site.folder, senders=sender() + tls_section(site.node), network=guard) as node:
        place = Destination(
            name="us", ae_title="NODULE_NODE", host="localhost", port=node.listener.tls_port, tls=True
        )
        tls = node.settings.tls.model_copy(
            update={"certificate": str(site.ct.certificate), "key": str(site.ct.key)}
        )
        archive = DicomArchive(place, "SENDER", node.settings.network, tls)
        for dataset in series.datasets():
            answer = archive.store(as_bytes(dataset))
            assert answer.kind == "delivered", answer
        assert len(node.instances()) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tls_name": "pacs.example"}, "The certificate of the peer is for another name"),
        ({"tls_ca": "stranger.pem"}, "signed by no authority that we trust"),
    ],
)
def test_a_destination_with_a_wrong_certificate_gets_a_sentence(site, change, sentence):
    authority(site.folder, "stranger")
    change = {key: str(site.folder / value) if key == "tls_ca" else value for key, value in change.items()}
    with listening(site.folder, senders=sender("") + tls_section(site.node)) as node:
        place = Destination(
            name="us", ae_title="NODULE_NODE", host="localhost", port=node.listener.tls_port, tls=True, **change
        )
        answer = DicomArchive(place, "SENDER", node.settings.network, node.settings.tls).echo()
        assert answer.kind == "retry"
        assert sentence in answer.text


def test_a_destination_over_tls_without_our_certificate_says_what_to_name(site):
    with listening(site.folder) as node:
        place = Destination(name="pacs", ae_title="PACS", host="localhost", port=1, tls=True)
        answer = DicomArchive(place, "SENDER", node.settings.network, node.settings.tls).echo()
        assert answer.text == (
            "pacs is reached over TLS, and [tls] does not name certificate, key and ca. Name them there."
        )


def test_a_key_that_does_not_match_stops_the_start_with_a_sentence(site):
    mixed = replace(site.node, key=site.ct.key)
    with (
        pytest.raises(OSError, match="does not belong to the certificate"),
        listening(site.folder, senders=sender() + tls_section(mixed)),
    ):
        pass


@pytest.mark.skipif(DCMTK is None, reason="dcmtk is not installed")
def test_dcmtk_stores_over_mutual_tls(site, guard):
    assert DCMTK is not None
    files = []
    for number, dataset in enumerate(ChestSeries(slices=3, rows=64, columns=64).datasets()):
        files.append(site.folder / f"{number}.dcm")
        files[-1].write_bytes(as_bytes(dataset))
    with listening(site.folder, senders=sender() + tls_section(site.node), network=guard) as node:
        command = [
            DCMTK,
            "-aet",
            "SENDER",
            "-aec",
            "NODULE_NODE",
            "+tls",
            str(site.ct.key),
            str(site.ct.certificate),
        ]
        command += ["+cf", str(site.authority.file), "localhost", str(node.listener.tls_port), *map(str, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert len(node.instances()) == 3
