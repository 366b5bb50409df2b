"""Weights: one safetensors file with the networks of both stages and a card that says what they are.

The card holds every number that training and node must share; nothing about a network is guessed from its tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.nets.residual import ResidualNet, ResidualWidths
from pipeline.detect.resample import PREPROCESSING, Preprocessing
from pipeline.domain.finding import ModelIdentity, OperatingPoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    ScreeningNet = FCN | ModernNet

SCHEMA = 1
BUNDLED = Path(__file__).parents[1] / "weights" / "nodule.safetensors"
FORBID = ConfigDict(extra="forbid")


class WeightsError(Exception):
    """Weights that cannot be used; the message is one sentence for the administrator."""


@dataclass(frozen=True, slots=True)
class ScreeningSpec:
    """The first stage.

    Attributes
    ----------
    network
        ``fcn`` is the paper's, ``modern`` the encoder-decoder.
    widths
        Channels of its levels: four for ``fcn``, five for ``modern``.
    neck
        Channels of the decoder; ``modern`` only.
    patch_zyx
        Voxels of a training patch.
    tile_zyx
        Scores of one tile for ``fcn``, most voxels of one tile for ``modern``.
    margin_zyx
        Voxels at an inner edge of a tile whose answer is thrown away; ``modern`` only.
    floor
        Least score of a candidate.
    window_zyx
        Cells among which a candidate has the highest score.
    distance_mm
        Candidates are at least this far apart.
    cap
        Most candidates of one scan.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    network: Literal["fcn", "modern"]
    widths: tuple[int, ...]
    neck: int
    patch_zyx: tuple[int, int, int]
    tile_zyx: tuple[int, int, int]
    margin_zyx: tuple[int, int, int]
    floor: float
    window_zyx: tuple[int, int, int]
    distance_mm: float = 5.0
    cap: int = 100


FCN_SCREENING = ScreeningSpec(
    "fcn", (32, 32, 64, 250), 0, (10, 30, 30), (32, 32, 32), (0, 0, 0), 0.85, (5, 5, 5), cap=300
)
MODERN_SCREENING = ScreeningSpec(
    "modern", (24, 48, 96, 128, 160), 64, (48, 96, 96), (96, 352, 512), (8, 16, 16), 0.02, (3, 3, 3)
)


@dataclass(frozen=True, slots=True)
class ReductionSpec:
    """The second stage: its network and how many patches it takes at once."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    widths: ResidualWidths
    batch: int = 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """From the stages' scores to a raw score, and from that to a probability.

    Attributes
    ----------
    a, b, c
        raw = sigmoid(a logit(p1) + b logit(p2) + c); without a second stage ``b`` is not used.
    slope, shift
        probability = sigmoid(slope logit(raw) + shift), where there are no knots (Platt).
    knots
        Raw score and probability at the corners of a rising line (isotonic regression), by rising score.
    data_set
        Held-out marks on which this was fitted; empty where nothing was.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    a: float
    b: float
    c: float
    slope: float = 1.0
    shift: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    data_set: str = ""


@dataclass(frozen=True, slots=True)
class CardOperatingPoint:
    """A threshold on the calibrated probability, and what it cost and found on a named set.

    ``sensitivity_low`` and ``sensitivity_high`` bound the bootstrap's 95 % interval; None where none was drawn.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    threshold: float
    expected_fp_per_scan: float
    sensitivity: float
    data_set: str
    sensitivity_low: float | None = None
    sensitivity_high: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A set the weights were trained on, and the licence that allows shipping them."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    licence: str


@dataclass(frozen=True, slots=True)
class Card:
    """What a weights file says of itself.

    Attributes
    ----------
    name, version
        Of these weights.
    recipe
        Training recipe.
    preprocessing
        Must equal the node's own.
    screening, reduction
        The stages; without a second one the first must regress centre and diameter.
    calibration
        From scores to a probability.
    operating_points
        The default one first.
    training_data
        Sets and licences.
    seed
        Of the training run.
    code_version
        Version of this distribution that trained.
    schema
        Of the card itself.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    version: str
    recipe: str
    preprocessing: Preprocessing
    screening: ScreeningSpec
    reduction: ReductionSpec | None
    calibration: Calibration
    operating_points: tuple[CardOperatingPoint, ...]
    training_data: tuple[TrainingData, ...]
    seed: int
    code_version: str
    schema: int = SCHEMA

    def points(self) -> tuple[OperatingPoint, ...]:
        """Give the operating points in the vocabulary of the domain."""
        return tuple(OperatingPoint(p.name, p.threshold, p.expected_fp_per_scan) for p in self.operating_points)


CARD = TypeAdapter(Card)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A weights file, loaded: its card and both networks in evaluation mode, float32, on the CPU."""

    card: Card
    sha256: str
    screening: ScreeningNet
    reduction: ResidualNet | None

    @property
    def identity(self) -> ModelIdentity:
        """Name, version, recipe and hash for the report."""
        return ModelIdentity(self.card.name, self.card.version, self.card.recipe, self.sha256)


def build_screening(spec: ScreeningSpec) -> ScreeningNet:
    """Make the first-stage network with fresh weights."""
    return FCN(spec.widths) if spec.network == "fcn" else ModernNet(spec.widths, spec.neck)


def build_reduction(spec: ReductionSpec | None) -> ResidualNet | None:
    """Make the second-stage network with fresh weights, where the card has one."""
    return None if spec is None else ResidualNet(spec.widths)


def save_weights(path: Path, card: Card, screening: ScreeningNet, reduction: ResidualNet | None = None) -> None:
    """Write both networks in bfloat16 with their card."""
    tensors = {
        f"{stage}.{name}": tensor.detach().cpu().to(torch.bfloat16).contiguous()
        for stage, net in (("screening", screening), ("reduction", reduction))
        if net is not None
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(tensors, path, metadata={"card": CARD.dump_json(card).decode()})


def load_weights(path: str | Path = "bundled") -> Weights:
    """Read a weights file.

    Parameters
    ----------
    path
        A file, or ``"bundled"`` for the one that comes with the package.

    Raises
    ------
    WeightsError
        When the file is missing, is not ours, was made for another preprocessing, or does not fit its card.
    """
    file = BUNDLED if path == "bundled" else Path(path)
    if not file.is_file():
        raise WeightsError(f"There is no weights file at {file}; set detector.weights to one, or to 'bundled'.")
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("card")
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{file} is not a weights file in safetensors form ({error}); copy it again.") from error
    card = _card(file, text)
    screening, reduction = build_screening(card.screening), build_reduction(card.reduction)
    _fill(file, screening, tensors, "screening.")
    if reduction is not None:
        _fill(file, reduction, tensors, "reduction.")
    return Weights(card, hashlib.sha256(file.read_bytes()).hexdigest(), screening, reduction)


def _card(file: Path, text: str | None) -> Card:
    if text is None:
        raise WeightsError(f"{file} carries no card; export it with 'nodule-train export'.")
    try:
        card = CARD.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"The card of {file} does not fit this version ({place}: {first['msg']}); take weights made for it."
        ) from error
    if card.schema != SCHEMA:
        raise WeightsError(f"The card of {file} has schema {card.schema}, expected {SCHEMA}; take other weights.")
    if card.preprocessing != PREPROCESSING:
        raise WeightsError(
            f"{file} was trained on {card.preprocessing}, expected {PREPROCESSING}; take weights of this version."
        )
    if not card.operating_points:
        raise WeightsError(f"The card of {file} names no operating point; export it again.")
    regresses = card.screening.network == "modern" if card.reduction is None else card.reduction.widths.regression
    if not regresses:
        raise WeightsError(f"No stage of {file} gives a diameter; export it with a regression head.")
    return card


def _fill(file: Path, net: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    counts = {name: value for name, value in net.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        net.load_state_dict(counts | own)
    except RuntimeError as error:
        raise WeightsError(f"The tensors of {file} do not fit its card; export it again.") from error
    net.eval()
