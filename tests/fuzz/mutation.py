"""Damages bytes: seeded, so that target, seed and number name every input ever tried."""

from __future__ import annotations

import random
import zlib

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",  # item of undefined length
    b"\xfe\xff\x0d\xe0\x00\x00\x00\x00",  # its end
    b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",  # end of a sequence
    b"SQ\x00\x00\xff\xff\xff\xff",
    b"UN\x00\x00\xff\xff\xff\xff",
    b"OW\x00\x00\xff\xff\xff\xfe",
    b"../../../tmp/x",
    b"\\ISO 2022 IR 87\\ISO 2022 IR 159",
    b"\x1b$B\x1b(J",
    b"\xff" * 16,
    b"\0" * 16,
    b"9" * 70,
    b"\n[network]\nguard = ",
)
MOST = 1 << 20


def damaged(seed: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """A seed with one to eight changes, some of them taken from other seeds."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 8))):
        rng.choice(CHANGES)(data, others, rng)
    return bytes(data[:MOST])


def rng_for(target: str, seed: int, number: int) -> random.Random:
    """The random numbers of one execution."""
    return random.Random(zlib.crc32(f"{target}:{seed}:{number}".encode()))


def _at(data, rng) -> int:
    """A place; near the front twice as often, where headers are."""
    if not data:
        return 0
    return rng.randrange(min(len(data), 400)) if rng.random() < 0.5 else rng.randrange(len(data))


def _flip(data, _others, rng):
    if data:
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _byte(data, _others, rng):
    if data:
        data[_at(data, rng)] = rng.randrange(256)


def _number(data, _others, rng):
    width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    at = _at(data, rng)
    data[at : at + width] = (rng.choice(NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, order)


def _cut(data, _others, rng):
    del data[_at(data, rng) :]


def _remove(data, _others, rng):
    at = _at(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 16, 64, 256))]


def _insert(data, _others, rng):
    at = _at(data, rng)
    data[at:at] = rng.choice(TOKENS) if rng.random() < 0.6 else rng.randbytes(rng.randrange(1, 64))


def _repeat(data, _others, rng):
    at = _at(data, rng)
    piece = data[at : at + rng.choice((2, 8, 32, 128))]
    data[at:at] = piece * rng.choice((1, 2, 10, 100))


def _splice(data, others, rng):
    other = rng.choice(others)
    start = rng.randrange(len(other)) if other else 0
    at = _at(data, rng)
    data[at:] = other[start : start + 4096]


def _swap(data, _others, rng):
    one, other, width = _at(data, rng), _at(data, rng), rng.choice((1, 2, 4, 8))
    data[one : one + width], data[other : other + width] = data[other : other + width], data[one : one + width]


CHANGES = (_flip, _flip, _byte, _number, _number, _cut, _remove, _insert, _repeat, _splice, _swap)
