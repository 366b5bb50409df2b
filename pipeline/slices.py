"""DICOM file to Slices: the attributes the volume relies on, one Slice for each image or frame.

Owns every read of a CT header, bounded by the size of the file, and is the one place where a parser's error becomes
``CORRUPT_INSTANCE``. Pixels are left to :mod:`pipeline.pixels`, all judgement to assembly and selection.
"""

from __future__ import annotations

import io
import math
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_partial
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from pipeline.domain.geometry import SlicePlane
from pipeline.domain.outcome import Code, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset, FileDataset

CT_CLASSES = frozenset({CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
MULTI_FRAME_CLASSES = CT_CLASSES - {CTImageStorage}

MAX_FILE_BYTES = 2 * 1024**3
MAX_INFLATED_BYTES = 256 * 1024**2
MAX_FRAMES = 4096
DICM_OFFSET = 128
SERIES_UID_TAG = Tag("SeriesInstanceUID")

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber")
PERSON = ("SpecificCharacterSet", "PatientID", "PatientAge", "PatientBirthDate", "StudyDate")
TEXTS = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
ACQUISITION = (
    "ImageType",
    "Manufacturer",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "ContentTime",
)
GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
IN_MACROS = ("FrameType", "FrameReferenceDateTime", "FrameAcquisitionNumber")
PIXELS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "LossyImageCompression",
)
KEYWORDS: tuple[str, ...] = IDENTITY + PERSON + TEXTS + ACQUISITION + GEOMETRY + PIXELS
TAGS = {keyword: Tag(keyword) for keyword in (*KEYWORDS, *IN_MACROS)}
"""Looked up once: the parser would look up each name again for each file."""
_WANTED: list[BaseTag] = [TAGS[keyword] for keyword in KEYWORDS]


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the pixels of a file are stored, as its header claims.

    Attributes
    ----------
    transfer_syntax
        UID of the transfer syntax, Explicit VR Little Endian for a deflated file.
    stored_bytes
        Bytes from the value of Pixel Data to the end of the file; 0 where there is none.
    samples, bits_allocated, bits_stored, high_bit, representation
        Attributes of the Image Pixel module; ``None`` when missing.
    photometric
        Photometric Interpretation; empty when missing.
    rows, columns, frames
        Size of the matrix and number of frames; 0 when missing.
    padding
        Lowest and highest stored value that is padding, in the signedness of the pixels.
    """

    transfer_syntax: str
    stored_bytes: int
    samples: int | None
    photometric: str
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    representation: int | None
    rows: int
    columns: int
    frames: int
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Rescale:
    """Slope and intercept from stored values to Rescale Type (empty when it is not given)."""

    slope: float
    intercept: float
    kind: str


@dataclass(frozen=True, slots=True)
class Slice:
    """One image, or one frame of a multi-frame image.

    Attributes
    ----------
    path
        The file.
    sop_class_uid, sop_instance_uid, frame_number
        The image as the archive knows it; ``frame_number`` is 1-based, ``None`` for a classic image.
    plane
        Its place; LPS mm. ``None`` when position, orientation or pixel spacing is missing or not a number.
    thickness_mm
        Slice Thickness; ``None`` when missing.
    image_type
        Values of Image Type, or of Frame Type; upper case.
    kernel, acquisition, moment
        Convolution Kernel, Acquisition Number and the finest time given, as text, to tell stacks apart.
    rescale
        ``None`` when slope or intercept is missing.
    pixels
        How the file stores its pixels.
    lossy
        Whether the image was ever compressed with loss, as the header says.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    plane: SlicePlane | None
    thickness_mm: float | None
    image_type: tuple[str, ...]
    kernel: str
    acquisition: str
    moment: str
    rescale: Rescale | None
    pixels: PixelFormat
    lossy: bool

    @property
    def name(self) -> str:
        """UID, and frame number where there is one: what a sentence calls this image."""
        return self.sop_instance_uid + ("" if self.frame_number is None else f" frame {self.frame_number}")


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM file that could be read.

    ``patient_id`` and ``text`` stay in memory: they never enter a log, a verdict or a result.

    Attributes
    ----------
    series_number
        ``None`` when missing.
    age_years
        Patient's Age, else Study Date minus birth date; ``None`` when neither is known.
    contrast
        Whether a contrast agent is named.
    text
        Body part and descriptions, upper case, for the text score only.
    slices
        Its images; empty for anything that is not a CT image class.
    """

    path: Path
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    series_number: int | None
    manufacturer: str
    age_years: float | None
    contrast: bool
    patient_id: str = field(repr=False)
    text: str = field(repr=False)
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A DICOM file that could not be read; ``series_uid`` is empty where not even that was found."""

    path: Path
    study_uid: str
    series_uid: str
    refusal: Refusal


@contextmanager
def quiet_parser() -> Iterator[None]:
    """Silence pydicom's warnings on values that break their VR: what matters of them is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_instance(path: Path) -> Instance | Unreadable | None:
    """Read the header of one file.

    Parameters
    ----------
    path
        A file; pixels are not read.

    Returns
    -------
    Instance, Unreadable or None
        ``None`` for a file that is not DICOM (no ``DICM`` prefix, PS3.10 7.1) and for a DICOMDIR. ``Unreadable``
        holds ``CORRUPT_INSTANCE`` for a damaged file and ``TOO_LARGE`` for one beyond the limits.
    """
    if not has_prefix(path):
        return None
    try:
        with open_dataset(path) as (stream, size):
            dataset = dcmread(stream, stop_before_pixels=True, defer_size=size, specific_tags=_WANTED)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return None
            element_header = 8 if dataset.original_encoding[0] else 12
            return _instance(path, dataset, max(0, size - stream.tell() - element_header))
    except OversizeError as error:
        return Unreadable(path, *_owner(path), Refusal(Code.TOO_LARGE, str(error)))
    except Exception:  # noqa: BLE001  a hostile file may raise anything in the parser: RecursionError, MemoryError, ...
        text = "An image of the series is damaged or cut short: its header cannot be read; send it again."
        return Unreadable(path, *_owner(path), Refusal(Code.CORRUPT_INSTANCE, text))


class OversizeError(Exception):
    """A file beyond the limits on size, told before anything of that size is allocated."""


def has_prefix(path: Path) -> bool:
    """Whether a file begins as PS3.10 7.1 asks."""
    with path.open("rb") as stream:
        return stream.read(DICM_OFFSET + 4)[DICM_OFFSET:] == b"DICM"


@contextmanager
def open_dataset(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for the parser: a stream and its size in bytes.

    A deflated data set is inflated here, with a ceiling, and presented as Explicit VR Little Endian (PS3.5 A.5):
    the parser would inflate it without one.

    Raises
    ------
    OversizeError
        When the file, or its inflated data set, is larger than any image we analyse.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise OversizeError(f"A file of {size} bytes is above the limit of {MAX_FILE_BYTES}.")
    with path.open("rb") as file:
        if _deflated(file):
            inflated = _inflated(file)
            yield io.BytesIO(inflated), len(inflated)
        else:
            yield file, size


def _deflated(file: BinaryIO) -> bool:
    head = file.read(4096)
    file.seek(0)
    uid = str(DeflatedExplicitVRLittleEndian).encode()
    return b"\x02\x00\x10\x00UI" + len(uid).to_bytes(2, "little") + uid in head


def _inflated(file: BinaryIO) -> bytes:
    head = file.read(DICM_OFFSET + 4 + 12)
    rest = file.read()
    meta_length = int.from_bytes(head[-4:], "little")
    meta = dcmread(io.BytesIO(head + rest[:meta_length])).file_meta
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(rest[meta_length:], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise OversizeError(f"A deflated image inflates to more than {MAX_INFLATED_BYTES} bytes.")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = DicomBytesIO()
    stream.write(head[: DICM_OFFSET + 4])
    write_file_meta_info(stream, meta, enforce_standard=False)
    return stream.getvalue() + data


def _owner(path: Path) -> tuple[str, str]:
    """Study and series UID of a file whose header cannot be read as a whole; empty where not even that works."""

    def past_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return bool(tag > SERIES_UID_TAG)

    try:
        with path.open("rb") as file:
            if _deflated(file):
                return "", ""
            dataset = read_partial(file, stop_when=past_series, defer_size=path.stat().st_size)
            return _text(dataset, "StudyInstanceUID"), _text(dataset, "SeriesInstanceUID")
    except Exception:  # noqa: BLE001  the same hostile file as in read_instance, tried once more
        return "", ""


def _instance(path: Path, dataset: FileDataset, stored_bytes: int) -> Instance | Unreadable:
    uids = {key: _text(dataset, key) for key in IDENTITY[:4]}
    if not (uids["SOPInstanceUID"] and uids["SeriesInstanceUID"]):
        text = "An object of the study has no SOP or series instance UID; send it again as the scanner made it."
        return Unreadable(
            path, uids["StudyInstanceUID"], uids["SeriesInstanceUID"], Refusal(Code.CORRUPT_INSTANCE, text)
        )
    is_ct = uids["SOPClassUID"] in CT_CLASSES and _text(dataset, "Modality") in {"CT", ""}
    pixels = _pixel_format(dataset, stored_bytes)
    slices = _slices(path, dataset, pixels) if is_ct else ()
    if is_ct and pixels.frames <= MAX_FRAMES and len(slices) != pixels.frames:
        text = (
            f"An image of the series claims {pixels.frames} frames and describes {len(slices)}; "
            "send it again as the scanner made it."
        )
        return Unreadable(
            path, uids["StudyInstanceUID"], uids["SeriesInstanceUID"], Refusal(Code.CORRUPT_INSTANCE, text)
        )
    return Instance(
        path=path,
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        modality=_text(dataset, "Modality"),
        series_number=_integer(dataset, "SeriesNumber"),
        manufacturer=_text(dataset, "Manufacturer").upper(),
        age_years=_age_years(dataset),
        contrast=_contrast(dataset),
        patient_id=_text(dataset, "PatientID"),
        text=" ".join(_text(dataset, key) for key in TEXTS).upper(),
        slices=slices,
    )


def _slices(path: Path, dataset: Dataset, pixels: PixelFormat) -> tuple[Slice, ...]:
    if dataset.SOPClassUID not in MULTI_FRAME_CLASSES:
        return (_slice(path, dataset, pixels, None, (dataset,)),)
    shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence")[:MAX_FRAMES]
    return tuple(
        _slice(path, dataset, pixels, number, (*_macros(frame), *(m for s in shared for m in _macros(s)), dataset))
        for number, frame in enumerate(frames, start=1)
    )


def _macros(group: Dataset) -> Iterator[Dataset]:
    """The functional group macros of one frame or of all: each a sequence of one item (PS3.3 C.7.6.16)."""
    for element in group:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _slice(
    path: Path, dataset: Dataset, pixels: PixelFormat, frame: int | None, sources: Sequence[Dataset]
) -> Slice:
    """Gather one slice's facts from the first source that has each: its own macros, the shared ones, the header."""

    def source(*keywords: str) -> Dataset:
        return next((s for s in sources if any(TAGS[k] in s for k in keywords)), dataset)

    kind = source("FrameType") if frame is not None else dataset
    times = ("TemporalPositionIdentifier", "TriggerTime", "FrameReferenceDateTime", "ContentTime")
    return Slice(
        path=path,
        sop_class_uid=_text(dataset, "SOPClassUID"),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        frame_number=frame,
        plane=_plane(source, pixels),
        thickness_mm=_positive(source("SliceThickness"), "SliceThickness"),
        image_type=_values(kind, "FrameType" if "FrameType" in kind else "ImageType"),
        kernel=" ".join(_values(source("ConvolutionKernel"), "ConvolutionKernel")),
        acquisition=_text(source("AcquisitionNumber", "FrameAcquisitionNumber"), "AcquisitionNumber")
        or _text(source("FrameAcquisitionNumber"), "FrameAcquisitionNumber"),
        moment=next((t for key in times if (t := _text(source(key), key))), ""),
        rescale=_rescale(source("RescaleSlope", "RescaleIntercept")),
        pixels=pixels,
        lossy=_text(source("LossyImageCompression"), "LossyImageCompression") == "01",
    )


def _plane(source: Any, pixels: PixelFormat) -> SlicePlane | None:
    position = _numbers(source("ImagePositionPatient"), "ImagePositionPatient", 3)
    cosines = _numbers(source("ImageOrientationPatient"), "ImageOrientationPatient", 6)
    spacing = _numbers(source("PixelSpacing"), "PixelSpacing", 2)
    if not (position and cosines and spacing and min(spacing) > 0 and pixels.rows and pixels.columns):
        return None
    return SlicePlane(
        origin_lps_mm=(position[0], position[1], position[2]),
        along_row=(cosines[0], cosines[1], cosines[2]),
        along_column=(cosines[3], cosines[4], cosines[5]),
        row_spacing_mm=spacing[0],
        column_spacing_mm=spacing[1],
        rows=pixels.rows,
        columns=pixels.columns,
    )


def _rescale(source: Dataset) -> Rescale | None:
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    if slope is None or intercept is None:
        return None
    return Rescale(slope, intercept, _text(source, "RescaleType").upper())


def _pixel_format(dataset: FileDataset, stored_bytes: int) -> PixelFormat:
    representation = _integer(dataset, "PixelRepresentation")
    return PixelFormat(
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        stored_bytes=stored_bytes,
        samples=_integer(dataset, "SamplesPerPixel"),
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_allocated=_integer(dataset, "BitsAllocated"),
        bits_stored=_integer(dataset, "BitsStored"),
        high_bit=_integer(dataset, "HighBit"),
        representation=representation,
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        frames=_integer(dataset, "NumberOfFrames") or 1,
        padding=_padding(dataset, signed=representation == 1),
    )


def _padding(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """Padding range in the signedness of the pixels: some scanners write it unsigned beside signed pixels."""
    first = _integer(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _integer(dataset, "PixelPaddingRangeLimit")
    ends = sorted(_as_stored(v, signed=signed) for v in (first, first if last is None else last))
    return ends[0], ends[1]


def _as_stored(value: int, *, signed: bool) -> int:
    if signed:
        return value - 65536 if value > 32767 else value
    return value + 65536 if value < 0 else value


def _contrast(dataset: Dataset) -> bool:
    agent = _text(dataset, "ContrastBolusAgent").upper()
    return bool(_items(dataset, "ContrastBolusAgentSequence")) or agent not in {
        "",
        "NONE",
        "NO",
        "N",
        "NO CONTRAST",
    }


def _age_years(dataset: Dataset) -> float | None:
    text = _text(dataset, "PatientAge").upper()
    if text[:-1].isdecimal() and text[-1:] in {"D", "W", "M", "Y"}:
        return int(text[:-1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[text[-1]]
    born, seen = (_text(dataset, key).replace(".", "") for key in ("PatientBirthDate", "StudyDate"))
    if not (len(born) == len(seen) == 8 and born.isdecimal() and seen.isdecimal()):
        return None
    return float((int(seen) - int(born)) // 10000)


def _value(dataset: Dataset, keyword: str) -> Any:
    tag = TAGS[keyword]
    try:
        return dataset[tag].value if tag in dataset else None
    except Exception:  # noqa: BLE001  a value that breaks its VR counts as missing; pydicom raises many kinds
        return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _value(dataset, keyword)
    return list(value) if value else []


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip(" \0")


def _values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = _value(dataset, keyword)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else cast("Sequence[object]", value)
    return tuple(str(v).strip().upper() for v in values)


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(v) for v in _value(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    try:
        value = float(_value(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _positive(dataset: Dataset, keyword: str) -> float | None:
    value = _number(dataset, keyword)
    return value if value is not None and value > 0 else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = _number(dataset, keyword)
    return None if value is None else int(value)
