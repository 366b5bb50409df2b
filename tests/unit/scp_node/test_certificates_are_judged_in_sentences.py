"""What is wrong with our own certificate is said before a peer says it: by ``config check`` and ``doctor``."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace

import pytest

from scp_node.cli.config_check import sentences
from scp_node.doctor import Level, tls
from scp_node.network.admission import TlsPeer, may_call_from, tls_fault
from scp_node.settings import Sender, SettingsError
from scp_node.tls import (
    Expiring,
    Unusable,
    certificate_is_for,
    check_identity,
    client_context,
    server_context,
    why_no_handshake,
)
from tests.certificates import authority, lock
from tests.listening import settings_for


@pytest.fixture
def ours(tmp_path):
    return authority(tmp_path).identity("node")


def texts(identity, **more):
    return [fault.text for fault in check_identity(identity, **more)]


def test_a_sound_certificate_has_no_faults(ours):
    assert texts(ours) == []


def test_tls_1_1_and_weak_ciphers_are_not_offered(ours):
    context = server_context(ours)
    assert isinstance(context, ssl.SSLContext)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    for cipher in context.get_ciphers():
        assert "GCM" in cipher["name"] or "CHACHA20" in cipher["name"], cipher["name"]
        assert "DHE" in cipher["name"] or cipher["name"].startswith("TLS_"), cipher["name"]


def test_an_expired_certificate_is_named(tmp_path):
    old = authority(tmp_path).identity("node", days=10, begins=-20)
    assert texts(old) == [f"tls.certificate: {old.certificate} has expired."]


def test_a_certificate_of_tomorrow_asks_for_the_clock(tmp_path):
    early = authority(tmp_path).identity("node", begins=2)
    assert texts(early) == [f"tls.certificate: {early.certificate} is not valid yet; is the clock right?"]


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path):
    short = authority(tmp_path).identity("node", days=21, begins=-1)
    (fault,) = check_identity(short)
    assert isinstance(fault, Expiring)
    assert "expires in 19 days" in fault.text or "expires in 20 days" in fault.text


def test_the_day_is_counted_from_the_clock_that_is_given(ours):
    in_350_days = time.time() + 350 * 86400
    (fault,) = check_identity(ours, now=in_350_days)
    assert "expires in 1" in fault.text


def test_a_key_of_another_certificate_is_named(tmp_path, ours):
    other = authority(tmp_path, "other").identity("stranger")
    mixed = replace(ours, key=other.key)
    assert texts(mixed) == [f"tls.key: {other.key} does not belong to the certificate {ours.certificate}."]


def test_a_key_with_a_password_is_named_instead_of_asking_for_it(ours):
    lock(ours.key)
    assert texts(ours) == [f"tls.key: {ours.key} is locked with a password."]


@pytest.mark.parametrize(
    ("field", "key"), [("certificate", "tls.certificate"), ("key", "tls.key"), ("authorities", "tls.ca")]
)
def test_a_missing_file_is_named_by_its_key(tmp_path, ours, field, key):
    missing = replace(ours, **{field: tmp_path / "nothing.pem"})
    (text,) = texts(missing)
    assert text.startswith(f"{key}: {tmp_path / 'nothing.pem'} cannot be")
    assert "No such file or directory" in text


def test_files_that_are_no_pem_are_named(tmp_path, ours):
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"\x30\x82 not PEM")
    assert "are not a certificate and a key in PEM form" in texts(replace(ours, certificate=junk))[0]
    assert texts(replace(ours, authorities=junk)) == [
        f"tls.ca: {junk} cannot be used: it holds no certificate in PEM form."
    ]
    assert isinstance(client_context(replace(ours, authorities=junk)), Unusable)


def site(tmp_path, identity, more=""):
    files = f'certificate = "{identity.certificate}"\nkey = "{identity.key}"\nca = "{identity.authorities}"'
    return settings_for(tmp_path, senders=f"[tls]\nport = 2762\n{files}\n{more}")


def test_doctor_and_config_check_say_the_same(tmp_path):
    old = authority(tmp_path).identity("node", days=10, begins=-20)
    settings = site(tmp_path, old)
    (line,) = tls(settings)
    assert (line.level, line.text) == (Level.FAIL, f"tls.certificate: {old.certificate} has expired.")
    assert f"Warning: {line.text} {line.action}" in list(sentences(settings))


def test_config_check_says_who_comes_over_tls(tmp_path, ours):
    senders = '[[senders]]\nae_title = "CT"\ntls = true\ntls_name = "ct.example"\n'
    senders += '[[senders]]\nae_title = "OLD"\ntls = false'
    said = list(sentences(site(tmp_path, ours, senders)))
    assert "It takes DICOM over TLS 1.2 and 1.3 on port 2762." in said
    assert "'CT' may store images, from any host, over TLS only with a certificate for ct.example." in said
    assert "'OLD' may store images, from any host, without TLS only." in said
    (line,) = tls(site(tmp_path, ours))
    assert line.level is Level.OK


def test_a_tls_port_without_files_is_a_fault_of_the_settings(tmp_path):
    with pytest.raises(SettingsError, match="with a port, certificate, key, ca must be given too"):
        settings_for(tmp_path, senders="[tls]\nport = 2762")


def test_no_port_at_all_is_a_fault_of_the_settings(tmp_path):
    with pytest.raises(SettingsError, match="nobody could connect otherwise"):
        settings_for(tmp_path, senders="[tls]\nplain = false")


def test_a_sender_that_can_never_store_is_warned_about(tmp_path):
    settings = settings_for(tmp_path, senders='[[senders]]\nae_title = "CT"\ntls = true')
    assert "'CT' may store over TLS only, and tls.port is 0: it cannot store at all." in settings.warnings()


def test_names_in_a_certificate_are_compared_as_names_and_as_addresses():
    shown = {"subjectAltName": (("DNS", "CT.Example"), ("IP Address", "10.0.0.5")), "subject": ()}
    assert certificate_is_for("ct.example", shown)
    assert certificate_is_for("10.0.0.5", shown)
    assert not certificate_is_for("other.example", shown)
    named = {"subject": ((("commonName", "CT1"),),)}
    assert certificate_is_for("ct1", named)


def test_a_certificate_for_another_name_is_said_so():
    sender = Sender(ae_title="CT", tls=True, tls_name="ct.example")
    why, what = tls_fault(sender, TlsPeer({"subject": ((("commonName", "mr.example"),),)}))
    assert why == "The certificate of CT is for mr.example, not for ct.example."
    assert what.startswith("Correct tls_name of [[senders]] CT")
    assert tls_fault(sender, TlsPeer({"subject": ((("commonName", "ct.example"),),)})) is None


@pytest.mark.parametrize(
    ("host", "peer", "allowed"),
    [
        ("", "192.0.2.9", True),
        ("192.0.2.9", "192.0.2.9", True),
        ("192.0.2.8", "192.0.2.9", False),
        ("192.0.2.0/24", "192.0.2.9", True),
        ("192.0.2.0/24", "192.0.3.9", False),
        ("192.0.2.0/24", "::ffff:192.0.2.9", True),
        ("2001:db8::/32", "2001:db8::5", True),
        ("2001:db8::/32", "192.0.2.9", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "192.0.2.9", False),
        ("no-such-host.invalid", "192.0.2.9", False),
    ],
)
def test_a_host_is_an_address_a_network_or_a_name(host, peer, allowed):
    assert may_call_from(host, peer) is allowed


def test_a_network_with_host_bits_is_a_fault_of_the_settings(tmp_path):
    with pytest.raises(SettingsError, match="a network is an address, a slash and a number of bits"):
        settings_for(tmp_path, senders='[[senders]]\nae_title = "CT"\nhost = "10.1.2.3/16"')


def test_an_unknown_failure_still_gets_a_sentence():
    assert why_no_handshake(ConnectionResetError()) == (
        "The peer closed the connection in mid handshake; its log says why."
    )
    assert why_no_handshake(TimeoutError()) == "The peer did not finish the handshake in time."
    assert why_no_handshake(OSError(5, "x")) == "The handshake failed (OSError)."
