"""DICOM over TLS: contexts by PS3.15 Annex B.12 (BCP 195), and what is wrong with a certificate, in a sentence.

Both sides show a certificate, and trust those that the site's authorities signed. Standard library only.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CIPHERS: Final = ":".join(  # TLS 1.2; those of 1.3 are all of this kind. PS3.15 B.12 and B.13, RFC 9325 section 4.2
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "DHE-RSA-AES256-GCM-SHA384",
        "DHE-RSA-AES128-GCM-SHA256",
    )
)
SOON_S: Final = 30 * 86400.0
_EXPIRED, _NOT_YET = (10,), (9,)  # X509_V_ERR_*, openssl-verification-options(1)
_UNKNOWN_AUTHORITY, _WRONG_NAME = (2, 18, 19, 20, 21), (62, 64)


@dataclass(frozen=True, slots=True)
class Identity:
    """The files that TLS needs: our certificate (with its chain), its key, and the authorities that we trust."""

    certificate: Path
    key: Path
    authorities: Path


@dataclass(frozen=True, slots=True)
class Unusable:
    """These files cannot be used for TLS: ``text`` says which and why, ``action`` what to do."""

    text: str
    action: str


@dataclass(frozen=True, slots=True)
class Expiring(Unusable):
    """These files can be used still, but not for long."""


class ClientContext(ssl.SSLContext):
    """A context for one outgoing connection that remembers why its handshake failed."""

    failure: str = ""


class RememberingSocket(ssl.SSLSocket):
    """A client's socket that tells its :class:`ClientContext` what went wrong, and closes itself then."""

    def connect(self, address: Any) -> None:
        """Connect and shake hands."""
        try:
            super().connect(address)
        except OSError as fault:
            if isinstance(self.context, ClientContext) and isinstance(fault, ssl.SSLError):
                self.context.failure = why_no_handshake(fault)
            self.close()
            raise


def server_context(identity: Identity) -> ssl.SSLContext | Unusable:
    """Make the context of the listener: TLS 1.2 or 1.3, and every peer shows a certificate."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), identity)


def client_context(identity: Identity) -> ClientContext | Unusable:
    """Make the context for one connection to a destination; its certificate has to be for the name we ask for."""
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = RememberingSocket
    loaded = _loaded(context, identity)
    return loaded if isinstance(loaded, Unusable) else context


def _loaded(context: ssl.SSLContext, identity: Identity) -> ssl.SSLContext | Unusable:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(identity.certificate, identity.key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as fault:
        return _unusable_pair(identity, fault)
    try:
        context.load_verify_locations(cafile=identity.authorities)
    except (OSError, ssl.SSLError) as fault:
        what = fault.strerror if not isinstance(fault, ssl.SSLError) else "it holds no certificate in PEM form"
        action = "Give the certificates of the authorities that sign the peers' certificates, in PEM form."
        return Unusable(f"tls.ca: {identity.authorities} cannot be used: {what}.", action)
    return context


def _no_password() -> str:
    raise ValueError("the key is locked with a password")


def _unusable_pair(identity: Identity, fault: Exception) -> Unusable:
    certificate, key = identity.certificate, identity.key
    for name, path in (("tls.certificate", certificate), ("tls.key", key)):
        try:
            path.open("rb").close()
        except OSError as missing:
            return Unusable(
                f"{name}: {path} cannot be read: {missing.strerror}.", "Correct the path or its permissions."
            )
    if isinstance(fault, ssl.SSLError) and fault.reason == "KEY_VALUES_MISMATCH":
        text = f"tls.key: {key} does not belong to the certificate {certificate}."
        return Unusable(text, "Give the key with which this certificate was requested.")
    if isinstance(fault, ValueError):
        return Unusable(
            f"tls.key: {key} is locked with a password.", "Give a key without one, readable by us alone."
        )
    text = f"tls.certificate and tls.key: {certificate} and {key} are not a certificate and a key in PEM form."
    return Unusable(text, "Convert them: openssl x509 -inform der -in FILE -out FILE.pem; openssl pkey ...")


def check_identity(identity: Identity, now: float | None = None) -> Iterator[Unusable]:
    """Say what is wrong with our own certificate, or soon will be; nothing when all is well.

    It is judged as a peer would judge it: by a handshake in memory with somebody who trusts exactly this file.
    """
    server = server_context(identity)
    if isinstance(server, Unusable):
        yield server
        return
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cafile=identity.certificate)
    server.verify_mode = ssl.CERT_NONE
    shown = _handshake_in_memory(client, server)
    action = "Ask your authority for a new one, and restart the node."
    if isinstance(shown, ssl.SSLCertVerificationError):
        if shown.verify_code in _EXPIRED:
            yield Unusable(f"tls.certificate: {identity.certificate} has expired.", action)
        elif shown.verify_code in _NOT_YET:
            yield Unusable(f"tls.certificate: {identity.certificate} is not valid yet; is the clock right?", action)
        else:
            yield Unusable(f"tls.certificate: {identity.certificate}: {shown.verify_message}.", action)
        return
    left = ssl.cert_time_to_seconds(str(shown["notAfter"])) - (time.time() if now is None else now)
    if left < SOON_S:
        yield Expiring(
            f"tls.certificate: {identity.certificate} expires in {max(int(left / 86400), 0)} days.", action
        )


def _handshake_in_memory(
    client: ssl.SSLContext, server: ssl.SSLContext
) -> dict[str, Any] | ssl.SSLCertVerificationError:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    us = client.wrap_bio(to_client, to_server)
    them = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (us, them):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as fault:
                return fault
        if us.version() is not None and us.getpeercert():
            break
    return dict(us.getpeercert() or {})


def why_no_handshake(fault: Exception) -> str:
    """Say in one sentence why a TLS handshake failed, and what to change."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return _why_not_trusted(fault)
    reason = getattr(fault, "reason", None) or ""
    for part, text in _REASONS:
        if part in reason:
            return text
    if isinstance(fault, ssl.SSLEOFError | ConnectionError):
        return "The peer closed the connection in mid handshake; its log says why."
    if isinstance(fault, TimeoutError):
        return "The peer did not finish the handshake in time."
    return f"The handshake failed ({reason or type(fault).__name__})."


def _why_not_trusted(fault: ssl.SSLCertVerificationError) -> str:
    if fault.verify_code in _EXPIRED:
        return "The certificate of the peer has expired; it needs a new one."
    if fault.verify_code in _NOT_YET:
        return "The certificate of the peer is not valid yet; compare the clocks of both machines."
    if fault.verify_code in _UNKNOWN_AUTHORITY:
        return "The certificate of the peer is signed by no authority that we trust; add its authority to tls.ca."
    if fault.verify_code in _WRONG_NAME:
        return "The certificate of the peer is for another name; correct host or tls_name of the destination."
    return f"The certificate of the peer is refused: {fault.verify_message}."


_REASONS: Final = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "The peer showed no certificate; give it one that tls.ca has signed."),
    ("CERTIFICATE_REQUIRED", "The peer wants a certificate of ours, and was shown none; set tls.certificate."),
    ("ALERT_UNKNOWN_CA", "The peer does not trust the authority of our certificate; it has to be entered there."),
    ("CERTIFICATE_EXPIRED", "The peer says that our certificate has expired; renew tls.certificate."),
    ("ALERT_BAD_CERTIFICATE", "The peer refuses our certificate; its log says why."),
    ("CERTIFICATE_UNKNOWN", "The peer refuses our certificate; its log says why."),
    ("ACCESS_DENIED", "The peer refuses our certificate; its log says why."),
    ("UNSUPPORTED_PROTOCOL", "The peer offers TLS 1.1 or older only; it has to speak TLS 1.2 or 1.3."),
    ("VERSION_TOO_LOW", "The peer offers TLS 1.1 or older only; it has to speak TLS 1.2 or 1.3."),
    ("ALERT_PROTOCOL_VERSION", "The peer refuses TLS 1.2 and 1.3; it has to speak one of them."),
    ("NO_SHARED_CIPHER", "There is no cipher suite in common; the peer has to offer one of BCP 195 (PS3.15 B.12)."),
    ("HANDSHAKE_FAILURE", "There is no cipher suite or certificate type in common (PS3.15 B.12)."),
    ("WRONG_VERSION_NUMBER", "The peer does not speak TLS; is it set to use TLS on this port?"),
    ("HTTP_REQUEST", "The peer does not speak TLS; is it set to use TLS on this port?"),
    ("RECORD_LAYER_FAILURE", "The peer does not speak TLS; is it set to use TLS on this port?"),
    ("UNEXPECTED_EOF", "The peer closed the connection in mid handshake; its log says why."),
)


def certificate_is_for(name: str, certificate: dict[str, Any]) -> bool:
    """Whether a checked certificate names this host or device: in its alternative names, else as common name."""
    return any(_same_name(name, known) for known in _names(certificate))


def names_of(certificate: dict[str, Any]) -> str:
    """Give the names in a certificate, for a sentence."""
    return ", ".join(_names(certificate)) or "(no name)"


def _names(certificate: dict[str, Any]) -> Iterable[str]:
    listed = [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "IP Address"}]
    subject = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return listed or subject


def _same_name(wanted: str, known: str) -> bool:
    try:
        return ipaddress.ip_address(wanted) == ipaddress.ip_address(known)
    except ValueError:
        return wanted.rstrip(".").casefold() == known.rstrip(".").casefold()
