"""Which series of a study to analyse, and why not the others: hard rules, then a score. Pure.

Texts only score. Of several reasons against a series that of the assembly is told, else the first in
:data:`CHECK_ORDER`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.domain.outcome import Code, Notice, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.domain.limits import SelectionLimits

CHECK_ORDER = tuple(Code)
"""The list of codes is written in the order of the checks (decision 0003)."""

EXCLUDED_TYPES = frozenset(
    {"LOCALIZER", "MIP", "MINIP", "MPR", "PROJECTION", "VOLREN", "SCREENSAVE", "SECONDARY", "REFORMATTED"}
)
WORDS_FOR = ("CHEST", "THORAX", "LUNG", "LDCT", "INSP")
WORDS_AGAINST = ("ABD", "HEAD", "NECK", "CARDIAC", "EXP", "MPR", "MIP", "AVERAGE", "COR", "SAG")
THIN_MM = 1.25
FIELD_EDGE_MM = 1e-3

SOFT, MEDIUM, SHARP, UNKNOWN = "soft", "medium", "sharp", "unknown"
KERNEL_POINTS: Mapping[str, float] = {SOFT: 1.0, MEDIUM: 0.5, SHARP: 0.0, UNKNOWN: 0.0}
NAMED_KERNELS: Mapping[str, str] = {
    **dict.fromkeys(("STANDARD", "STD", "SOFT", "CHEST", "A", "B", "C"), SOFT),
    **dict.fromkeys(("DETAIL", "STD+"), MEDIUM),
    **dict.fromkeys(("LUNG", "BONE", "BONEPLUS", "BONE+", "EDGE", "ULTRA", "D", "L", "YC", "YD", "YE"), SHARP),
}
SIEMENS_SOFT_TO, SIEMENS_SHARP_FROM = 50, 60
CANON_SOFT_TO, CANON_SHARP_FROM = 13, 50


@dataclass(frozen=True, slots=True)
class StackFacts:
    """Geometry of the volume a series can form.

    Attributes
    ----------
    slices, missing
        Slices received, and inner ones to be filled in.
    spacing_mm, thickness_mm, pixel_mm
        Slice distance, slice thickness (the distance where it is missing), larger pixel spacing.
    rows, columns
        Size of the matrix as received.
    axial_angle_deg, tilt_deg
        Angle to the patient's long axis; angle of the shear.
    """

    slices: int
    missing: int
    spacing_mm: float
    thickness_mm: float
    pixel_mm: float
    rows: int
    columns: int
    axial_angle_deg: float
    tilt_deg: float

    @property
    def coverage_mm(self) -> float:
        """Length along the stack that the slices stand for."""
        return (self.slices + self.missing) * self.spacing_mm


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What selection looks at; no name, no identifier of the patient, no description.

    Attributes
    ----------
    ct_images
        Number of CT images or frames; 0 for a series of anything else.
    stack
        Its geometry; ``None`` when the assembly refused it.
    unassembled
        Why the assembly refused it.
    refusals
        What reading and the pixel formats have against it.
    notices
        Warnings of the assembly.
    image_type
        Of the majority of its images, upper case.
    kernel_class
        One of soft, medium, sharp, unknown.
    text_score
        From -1 to 1, see :func:`score_text`.
    age_years
        ``None`` when unknown.
    """

    study_uid: str
    series_uid: str
    series_number: int | None
    ct_images: int
    stack: StackFacts | None = None
    unassembled: Refusal | None = None
    refusals: tuple[Refusal, ...] = ()
    notices: tuple[Notice, ...] = ()
    image_type: tuple[str, ...] = ()
    kernel_class: str = UNKNOWN
    contrast: bool = False
    lossy: bool = False
    text_score: float = 0.0
    age_years: float | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """Whether a series is analysed, with what it was judged by.

    Attributes
    ----------
    study_uid, series_uid
        As received.
    eligible
        Whether it may be analysed.
    score
        Points of :func:`judge`; 0 when not eligible.
    refusal
        Why not; ``None`` when eligible.
    notices
        Warnings that go into the report if it is analysed.
    reasons
        Sentences for ``nodule-node explain``.
    facts
        Plain values: slices, spacing_mm, thickness_mm, coverage_mm, kernel, ...
    """

    study_uid: str
    series_uid: str
    series_number: int | None
    eligible: bool
    score: float
    refusal: Refusal | None
    notices: tuple[Notice, ...]
    reasons: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def is_ct(self) -> bool:
        """Whether the series holds CT images: only then is *not analysed* reported for it."""
        return bool(self.facts["ct_images"])


def rank(verdict: SeriesVerdict) -> tuple[float, float, float, float, float, str]:
    """Key to sort verdicts by, the best first.

    Eligible ones go by falling score, then by lowest Series Number, then by UID; after them the refused ones, those
    first that came furthest through the checks, then those with most images.
    """
    refusal, facts = verdict.refusal, verdict.facts
    stage = 3 if refusal is None else bool(facts["ct_images"]) + ("slices" in facts)
    passed = 0 if refusal is None else CHECK_ORDER.index(refusal.code)
    size = 0 if refusal is None else facts["ct_images"]
    number = float("inf") if verdict.series_number is None else verdict.series_number
    return -stage, -passed, -verdict.score, -size, number, verdict.series_uid


def judge(facts: SeriesFacts, limits: SelectionLimits) -> SeriesVerdict:
    """Say whether a series may be analysed, why or why not, and how well it suits.

    References
    ----------
    Decision 0003; the weights are keys of ``[selection]``.
    """
    against = refusals(facts, limits)
    refusal = next(iter(against), None)
    parts = [] if refusal or facts.stack is None else _score(facts, facts.stack, limits)
    return SeriesVerdict(
        study_uid=facts.study_uid,
        series_uid=facts.series_uid,
        series_number=facts.series_number,
        eligible=refusal is None,
        score=round(sum(points for _, points, _ in parts), 3),
        refusal=refusal,
        notices=facts.notices + _notices(facts, limits),
        reasons=tuple(r.text for r in against) if refusal else tuple(_sentence(*part) for part in parts),
        facts=_plain(facts),
    )


def refusals(facts: SeriesFacts, limits: SelectionLimits) -> tuple[Refusal, ...]:
    """Collect everything that speaks against a series, in the order of the checks."""
    if not facts.ct_images:
        return facts.refusals or (Refusal(Code.NOT_CT, "This series is not a CT image series."),)
    found = [*facts.refusals, *_type_refusals(facts), *_scope_refusals(facts, limits)]
    if facts.stack is not None:
        found += stack_refusals(facts.stack, limits)
    first = () if facts.unassembled is None else (facts.unassembled,)
    return (*first, *sorted(found, key=lambda r: CHECK_ORDER.index(r.code)))


def _type_refusals(facts: SeriesFacts) -> list[Refusal]:
    """Refuse what Image Type (PS3.3 C.7.6.1.1.2, C.8.2.1.1.1) says is not an original axial image."""
    kind = facts.image_type
    shown = "\\".join(kind) or "nothing"
    odd = [v for v in kind if v in EXCLUDED_TYPES or v.startswith("CSA")]
    original = kind[:1] in {("ORIGINAL",), ("MIXED",)} or (kind[:1] == ("DERIVED",) and "AXIAL" in kind[2:4])
    if original and "PRIMARY" in kind and not odd:
        return []
    return [Refusal(Code.DERIVED_SERIES, f"These are not original axial slices: Image Type is {shown}.")]


def _scope_refusals(facts: SeriesFacts, limits: SelectionLimits) -> list[Refusal]:
    found = []
    if facts.age_years is not None and facts.age_years < limits.min_age_years:
        text = f"The patient is younger than {limits.min_age_years} years."
        found.append(Refusal(Code.OUT_OF_SCOPE, text))
    if facts.skipped:
        found.append(Refusal(Code.OUT_OF_SCOPE, "The patient is on the site's skip list."))
    return found


def stack_refusals(stack: StackFacts, limits: SelectionLimits) -> list[Refusal]:
    """Hold a stack's geometry against the limits."""
    rules = (
        (
            Code.NOT_AXIAL,
            stack.axial_angle_deg > limits.max_axial_angle_deg,
            f"The slices are not axial: {stack.axial_angle_deg:.0f} degrees off, at most "
            f"{limits.max_axial_angle_deg:g} are allowed.",
        ),
        (
            Code.SLICES_TOO_THICK,
            stack.thickness_mm > limits.max_thickness_mm + FIELD_EDGE_MM,
            f"Slice thickness {stack.thickness_mm:.2f} mm is above the limit of {limits.max_thickness_mm:g} mm.",
        ),
        (
            Code.SLICES_TOO_THICK,
            stack.spacing_mm > limits.max_spacing_mm + FIELD_EDGE_MM,
            f"Slices are {stack.spacing_mm:.2f} mm apart; the limit is {limits.max_spacing_mm:g} mm.",
        ),
        (
            Code.PIXELS_TOO_LARGE,
            stack.pixel_mm > limits.max_pixel_mm + FIELD_EDGE_MM,
            f"Pixel spacing {stack.pixel_mm:.2f} mm is above the limit of {limits.max_pixel_mm:g} mm.",
        ),
        (
            Code.PIXELS_TOO_LARGE,
            min(stack.rows, stack.columns) < limits.min_rows,
            f"{stack.rows} x {stack.columns} pixels are fewer than the {limits.min_rows} needed on each side.",
        ),
        (
            Code.TOO_LARGE,
            max(stack.rows, stack.columns) > limits.max_rows,
            f"{stack.rows} x {stack.columns} pixels are more than {limits.max_rows} on a side.",
        ),
        (
            Code.TOO_FEW_SLICES,
            stack.slices < limits.min_slices,
            f"Only {stack.slices} slices; at least {limits.min_slices} are needed.",
        ),
        (
            Code.COVERAGE_TOO_SHORT,
            stack.coverage_mm < limits.min_coverage_mm - FIELD_EDGE_MM,
            f"The scan covers {stack.coverage_mm:.0f} mm; at least {limits.min_coverage_mm:g} mm are needed.",
        ),
    )
    return [Refusal(code, text) for code, broken, text in rules if broken]


def stack_notices(stack: StackFacts, limits: SelectionLimits) -> tuple[Notice, ...]:
    """Warn of a geometry that is allowed, but less than the model was trained on."""
    rules = (
        (
            Code.THICK_SLICES,
            max(stack.thickness_mm, stack.spacing_mm) > limits.warn_thickness_mm + FIELD_EDGE_MM,
            f"Slices of {max(stack.thickness_mm, stack.spacing_mm):.2f} mm are thicker than the model's training "
            "data; small nodules may be missed.",
        ),
        (
            Code.SHORT_COVERAGE,
            stack.coverage_mm < limits.warn_coverage_mm - FIELD_EDGE_MM,
            f"The scan covers {stack.coverage_mm:.0f} mm; the lungs may not be covered fully.",
        ),
        (
            Code.LARGE_PIXELS,
            stack.pixel_mm > limits.warn_pixel_mm + FIELD_EDGE_MM,
            f"Pixels of {stack.pixel_mm:.2f} mm are larger than in the training data.",
        ),
    )
    return tuple(Notice(code, text) for code, holds, text in rules if holds)


def _notices(facts: SeriesFacts, limits: SelectionLimits) -> tuple[Notice, ...]:
    rules = (
        (Code.SHARP_KERNEL, facts.kernel_class == SHARP, "The reconstruction kernel is a sharp one."),
        (Code.CONTRAST, facts.contrast, "The scan was made with contrast medium."),
        (Code.LOSSY_INPUT, facts.lossy, "The images were compressed with loss."),
    )
    said = tuple(Notice(code, text) for code, holds, text in rules if holds)
    return said + (stack_notices(facts.stack, limits) if facts.stack else ())


def _score(facts: SeriesFacts, stack: StackFacts, limits: SelectionLimits) -> list[tuple[str, float, float]]:
    """Points of each aspect, beside the most it could give."""
    thin = _ramp(stack.thickness_mm, limits.max_thickness_mm, min(THIN_MM, limits.max_thickness_mm))
    coverage = _ramp(
        stack.coverage_mm, limits.min_coverage_mm, max(limits.min_coverage_mm, limits.warn_coverage_mm)
    )
    isotropy = min(stack.pixel_mm, stack.spacing_mm) / max(stack.pixel_mm, stack.spacing_mm)
    shares = (
        (f"Slices of {stack.thickness_mm:.2f} mm", thin, limits.weight_thin),
        (f"Kernel {facts.kernel_class}", KERNEL_POINTS[facts.kernel_class], limits.weight_kernel),
        (f"Coverage of {stack.coverage_mm:.0f} mm", coverage, limits.weight_coverage),
        (
            "Contrast medium" if facts.contrast else "No contrast medium",
            not facts.contrast,
            limits.weight_no_contrast,
        ),
        ("Texts", facts.text_score, limits.weight_text),
        (f"Spacing {stack.spacing_mm:.2f} x {stack.pixel_mm:.2f} mm", isotropy, limits.weight_isotropy),
    )
    return [(name, share * weight, weight) for name, share, weight in shares]


def _sentence(name: str, points: float, most: float) -> str:
    return f"{name}: {points:.1f} of {most:g} points."


def _ramp(value: float, none_at: float, full_at: float) -> float:
    """Give the part of the points; where a site's limits leave no room between none and all, all of them."""
    return 1.0 if none_at == full_at else min(1.0, max(0.0, (value - none_at) / (full_at - none_at)))


def _plain(facts: SeriesFacts) -> Mapping[str, Any]:
    plain: dict[str, Any] = {
        "ct_images": facts.ct_images,
        "image_type": "\\".join(facts.image_type),
        "kernel": facts.kernel_class,
        "contrast": facts.contrast,
        "lossy": facts.lossy,
    }
    if facts.stack is not None:
        plain |= {k: round(v, 4) for k, v in asdict(facts.stack).items()}
        plain["coverage_mm"] = round(facts.stack.coverage_mm, 2)
    return plain


def score_text(text: str) -> float:
    """Score body part and descriptions (upper case): 1 for a chest, less for each word that speaks against it."""
    favour = 1.0 if any(word in text for word in WORDS_FOR) else 0.0
    return max(-1.0, favour - sum(bool(re.search(rf"\b{word}", text)) for word in WORDS_AGAINST))


def kernel_class(kernel: str, manufacturer: str = "") -> str:
    """Class of a Convolution Kernel: soft, medium, sharp or unknown.

    Siemens names end in a number that grows with sharpness (B30f, I50f, Br40d, Bl57), Canon's are FC01 to FC99.
    ``manufacturer`` (upper case) decides for the one-letter names, which are Philips's.
    """
    name = kernel.upper().strip()
    canon = re.match(r"FC(\d+)", name)
    if canon:
        return _by_number(int(canon[1]), CANON_SOFT_TO, CANON_SHARP_FROM)
    siemens = re.match(r"[A-Z]{1,2}(\d{2})", name)
    if siemens:
        return _by_number(int(siemens[1]), SIEMENS_SOFT_TO, SIEMENS_SHARP_FROM)
    first = re.split(r"[ _/]", name, maxsplit=1)[0]
    if len(first) == 1 and "PHILIPS" not in manufacturer:
        return UNKNOWN
    return NAMED_KERNELS.get(first, UNKNOWN)


def _by_number(number: int, soft_to: int, sharp_from: int) -> str:
    if number <= soft_to:
        return SOFT
    return SHARP if number >= sharp_from else MEDIUM
