"""Outcomes, and every code a user can meet.

One list of codes: a refusal ends the analysis of a series or study, a notice lets it go on and is repeated in
the report. ``docs/codes.md`` is generated from :data:`CODES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Outcome(StrEnum):
    """How the analysis of a series ended."""

    FINDINGS = "findings"
    NO_FINDINGS = "no_findings"
    NOT_ANALYSED = "not_analysed"


class Kind(StrEnum):
    """What a code does to the analysis."""

    REFUSAL = "refusal"
    NOTICE = "notice"
    FAILURE = "failure"


class Code(StrEnum):
    """Stable identifiers of reasons and warnings."""

    NOT_CT = "NOT_CT"
    LOCALIZER_ONLY = "LOCALIZER_ONLY"
    DERIVED_SERIES = "DERIVED_SERIES"
    NO_GEOMETRY = "NO_GEOMETRY"
    BAD_ORIENTATION = "BAD_ORIENTATION"
    NOT_AXIAL = "NOT_AXIAL"
    MIXED_GEOMETRY = "MIXED_GEOMETRY"
    DUPLICATE_POSITIONS = "DUPLICATE_POSITIONS"
    MISSING_SLICES = "MISSING_SLICES"
    IRREGULAR_SPACING = "IRREGULAR_SPACING"
    TILT_TOO_LARGE = "TILT_TOO_LARGE"
    SLICES_TOO_THICK = "SLICES_TOO_THICK"
    PIXELS_TOO_LARGE = "PIXELS_TOO_LARGE"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    COVERAGE_TOO_SHORT = "COVERAGE_TOO_SHORT"
    NO_LUNG_FOUND = "NO_LUNG_FOUND"
    HU_UNDEFINED = "HU_UNDEFINED"
    HU_IMPLAUSIBLE = "HU_IMPLAUSIBLE"
    UNSUPPORTED_PIXELS = "UNSUPPORTED_PIXELS"
    DECODE_FAILED = "DECODE_FAILED"
    CORRUPT_INSTANCE = "CORRUPT_INSTANCE"
    MIXED_PATIENT = "MIXED_PATIENT"
    TOO_LARGE = "TOO_LARGE"
    TIMED_OUT_INCOMPLETE = "TIMED_OUT_INCOMPLETE"
    OUT_OF_SCOPE = "OUT_OF_SCOPE"
    TOO_MANY_REVISIONS = "TOO_MANY_REVISIONS"

    SLICES_INTERPOLATED = "SLICES_INTERPOLATED"
    TILT_CORRECTED = "TILT_CORRECTED"
    THICK_SLICES = "THICK_SLICES"
    SAMPLING_GAP = "SAMPLING_GAP"
    SHORT_COVERAGE = "SHORT_COVERAGE"
    LUNG_CUT = "LUNG_CUT"
    LUNG_MASK_UNUSED = "LUNG_MASK_UNUSED"
    SLICES_DO_NOT_FIT = "SLICES_DO_NOT_FIT"
    SHARP_KERNEL = "SHARP_KERNEL"
    CONTRAST = "CONTRAST"
    LOSSY_INPUT = "LOSSY_INPUT"
    LARGE_PIXELS = "LARGE_PIXELS"
    EXTRA_IMAGES_DROPPED = "EXTRA_IMAGES_DROPPED"
    INSTANCE_CHANGED = "INSTANCE_CHANGED"
    LATE_IMAGES = "LATE_IMAGES"
    UID_NONCONFORMANT = "UID_NONCONFORMANT"
    PADDING_GUESSED = "PADDING_GUESSED"

    DETECTOR_FAILED = "DETECTOR_FAILED"
    INTERNAL_BUG = "INTERNAL_BUG"


@dataclass(frozen=True, slots=True)
class CodePage:
    """What ``docs/codes.md`` says of a code.

    Attributes
    ----------
    kind
        Whether the code ends the analysis, accompanies it, or names a failure of ours.
    meaning
        One general sentence; a refusal or notice itself carries the particular one, with places and numbers.
    cause
        What usually leads to it.
    action
        What the administrator or the radiologist does.
    """

    kind: Kind
    meaning: str
    cause: str
    action: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning that goes on into the report: a code and one ASCII sentence without patient data."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An expected end without a result.

    Attributes
    ----------
    code
        Stable reason.
    text
        One ASCII sentence: where (UID or position), found, expected, what to do. No patient data.
    retryable
        Whether the same input may succeed later without anybody changing it.
    """

    code: Code
    text: str
    retryable: bool = False


def _refusal(meaning: str, cause: str, action: str) -> CodePage:
    return CodePage(Kind.REFUSAL, meaning, cause, action)


def _notice(meaning: str, cause: str, action: str) -> CodePage:
    return CodePage(Kind.NOTICE, meaning, cause, action)


def _failure(meaning: str, cause: str, action: str) -> CodePage:
    return CodePage(Kind.FAILURE, meaning, cause, action)


CODES: Mapping[Code, CodePage] = MappingProxyType(
    {
        Code.NOT_CT: _refusal(
            "This series is not a CT image series.",
            "Dose reports, secondary captures, MR, RT and other objects travel with the study.",
            "Nothing, unless a chest CT was expected: then check what the router sends.",
        ),
        Code.LOCALIZER_ONLY: _refusal(
            "Only scout images were received.",
            "The axial series has not been sent, or goes elsewhere.",
            "Send the axial series.",
        ),
        Code.DERIVED_SERIES: _refusal(
            "These are reformatted or derived images, not original axial slices.",
            "MPR, MIP, thick slabs or subtraction images.",
            "Send the original axial reconstruction.",
        ),
        Code.NO_GEOMETRY: _refusal(
            "Slices lack position or orientation.",
            "Image Position (Patient), Image Orientation (Patient) or Pixel Spacing is missing or unreadable.",
            "Send the images as the scanner made them.",
        ),
        Code.BAD_ORIENTATION: _refusal(
            "Slice orientation vectors are not valid.",
            "The two vectors of Image Orientation (Patient) are not unit length or not at right angles.",
            "Check the software that wrote or anonymised the images.",
        ),
        Code.NOT_AXIAL: _refusal(
            "The slices are not axial.",
            "Coronal or sagittal images, or strongly oblique ones.",
            "Send the axial series.",
        ),
        Code.MIXED_GEOMETRY: _refusal(
            "Slices of different size, pixel spacing or orientation cannot form one volume.",
            "Several reconstructions were written into one series.",
            "Send each reconstruction as a series of its own.",
        ),
        Code.DUPLICATE_POSITIONS: _refusal(
            "Several different images share one position and cannot be told apart.",
            "Perfusion, gated or repeated acquisitions in one series.",
            "Send one acquisition for each series.",
        ),
        Code.MISSING_SLICES: _refusal(
            "Slices are missing between two positions.",
            "The transfer was cut, or the archive does not hold every slice.",
            "Send the missing slices: the study is then analysed again.",
        ),
        Code.IRREGULAR_SPACING: _refusal(
            "The distance between slices varies.",
            "Two protocols in one series, or slices removed in a pattern.",
            "Send a series with one spacing.",
        ),
        Code.TILT_TOO_LARGE: _refusal(
            "The gantry tilt is beyond what can be corrected.",
            "Positions move along another direction than the slice normal by more than 30 degrees.",
            "Send an untilted acquisition.",
        ),
        Code.SLICES_TOO_THICK: _refusal(
            "Slices are thicker or farther apart than the limit.",
            "Only a thick reconstruction was sent.",
            "Send the thin reconstruction, or raise selection.max_thickness_mm or max_spacing_mm (at most 5.0).",
        ),
        Code.PIXELS_TOO_LARGE: _refusal(
            "Pixel spacing is above the limit.",
            "A very large field of view or a small matrix.",
            "Send the reconstruction with the chest field of view.",
        ),
        Code.TOO_FEW_SLICES: _refusal(
            "There are too few slices for a chest.",
            "A partial transfer, a single image or a biopsy series.",
            "Send the whole axial series.",
        ),
        Code.COVERAGE_TOO_SHORT: _refusal(
            "The scan covers too little of the chest.",
            "Another body region, or only part of the series has arrived.",
            "Send the whole axial series.",
        ),
        Code.NO_LUNG_FOUND: _refusal(
            "No lungs were found in the images.",
            "Another body region, or a phantom without lungs.",
            "Nothing, unless this is a chest: then report it with the series' acquisition data.",
        ),
        Code.HU_UNDEFINED: _refusal(
            "Rescale values are missing or not in Hounsfield units.",
            "Rescale Slope or Intercept is absent, or Rescale Type is not HU.",
            "Send the images as the scanner made them.",
        ),
        Code.HU_IMPLAUSIBLE: _refusal(
            "The grey values do not look like a CT of the body.",
            "A wrong rescale, a phantom, or images of something else.",
            "Check the rescale attributes of the series.",
        ),
        Code.UNSUPPORTED_PIXELS: _refusal(
            "This pixel format cannot be read.",
            "Bits, colour or photometric interpretation that no CT uses, or 8-bit lossy compression.",
            "Send the series uncompressed or with lossless compression.",
        ),
        Code.DECODE_FAILED: _refusal(
            "An image could not be decompressed.",
            "A damaged stream, or a compression for which no decoder is installed.",
            "Run 'nodule-node doctor' for the decoders; send the series uncompressed.",
        ),
        Code.CORRUPT_INSTANCE: _refusal(
            "An image is damaged or cut short.",
            "A broken transfer or file before it reached the node; the bytes are kept as received.",
            "Send the image again.",
        ),
        Code.MIXED_PATIENT: _refusal(
            "Images of one study carry different patient identities.",
            "A merge or a correction at the archive went half way.",
            "Correct the study at the archive and send it again.",
        ),
        Code.TOO_LARGE: _refusal(
            "The series is beyond the size limits.",
            "More slices or pixels than any chest CT has, or a header that claims so.",
            "Nothing, if the images are not a chest CT; else raise the limits in [selection].",
        ),
        Code.TIMED_OUT_INCOMPLETE: _refusal(
            "The series was still incomplete at the end of the longest wait.",
            "Images kept arriving or slices stayed missing until study.max_wait_s.",
            "Send the missing slices: the study is then analysed again. With a good grid this is only a warning.",
        ),
        Code.OUT_OF_SCOPE: _refusal(
            "Patient or study is outside the allowed use.",
            "An age below the limit, or an entry in the skip list.",
            "Nothing: this is a rule of the site.",
        ),
        Code.TOO_MANY_REVISIONS: _refusal(
            "The study changed again after several reports and is not analysed by itself any more.",
            "A device that sends the same images again and again with other content, or images over many hours.",
            "Check what sends the study; then ask for one more analysis with 'nodule-node retry STUDY'.",
        ),
        Code.SLICES_INTERPOLATED: _notice(
            "Missing slices were filled in from their neighbours.",
            "One or two inner slices did not arrive.",
            "Send the missing slices; look at the filled positions by eye.",
        ),
        Code.TILT_CORRECTED: _notice(
            "Gantry tilt was corrected before the analysis.",
            "The acquisition was tilted or sheared.",
            "Nothing: positions in the report refer to the original slices.",
        ),
        Code.THICK_SLICES: _notice(
            "Slices are thicker than the model's training data; small nodules may be missed.",
            "Only a reconstruction above 2.5 mm was sent.",
            "Send a thin reconstruction.",
        ),
        Code.SAMPLING_GAP: _notice(
            "There are unscanned gaps between slices.",
            "Slice spacing is larger than slice thickness.",
            "Send a contiguous reconstruction.",
        ),
        Code.SHORT_COVERAGE: _notice(
            "The lungs may not be covered fully: the scan is short.",
            "Less than 200 mm along the patient.",
            "Check that all slices were sent.",
        ),
        Code.LUNG_CUT: _notice(
            "The lungs may not be covered fully: lung touches the first or last slice or the image edge.",
            "The scan or the transfer ends inside the lung, or the field of view is too narrow.",
            "Check that all slices were sent; send a reconstruction that holds both lungs.",
        ),
        Code.LUNG_MASK_UNUSED: _notice(
            "The lung volume found is implausible, so the whole body was searched.",
            "More than 12 l of air inside the body: emphysema, pneumothorax, bowel, or a failed segmentation.",
            "Expect more false marks outside the lung.",
        ),
        Code.SLICES_DO_NOT_FIT: _notice(
            "Neighbouring slices do not fit together.",
            "Images exchanged, blank, of another acquisition, or with another rescale than their headers say.",
            "Look at the named slices; send the series again as the scanner made it.",
        ),
        Code.SHARP_KERNEL: _notice(
            "The reconstruction kernel is sharper than most of the training data.",
            "A lung or bone kernel.",
            "Expect more marks from noise and edges; send the standard kernel where there is one.",
        ),
        Code.CONTRAST: _notice(
            "The scan was made with contrast medium.",
            "Contrast/Bolus Agent is filled in.",
            "Expect more marks at vessels.",
        ),
        Code.LOSSY_INPUT: _notice(
            "The images were compressed with loss.",
            "A lossy transfer syntax or Lossy Image Compression = 01.",
            "Send lossless images.",
        ),
        Code.LARGE_PIXELS: _notice(
            "Pixels are larger than 1 mm; small nodules may be missed.",
            "A large field of view.",
            "Send the chest field of view.",
        ),
        Code.EXTRA_IMAGES_DROPPED: _notice(
            "Images of the series were left out: scout, odd or repeated ones, or those of another volume.",
            "A localizer, repeated images, images of another size, or two acquisitions inside the series.",
            "Look at the number: if it is large, send each acquisition as a series of its own.",
        ),
        Code.INSTANCE_CHANGED: _notice(
            "Images arrived again with other content; the newest were used.",
            "A correction at the archive, or two devices that use the same UID.",
            "Check the study at the archive.",
        ),
        Code.LATE_IMAGES: _notice(
            "Images arrived after an earlier report; this report replaces it.",
            "A slow or interrupted transfer.",
            "Nothing.",
        ),
        Code.UID_NONCONFORMANT: _notice(
            "A UID breaks the rules of DICOM but was kept as it is.",
            "Leading zeros or an odd root.",
            "Tell the maker of the sending device.",
        ),
        Code.PADDING_GUESSED: _notice(
            "Pixels outside the scan field were recognised by their value alone.",
            "Pixel Padding Value is missing or does not fit the pixels.",
            "Nothing.",
        ),
        Code.DETECTOR_FAILED: _failure(
            "The detector stopped without an answer.",
            "Out of memory, a device error, or a crash in a decoder.",
            "Run 'nodule-node doctor'; the log names the error.",
        ),
        Code.INTERNAL_BUG: _failure(
            "The node met a case that its authors did not foresee.",
            "A bug.",
            "Report it with the log's traceback, which holds no patient data.",
        ),
    }
)
