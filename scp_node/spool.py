"""Instances on disk: written aside, made durable, then given their name; and the quarantine.

File names come from hashes alone, never from a UID or an AE title. Nothing here knows the database or DICOM
beyond the file meta information that goes in front of a data set.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scp_node.identifiers import NotPart10, split_file
from scp_node.implementation import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

OBJECTS: Final = "objects"
INCOMING: Final = "incoming"
QUARANTINE: Final = "quarantine"
_FOLDERS: Final = (INCOMING, OBJECTS, QUARANTINE)
_PREAMBLE: Final = b"\0" * 128 + b"DICM"


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What is written in front of a data set: file meta information, PS3.10 Table 7.1-1."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str

    def encode(self) -> bytes:
        """Encode preamble, prefix and group 0002; the implementation named in it is this node's."""
        before, behind = _around(self.sop_class_uid, self.transfer_syntax_uid, self.calling_ae, self.called_ae)
        body = before + _element(0x03, b"UI", self.sop_instance_uid) + behind
        return _PREAMBLE + b"\x02\x00\x00\x00UL\x04\x00" + len(body).to_bytes(4, "little") + body


@lru_cache(maxsize=64)
def _around(sop_class_uid: str, transfer_syntax_uid: str, calling_ae: str, called_ae: str) -> tuple[bytes, bytes]:
    """Encode what stands before and behind the instance's UID: the same for all images of a series."""
    before = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01" + _element(0x02, b"UI", sop_class_uid)
    behind = (
        _element(0x10, b"UI", transfer_syntax_uid),
        _element(0x12, b"UI", IMPLEMENTATION_UID),
        _element(0x13, b"SH", IMPLEMENTATION_VERSION),
        _element(0x16, b"AE", calling_ae),
        _element(0x18, b"AE", called_ae),
    )
    return before, b"".join(behind)


@dataclass(frozen=True, slots=True)
class Placed:
    """An instance on disk: its bytes survive a power cut, its name only after :meth:`settle`.

    Attributes
    ----------
    path
        Relative to the folder of the spool.
    shelf
        The folder that holds the name.
    """

    path: str
    shelf: Path

    def settle(self) -> None:
        """Make the name durable; any thread may do so."""
        _sync_folder(self.shelf)


class Spool:
    """The folder that holds what was received.

    Every method that writes raises :class:`OSError` when the disk fails or is full, and returns only when the
    bytes and their name survive a power cut; :meth:`place` leaves the name to its caller.
    """

    def __init__(self, folder: Path, *, min_free_mib: int = 0, min_free_percent: float = 0.0) -> None:
        self._folder = folder.resolve()
        self._min_free = min_free_mib * 1024 * 1024
        self._min_free_part = min_free_percent / 100.0
        self._shelves: dict[str, Path] = {}  # resolved once: that takes longer than to name a file there

    @property
    def folder(self) -> Path:
        """The folder to which all paths are relative."""
        return self._folder

    def prepare(self) -> None:
        """Make the folders."""
        for name in _FOLDERS:
            self._make_folder(self._folder / name)
        shelves = [self._folder / OBJECTS / f"{number:02x}" for number in range(256)]
        missing = [shelf for shelf in shelves if not shelf.is_dir()]
        for shelf in missing:  # now, not while a sender waits for its first image on each
            shelf.mkdir(exist_ok=True, mode=0o750)
        if missing:
            _sync_folder(self._folder / OBJECTS)
        for shelf in shelves:
            self._shelf(shelf.name)

    def has_room(self) -> bool:
        """Whether the free space is above the floor of the settings."""
        disk = shutil.disk_usage(self._folder)
        return disk.free >= max(self._min_free, int(disk.total * self._min_free_part))

    def keep(self, header: FileHeader, dataset: bytes | bytearray) -> str:
        """Keep an instance; gives its path relative to the folder."""
        placed = self.place(header, dataset)
        placed.settle()
        return placed.path

    def place(self, header: FileHeader, dataset: bytes | bytearray) -> Placed:
        """Write an instance, and give it its name once its bytes are durable.

        A data set that is already there under this SOP Instance UID is not written again. Another one gets the
        next free name (``.v2``, ``.v3``): no file is ever replaced.
        """
        stem = hashlib.sha256(header.sop_instance_uid.encode()).hexdigest()[:32]
        shelf = self._shelf(stem[:2])
        part: Path | None = None
        try:
            for name in _names(stem):
                target = shelf / name
                named = False
                if not target.exists():
                    part = part or self._write_aside(header.encode(), dataset)
                    named = _give_name(part, target)
                if not named and not _holds(target, dataset):
                    continue
                return Placed(f"{OBJECTS}/{stem[:2]}/{name}", shelf)
        finally:
            if part is not None:
                part.unlink(missing_ok=True)
        raise AssertionError("names do not end")

    def quarantine(self, header: FileHeader, dataset: bytes | bytearray) -> str:
        """Keep the bytes of a refused instance for a person to look at; the same bytes only once."""
        folder = self._folder / QUARANTINE
        target = self._inside(folder / f"{hashlib.sha256(dataset).hexdigest()[:32]}.dcm")
        if not target.exists():
            part = self._write_aside(header.encode(), dataset)
            _give_name(part, target)
            part.unlink(missing_ok=True)
            _sync_folder(folder)
        return target.relative_to(self._folder).as_posix()

    def read(self, path: str) -> bytes:
        """Read a file by its relative path."""
        return self._inside(self._folder / path).read_bytes()

    def delete(self, path: str) -> None:
        """Delete a file by its relative path; one that is gone already is no fault."""
        self._inside(self._folder / path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether there is a file at a relative path."""
        return self._inside(self._folder / path).is_file()

    def objects(self) -> Iterator[str]:
        """Give the relative paths of all instances."""
        for path in sorted((self._folder / OBJECTS).glob("*/*.dcm")):
            yield path.relative_to(self._folder).as_posix()

    def sweep(self) -> int:
        """Delete what processes that are gone left in the middle of a write; gives the number of files."""
        swept = 0
        for path in (self._folder / INCOMING).glob("*.part"):
            owner = path.name.split("-")[0]
            if not owner.isdigit() or int(owner) == os.getpid() or not _is_alive(int(owner)):
                path.unlink(missing_ok=True)
                swept += 1
        return swept

    def _write_aside(self, header: bytes, dataset: bytes | bytearray) -> Path:
        part = self._folder / INCOMING / f"{os.getpid()}-{secrets.token_hex(16)}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, header, dataset)
            os.fsync(descriptor)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return part

    def _shelf(self, number: str) -> Path:
        """Give the folder of the names that begin so; make it where it is not there."""
        known = self._shelves.get(number)
        if known is None or not known.is_dir():
            known = self._inside(self._folder / OBJECTS / number)
            self._make_folder(known)
            self._shelves[number] = known
        return known

    def _make_folder(self, folder: Path) -> None:
        """Make a folder with its parents, and their entries durable."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o750)
        _sync_folder(folder.parent)

    def _inside(self, path: Path) -> Path:
        resolved = path.resolve()
        if not resolved.is_relative_to(self._folder):
            raise OSError(f"{resolved.name} would lie outside the storage folder")
        return resolved


def _write_all(descriptor: int, *pieces: bytes | bytearray) -> None:
    """Write the pieces in one call where the system takes them at once: no buffer in between."""
    left = [memoryview(piece) for piece in pieces]
    while left:
        written = os.writev(descriptor, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]


def _names(stem: str) -> Iterator[str]:
    yield f"{stem}.dcm"
    version = 2
    while True:
        yield f"{stem}.v{version}.dcm"
        version += 1


def _give_name(part: Path, target: Path) -> bool:
    """Name a finished file; ``False`` when the name was taken meanwhile. A link, unlike rename, never replaces."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    return True


def _holds(file: Path, dataset: bytes | bytearray) -> bool:
    """Whether a file of ours holds exactly this data set."""
    content = file.read_bytes()
    part10 = split_file(content)
    return not isinstance(part10, NotPart10) and content[part10.dataset_at :] == dataset


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return b"\x02\x00" + bytes((element, 0)) + vr + len(value).to_bytes(2, "little") + value
