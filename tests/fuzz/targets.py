"""What is fed with damaged input, and what must hold of it: an answer, of a known kind, and nothing else.

A target raises when something does not hold; the runner counts that as a crash, as it counts a dead process.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid
from pynetdicom.pdu import A_ASSOCIATE_RQ

from pipeline.slices import Instance, Unreadable, read_instance
from scp_node import identifiers
from scp_node.clock import SystemClock
from scp_node.identifiers import Identifiers, NotPart10, Part10, read_identifiers, split_file
from scp_node.network import messages
from scp_node.network.guard import MAX_REQUEST, Waiting, repair_titles
from scp_node.network.messages import Broken, Foreign, Messages, StoreRequest, ends_a_message, store_response
from scp_node.receive import Answer, Incoming, Receiver
from scp_node.settings import Settings, SettingsError, load_settings
from scp_node.spool import Spool
from tests.fuzz import seeds
from tests.fuzz.mutation import damaged

SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEG2000Lossless,
)
STATUSES = {answer.status for answer in Answer}
MOST_MESSAGE = 1 << 20


@dataclass(frozen=True)
class Target:
    """Prepared once in a folder of its own; ``run`` is one execution."""

    name: str
    prepare: Callable[[Path], Callable[[random.Random], None]]
    share: int
    """Of 1000 executions."""


def _seeded(inputs, run):
    return lambda rng: run(damaged(rng.choice(inputs), inputs, rng), rng)


def request(_folder):
    """A connection's first bytes: the guard's judgement, the repair of titles, the library's decoding."""
    return _seeded(seeds.requests(), _request)


def _request(data: bytes, rng: random.Random) -> None:
    waiting = Waiting(connection=None, host="", address=None, since=0.0)
    at = 0
    while at < len(data) and not waiting.fault() and not waiting.is_whole():
        step = rng.choice((1, 3, 6, 50, 1000))
        waiting.received += data[at : at + step]
        at += step
    if waiting.fault() or not waiting.is_whole():
        return
    assert len(waiting.received) <= MAX_REQUEST + 1006
    before = len(waiting.received)
    repair_titles(waiting.received)
    assert len(waiting.received) == before
    for title in (waiting.received[10:26], waiting.received[26:42]):
        assert len(waiting.received) < 42 or (title.strip() and all(0x20 <= c < 0x7F for c in title))
    pdu = A_ASSOCIATE_RQ()
    try:
        pdu.decode(bytes(waiting.received))
    except Exception:  # noqa: BLE001 - the library's reader takes whatever its decoder raises as a bad PDU
        return


def stream(_folder):
    """The P-DATA PDUs of an association: put together by us, or given back byte for byte."""
    return _seeded(seeds.conversations(), _stream)


def _stream(data: bytes, _rng: random.Random) -> None:
    received = Messages(MOST_MESSAGE)
    taken = bytearray()
    at = 0
    while at + 6 <= len(data):
        end = at + 6 + int.from_bytes(data[at + 2 : at + 6], "big")
        pdu, at = bytearray(data[at:end]), end
        if not pdu or pdu[0] != messages.P_DATA or not messages.is_whole(pdu):
            continue
        ends_a_message(pdu)
        taken += pdu
        match received.add(pdu):
            case StoreRequest() as one:
                assert len(one.dataset) <= MOST_MESSAGE
                answer = store_response(one, 0xA900, "comment " * 20)
                assert messages.is_whole(bytearray(answer))
                assert len(answer) < 512
                taken.clear()
            case Foreign(pdus):
                assert taken.endswith(pdus)
                assert pdus
                taken.clear()
            case Broken(why):
                assert why
                return
            case None:
                pass


def dataset(_folder):
    """The identifiers of a data set, and of a file."""
    return _seeded(seeds.datasets(), _dataset)


def _dataset(data: bytes, rng: random.Random) -> None:
    found = read_identifiers(data, rng.choice(SYNTAXES))
    assert isinstance(found, Identifiers | identifiers.Unreadable)
    if isinstance(found, Identifiers):
        assert max(map(len, (found.study_instance_uid, found.sop_instance_uid))) <= 2 * identifiers.MAX_UID


def file(_folder):
    """File meta information."""
    return _seeded(seeds.files(), _file)


def _file(data: bytes, _rng: random.Random) -> None:
    found = split_file(data)
    assert isinstance(found, Part10 | NotPart10)
    if isinstance(found, Part10):
        assert 132 <= found.dataset_at <= len(data)


def header(folder: Path):
    """The reading child's way to a header: pydicom, with our bounds around it."""
    path = folder / "one.dcm"

    def run(data: bytes, _rng: random.Random) -> None:
        path.write_bytes(data)
        found = read_instance(path)
        assert found is None or isinstance(found, Instance | Unreadable)

    return _seeded(seeds.files(), run)


class _NoLedger:
    """Takes every arrival: this target looks at files and answers, not at rows."""

    def is_our_report(self, _uid):
        return False

    def record(self, _arrival):
        return "new"

    def note(self, _notes, _now):
        pass


def receive(folder: Path):
    """One C-STORE through the use case, onto the disk; odd UIDs in the command."""
    root = folder / "root"
    spool = Spool(root / "spool")
    (root / "spool").mkdir(parents=True, exist_ok=True)
    spool.prepare()
    receiver = Receiver(spool, _NoLedger(), SystemClock(), keep_other_objects=True, max_object_bytes=1 << 22)
    outside = sorted(folder.iterdir()), sorted(root.iterdir())
    uids = tuple(_uids(data) for data in seeds.datasets())
    inputs = seeds.datasets()

    def run(rng: random.Random) -> None:
        number = rng.randrange(len(inputs))
        data = damaged(inputs[number], inputs, rng)
        sop_class, instance = uids[number]
        if rng.random() < 0.3:
            instance = damaged(instance.encode(), (b"../../x", b"/etc/x", b"1.2"), rng).decode("latin-1")
        incoming = Incoming(sop_class, instance, rng.choice(SYNTAXES), data, "SENDER", "NODULE_NODE", "127.0.0.1")
        received = receiver.receive(incoming)
        assert received.status in STATUSES
        assert received.answer is not Answer.BUG
        assert (sorted(folder.iterdir()), sorted(root.iterdir())) == outside
        _forget(root / "spool")

    return run


def _uids(data: bytes) -> tuple[str, str]:
    found = next((f for s in SYNTAXES if isinstance(f := read_identifiers(data, s), Identifiers)), None)
    return (found.sop_class_uid, found.sop_instance_uid) if found else ("1.2.3", "1.2.3.4")


def _forget(spool: Path) -> None:
    """Remove what was stored, so that the disk does not fill up; all of it has a name of ours."""
    for folder, _, names in os.walk(spool):
        for name in names:
            assert name.endswith(".dcm"), name
            Path(folder, name).unlink()


def settings(folder: Path):
    """A settings file."""
    path = folder / "node.toml"

    def run(data: bytes, _rng: random.Random) -> None:
        path.write_bytes(data)
        try:
            assert isinstance(load_settings(path), Settings)
        except SettingsError as refused:
            assert refused.faults

    return _seeded(seeds.settings_files(), run)


TARGETS = (
    Target("request", request, 95),
    Target("stream", stream, 400),
    Target("dataset", dataset, 300),
    Target("file", file, 140),
    Target("header", header, 40),
    Target("receive", receive, 10),
    Target("settings", settings, 10),
)
