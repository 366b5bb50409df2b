"""What must hold on this machine for the node to work: one line each, and what to do when it does not.

Every check gives :class:`Line` values and changes nothing that lasts; what they mean together is the caller's.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

import config
import pipeline
from pipeline.domain.outcome import Refusal
from pipeline.pixels import read_pixels
from pipeline.slices import Instance, read_instance
from scp_node.network.commitment import ProvingArchive
from scp_node.settings import Destination
from scp_node.tls import Expiring, check_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scp_node.ports import Archive, SendResult
    from scp_node.settings import DetectorSettings, Settings, StorageSettings

    OpenArchive = Callable[[Destination], Archive]

SAMPLES = Path(str(files("scp_node").joinpath("samples")))
SR_CLASSES = {"comprehensive3d": str(Comprehensive3DSRStorage), "comprehensive": str(ComprehensiveSRStorage)}


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Line:
    """The answer to one check.

    Attributes
    ----------
    level
        ``fail``: the node cannot do its work; ``warn``: it can, but perhaps not as meant.
    subject
        What was looked at.
    text
        What was found.
    action
        What to do; empty when all is well.
    """

    level: Level
    subject: str
    text: str
    action: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One tiny image in one transfer syntax.

    Attributes
    ----------
    name
        Name of the syntax, for people.
    file
        In the folder :data:`SAMPLES`.
    package
        Who decodes it.
    tolerance_hu
        0 for lossless syntaxes.
    optional
        Whether a node without this decoder is complete.
    """

    name: str
    file: str
    package: str
    tolerance_hu: int = 0
    optional: bool = False


DECODER_SAMPLES = (
    Sample("RLE Lossless", "rle_lossless.dcm", "pylibjpeg-rle"),
    Sample("JPEG Lossless", "jpeg_lossless.dcm", "python-gdcm"),
    Sample("JPEG Lossless SV1", "jpeg_lossless_sv1.dcm", "python-gdcm"),
    Sample("JPEG-LS Lossless", "jpeg_ls_lossless.dcm", "pyjpegls"),
    Sample("JPEG 2000 Lossless", "jpeg_2000_lossless.dcm", "python-gdcm"),
    Sample("HTJ2K Lossless", "htj2k_lossless.dcm", "pylibjpeg-openjpeg"),
    Sample(
        "JPEG Extended 12 bit (lossy)", "jpeg_extended_12_bit.dcm", "nodule-node[gpl-codecs]", 30, optional=True
    ),
)


def examine(settings: Settings) -> Iterator[Line]:
    """Make every check, the cheap ones first; lines come as they are found."""

    def open_archive(destination: Destination) -> Archive:
        wait_s = settings.delivery.commitment_wait_s
        return ProvingArchive(destination, settings.node.ae_title, settings.network, settings.tls, wait_s=wait_s)

    yield from origin()
    yield from (
        Line(Level.WARN, "settings", text, "See 'nodule-node config check'.") for text in settings.warnings()
    )
    yield from folders(settings.storage)
    yield disk_space(settings.storage)
    yield from decoders()
    yield from detector(settings.detector)
    yield port(settings, open_archive)
    yield from tls(settings)
    for place in destinations_in_use(settings):
        yield from destination(place, open_archive(place))


def origin() -> Iterator[Line]:
    """Say which installation runs: a wrong one is the usual cause of a fault that "cannot be"."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Line(Level.OK, "version", f"nodule-node {version('nodule-node')} on Python {python}")
    for package in (pipeline, config):
        yield Line(Level.OK, "package", f"{package.__name__} comes from {Path(str(package.__file__)).parent}")


def folders(storage: StorageSettings) -> Iterator[Line]:
    """Try to write in the storage folder and in what it holds already, as the user who asks."""
    folder = storage.folder
    if not folder.exists():
        parent = next(above for above in folder.parents if above.exists())
        yield _writable(parent, f"{folder} does not exist yet and will be made in {parent}")
        return
    yield _writable(folder, f"{folder} is writable")
    for name in ("incoming", "objects", "quarantine", "reports", "work"):
        if (folder / name).exists():
            yield _writable(folder / name, f"{folder / name} is writable")


def _writable(folder: Path, text: str) -> Line:
    user = _user()
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Line(Level.OK, "folder", f"{text}, as user {user}")
    except OSError as fault:
        action = f"Run the node as the folder's owner, or give it to this user: chown -R {user} {folder}"
        return Line(Level.FAIL, "folder", f"{folder} cannot be written by user {user}: {fault.strerror}", action)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def disk_space(storage: StorageSettings) -> Line:
    """Compare free space with the floor below which images are refused."""
    existing = next(place for place in (storage.folder, *storage.folder.parents) if place.exists())
    usage = shutil.disk_usage(existing)
    free_mib = usage.free // 2**20
    floor_mib = max(storage.min_free_mib, int(usage.total * storage.min_free_percent / 100) // 2**20)
    text = f"{free_mib} MiB free on the disk of {storage.folder}; images are refused below {floor_mib} MiB"
    if free_mib < floor_mib:
        action = "Make room, or lower storage.min_free_mib and storage.min_free_percent."
        return Line(Level.FAIL, "disk", text, action)
    return Line(Level.OK, "disk", text)


def decoders() -> Iterator[Line]:
    """Decode one tiny image of each compressed transfer syntax, in the node's own way."""
    yield Line(Level.OK, "decoder", "Uncompressed and Deflated: no decoder needed")
    for sample in DECODER_SAMPLES:
        yield _decoder(sample)


def _decoder(sample: Sample) -> Line:
    fault = _decode_fault(SAMPLES / sample.file, sample.tolerance_hu)
    if fault is None:
        return Line(Level.OK, "decoder", f"{sample.name}: decoded as expected")
    if sample.optional:
        text = f"{sample.name}: no decoder, such images end as DECODE_FAILED"
        return Line(Level.WARN, "decoder", text, f"If a sender uses it: pip install '{sample.package}' (GPL).")
    action = f"Install it again: pip install --force-reinstall {sample.package}"
    return Line(Level.FAIL, "decoder", f"{sample.name}: {fault}; such images end as DECODE_FAILED", action)


def _decode_fault(path: Path, tolerance_hu: int) -> str | None:
    instance = read_instance(path)
    if not isinstance(instance, Instance):
        return f"the packaged sample {path.name} is missing or damaged"
    decoded = next(read_pixels(instance.slices))
    if isinstance(decoded, Refusal):
        return "the decoder is missing or broken"
    worst = int(np.abs(decoded.hu.astype(np.int32) - sample_hu()).max())
    return f"decoded wrongly, by up to {worst} HU" if worst > tolerance_hu else None


def sample_hu() -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Give the image of every sample: 32 by 32 pixels, a ramp with a small pattern; HU."""
    ramp = np.arange(32 * 32, dtype=np.int32).reshape(32, 32) * 3 - 1024
    return ramp + np.arange(32, dtype=np.int32) % 5


def detector(settings: DetectorSettings) -> Iterator[Line]:
    """Check device, number format, weights and operating point of the two-stage detector."""
    if settings.implementation != "two-stage":
        yield Line(
            Level.WARN, "detector", f"{settings.implementation} takes the place of ours; it is not checked here"
        )
        return
    yield _device(settings)
    yield from _weights(settings)


def _device(settings: DetectorSettings) -> Line:
    from pipeline.detect.placement import choose, has_fast_bfloat16

    try:
        placement = choose(settings.device, settings.precision)
    except ValueError as fault:
        return Line(Level.FAIL, "device", str(fault), "Correct detector.device or detector.precision.")
    fast = "multiplies" if has_fast_bfloat16(placement.device) else "does not multiply"
    dtype = str(placement.dtype).removeprefix("torch.")
    text = f"{placement.device} in {dtype}; this hardware {fast} bfloat16 itself; {os.cpu_count()} CPU threads"
    return Line(Level.OK, "device", text)


def _weights(settings: DetectorSettings) -> Iterator[Line]:
    from pipeline.detect.weights import WeightsError, load_weights

    try:
        weights = load_weights(settings.weights)
    except WeightsError as fault:
        yield Line(
            Level.FAIL, "weights", str(fault), "Set detector.weights to 'bundled', or install the node again."
        )
        return
    card = weights.card
    yield Line(Level.OK, "weights", f"{card.name} {card.version}, recipe {card.recipe}, SHA-256 {weights.sha256}")
    names = [point.name for point in card.operating_points]
    wanted = settings.operating_point
    if isinstance(wanted, str) and wanted not in ("default", *names):
        text = f"the operating point {wanted!r} is not in the card, which has {', '.join(names)}"
        yield Line(Level.FAIL, "weights", text, "Correct detector.operating_point.")


def port(settings: Settings, open_archive: OpenArchive) -> Line:
    """Say whether our port is free, ours already (C-ECHO to ourselves), or somebody else's."""
    node = settings.node
    number = node.port if settings.tls.plain else settings.tls.port
    where = f"{node.bind}, port {number}"
    fault = _bind_fault(node.bind, number)
    if fault is None:
        return Line(Level.OK, "port", f"{where} is free: the node does not run")
    if not settings.tls.plain:
        return Line(Level.OK, "port", f"{where} is in use, for TLS alone; ask it by C-ECHO from a sender")
    host = "127.0.0.1" if node.bind == "0.0.0.0" else node.bind
    ourselves = Destination(name="ourselves", ae_title=node.ae_title, host=host, port=node.port)
    answer = open_archive(ourselves).echo()
    if answer.kind == "delivered":
        return Line(Level.OK, "port", f"{where} is ours: the node runs and answers C-ECHO")
    if _knows_dicom(answer):
        return Line(Level.OK, "port", f"{where} is taken by a DICOM node that answers ({answer.text})")
    action = "Stop the other program, or choose another node.port or node.bind."
    return Line(Level.FAIL, "port", f"{where} cannot be used ({fault}), and no DICOM node answers there", action)


def _knows_dicom(answer: SendResult) -> bool:
    return answer.kind == "refused"


def _bind_fault(host: str, number: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as fault:
            return fault.strerror or str(fault)
    return None


def tls(settings: Settings) -> Iterator[Line]:
    """Check certificate, key and authorities of ``[tls]``, when they are named."""
    identity = settings.tls.identity
    if identity is None:
        return
    faults = tuple(check_identity(identity))
    for fault in faults:
        level = Level.WARN if isinstance(fault, Expiring) else Level.FAIL
        yield Line(level, "tls", fault.text, fault.action)
    if not faults:
        yield Line(Level.OK, "tls", f"{identity.certificate} is valid and belongs to its key")


def destinations_in_use(settings: Settings) -> tuple[Destination, ...]:
    """Give every listed destination, and the senders that get results themselves."""
    routed = (place for sender in settings.senders for place in settings.destinations_for(sender.ae_title))
    return tuple({place.name: place for place in (*settings.destinations, *routed)}.values())


def destination(place: Destination, archive: Archive) -> Iterator[Line]:
    """Ask one destination for C-ECHO, and whether it takes the SR class that it is to get."""
    name = f"destination {place.name}"
    where = f"{place.ae_title} at {place.host}, port {place.port}"
    answer = archive.echo()
    if answer.kind != "delivered":
        action = (
            f"Check that it runs, its address in [[destinations]] {place.name}, and that it knows our AE title."
        )
        yield Line(Level.FAIL, name, f"{where}: {answer.text}", action)
        return
    yield Line(Level.OK, name, f"{where} answers C-ECHO")
    taken = archive.accepts(list(SR_CLASSES.values()))
    if not isinstance(taken, frozenset):
        yield Line(Level.FAIL, name, f"{where}: {taken.text}", "Try again; then look into its log.")
    elif SR_CLASSES[place.sr] in taken:
        yield Line(Level.OK, name, f"{where} takes our SR class ({place.sr})")
    else:
        yield _class_refused(name, where, place, taken)


def _class_refused(name: str, where: str, place: Destination, taken: frozenset[str]) -> Line:
    others = [other for other, uid in SR_CLASSES.items() if uid in taken]
    text = f"{where} does not take our SR class ({place.sr})"
    if place.sr == "comprehensive3d" and others:
        action = f'Nothing: it will get Comprehensive SR instead. Set sr = "{others[0]}" to spare the question.'
        return Line(Level.WARN, name, text, action)
    if others:
        return Line(Level.FAIL, name, text, f'It takes sr = "{others[0]}": set that for this destination.')
    return Line(Level.FAIL, name, text, "Allow Comprehensive 3D SR or Comprehensive SR storage there.")
