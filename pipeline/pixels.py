"""Pixel data of one file to Hounsfield units, image by image.

Nothing is decoded, and nothing allocated, before the header's claims have been held against the limits and against
the bytes that are there. The decoder of each transfer syntax is named, never left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID
from scipy import ndimage

from pipeline.domain.outcome import Code, Refusal
from pipeline.slices import MAX_FRAMES, has_prefix, open_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from pipeline.slices import PixelFormat, Rescale, Slice

HU_RANGE = (-1024, 3071)
AIR_HU = HU_RANGE[0]
PADDING_BELOW_HU = -1100
TISSUE_HU = (-900, 3000)

MAX_SIDE = 4096
MAX_DECODED_BYTES = 2 * 1024**3
MAX_RATIO = 200
RATIO_COUNTS_FROM_BYTES = 64 * 1024**2

DECODERS: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2": ("",),
    "1.2.840.10008.1.2.1": ("",),
    "1.2.840.10008.1.2.2": ("",),
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),
    "1.2.840.10008.1.2.4.51": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.57": ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.70": ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.90": ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.91": ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
}
"""Decoding plugins of each transfer syntax, fastest exact one first (decision 0002); ``""``: none is needed."""

NATIVE_SYNTAXES = frozenset(uid for uid, plugins in DECODERS.items() if plugins == ("",))
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 81, 91, 203))


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded image.

    Attributes
    ----------
    hu
        int16, shape (rows, columns), clipped to :data:`HU_RANGE`, padding set to air.
    padding_guessed
        Whether padding was recognised by its value alone.
    """

    hu: NDArray[np.int16]
    padding_guessed: bool


def is_lossy(piece: Slice) -> bool:
    """Whether an image was compressed with loss, by its header or its transfer syntax.

    JPEG 2000 (``.91``) and HTJ2K (``.203``) may be lossless in fact; the syntax does not promise it.
    """
    return piece.lossy or piece.pixels.transfer_syntax in LOSSY_SYNTAXES


def pixel_fault(piece: Slice) -> Refusal | None:
    """Judge what the header claims of the pixels, before any of them is read.

    Returns
    -------
    Refusal or None
        ``HU_UNDEFINED``, ``UNSUPPORTED_PIXELS``, ``TOO_LARGE`` or ``CORRUPT_INSTANCE``.

    References
    ----------
    PS3.3 C.7.6.3.1, C.8.2.1 (Rescale Type), PS3.5 8.1.1 (High Bit).
    """
    return _rescale_fault(piece) or _format_fault(piece) or _size_fault(piece)


def _rescale_fault(piece: Slice) -> Refusal | None:
    rescale = piece.rescale
    if rescale is None or rescale.slope == 0:
        text = f"Image {piece.name} has no usable Rescale Slope and Intercept; send it as the scanner made it."
        return Refusal(Code.HU_UNDEFINED, text)
    if rescale.kind not in {"", "HU"}:
        return Refusal(Code.HU_UNDEFINED, f"Image {piece.name} has a Rescale Type other than HU.")
    return None


def _format_fault(piece: Slice) -> Refusal | None:
    form = piece.pixels
    found = (
        ("Samples per Pixel", form.samples, form.samples == 1),
        ("Bits Allocated", form.bits_allocated, form.bits_allocated == 16),
        ("Bits Stored", form.bits_stored, form.bits_stored is not None and 8 < form.bits_stored <= 16),
        ("High Bit", form.high_bit, form.high_bit is not None and form.high_bit + 1 == form.bits_stored),
        ("Pixel Representation", form.representation, form.representation in {0, 1}),
    )
    for name, value, good in found:
        if not good:
            text = f"Image {piece.name} has {name} {'missing' if value is None else value}, which no CT here uses."
            return Refusal(Code.UNSUPPORTED_PIXELS, text)
    if form.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return Refusal(Code.UNSUPPORTED_PIXELS, f"Image {piece.name} is not a monochrome image.")
    return None


def _size_fault(piece: Slice) -> Refusal | None:
    form = piece.pixels
    decoded = form.rows * form.columns * form.frames * 2
    if max(form.rows, form.columns) > MAX_SIDE or not 0 < form.frames <= MAX_FRAMES or decoded > MAX_DECODED_BYTES:
        text = f"Image {piece.name} claims {form.frames} frames of {form.rows} x {form.columns} pixels."
        return Refusal(Code.TOO_LARGE, text)
    if decoded == 0 or form.stored_bytes == 0:
        return Refusal(Code.CORRUPT_INSTANCE, f"Image {piece.name} holds no pixel data; send it again.")
    if form.transfer_syntax in NATIVE_SYNTAXES and form.stored_bytes < decoded:
        text = f"Image {piece.name} is cut short: {form.stored_bytes} bytes of pixels, {decoded} expected."
        return Refusal(Code.CORRUPT_INSTANCE, text + " Send it again.")
    if decoded > max(RATIO_COUNTS_FROM_BYTES, MAX_RATIO * form.stored_bytes):
        text = f"Image {piece.name} claims {decoded} bytes of pixels from {form.stored_bytes} compressed ones."
        return Refusal(Code.TOO_LARGE, text)
    return None


def read_pixels(pieces: Sequence[Slice]) -> Iterator[Pixels | Refusal]:
    """Decode images of one file, in the order given.

    Parameters
    ----------
    pieces
        Slices of the same file; for a multi-frame file best in the order of its frames.

    Yields
    ------
    Pixels or Refusal
        One for each slice. ``DECODE_FAILED`` where no decoder can read the stream, or a fault of
        :func:`pixel_fault`.
    """
    fault = next((f for piece in pieces if (f := pixel_fault(piece))), None)
    dataset = fault or _load(pieces[0])
    for piece in pieces:
        if isinstance(dataset, Refusal):
            yield dataset
            continue
        stored = _stored(dataset, piece)
        yield stored if isinstance(stored, Refusal) else _to_hu(stored, piece)


def _load(piece: Slice) -> Dataset | Refusal:
    try:
        if has_prefix(piece.path):
            with open_dataset(piece.path) as (stream, size):
                dataset = dcmread(stream, defer_size=size)
            if len(dataset.get("PixelData") or b"") > 0:
                return dataset
        why = "holds no pixel data"
    except Exception as fault:  # noqa: BLE001  hostile bytes again: whatever the parser raises, the image is damaged
        why = f"is damaged ({type(fault).__name__})"
    return Refusal(Code.CORRUPT_INSTANCE, f"Image {piece.name} {why}; send it again.")


def _stored(dataset: Dataset, piece: Slice) -> NDArray[Any] | Refusal:
    """Decode one image to stored values, signed and masked as its header says."""
    syntax, form = piece.pixels.transfer_syntax, piece.pixels
    index = None if form.frames == 1 else (piece.frame_number or 1) - 1
    for plugin in DECODERS.get(syntax, ()):
        try:
            stored, _ = get_decoder(UID(syntax)).as_array(dataset, index=index, raw=True, decoding_plugin=plugin)
        except Exception:  # noqa: BLE001, S112  each plugin raises its own kinds; the next one gets its chance
            continue
        if stored.shape == (form.rows, form.columns):
            return stored
    name = UID(syntax).name if syntax else "unknown"
    text = f"Image {piece.name} could not be decompressed (syntax {name}); send it uncompressed."
    return Refusal(Code.DECODE_FAILED, text)


def _to_hu(stored: NDArray[Any], piece: Slice) -> Pixels:
    """Rescale stored values, and set to air what lies outside the scan field."""
    hu = _rescaled(stored, piece.rescale)
    outside = _padding_mask(stored, hu, piece.pixels)
    if outside is not None:
        hu[outside] = AIR_HU
    guessed = bool(hu.min() < PADDING_BELOW_HU)
    return Pixels(np.clip(hu, *HU_RANGE).astype(np.int16), guessed)


def _rescaled(stored: NDArray[Any], rescale: Rescale | None) -> NDArray[np.int32]:
    if rescale is None:
        raise ValueError("pixel_fault lets no image without rescale pass")
    if rescale.slope == 1 and rescale.intercept.is_integer():
        return stored.astype(np.int32) + np.int32(rescale.intercept)
    scaled = stored.astype(np.float32) * np.float32(rescale.slope) + np.float32(rescale.intercept)
    return np.asarray(np.rint(scaled), np.int32)


def _padding_mask(stored: NDArray[Any], hu: NDArray[np.int32], form: PixelFormat) -> NDArray[np.bool_] | None:
    """Where the stored values are padding (PS3.3 C.7.5.1.1.2).

    A padding value that is also a tissue's value counts only where it touches the edge of the image.
    """
    if form.padding is None:
        return None
    first, last = form.padding
    mask = (stored >= first) & (stored <= last)
    if not mask.any():
        return None
    if TISSUE_HU[0] < int(hu[mask].max()) and int(hu[mask].min()) < TISSUE_HU[1]:
        labels, _ = ndimage.label(mask)
        edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        return np.isin(labels, edge[edge > 0])
    return np.asarray(mask)
