"""A training recipe: everything that decides about a run, read from TOML; unknown keys are refused."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from training.sampling import Mixture

if TYPE_CHECKING:
    from pathlib import Path


T = TypeVar("T")


class RecipeError(Exception):
    """A recipe that cannot be used; the text names the key."""


@dataclass(frozen=True, slots=True)
class ScreeningRecipe:
    """Stage 1.

    Attributes
    ----------
    network
        ``modern`` (heat map) or ``fcn`` (the paper's).
    widths, neck
        Channels; ``neck`` for ``modern`` alone.
    patch
        Voxels z, y, x of a training crop.
    batch
        Crops, or patches before filtering.
    optimiser, learning_rate, weight_decay
        AdamW with a cosine (``adamw``), or SGD with Nesterov momentum 0.9 and two steps (``sgd``).
    warm_up
        Steps of rising learning rate.
    minutes, steps
        Length of the run: wall time, or a number of steps when ``steps`` is not 0.
    average
        Decay of the running average of weights; 0 for none.
    filtering
        Online sample filtering (``fcn``).
    shape_weight
        Of centre and size against the heat (``modern``).
    mixture
        Where crops come from (``modern``).
    """

    network: Literal["modern", "fcn"] = "modern"
    widths: tuple[int, ...] = (24, 48, 96, 128, 160)
    neck: int = 64
    patch: tuple[int, int, int] = (48, 96, 96)
    batch: int = 4
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-2
    warm_up: int = 100
    minutes: float = 50.0
    steps: int = 0
    average: float = 0.998
    filtering: bool = False
    shape_weight: float = 0.5
    mixture: Mixture = field(default_factory=Mixture)


@dataclass(frozen=True, slots=True)
class ReductionRecipe:
    """Stage 2; attributes as in :class:`ScreeningRecipe` where they have the same name.

    Attributes
    ----------
    ship
        Whether the bundle should hold it.
    network
        ``resnet-hl``: residual, with the hybrid loss, as the paper's best; ``resnet``: without the regression head;
        ``deepnet``: without the skips too.
    shared, deep, head, squeeze
        Channels, hidden units of the heads, and squeeze-and-excitation, as in ``ResidualWidths``.
    """

    ship: bool = False
    network: Literal["deepnet", "resnet", "resnet-hl"] = "resnet-hl"
    shared: tuple[int, int, int] = (32, 32, 64)
    deep: tuple[int, int] = (128, 128)
    head: int = 128
    squeeze: bool = False
    batch: int = 16
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 2e-4
    warm_up: int = 100
    minutes: float = 20.0
    steps: int = 0
    average: float = 0.997
    filtering: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes
    ----------
    name, seed
        Of the run.
    precision
        Of the forward pass while training; weights, losses and statistics stay float32.
    threads
        Of torch on the CPU.
    device
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    resident
        Most scans in memory at a time while patches are cut, 0 for all; more take turns.
    screening, reduction
        The stages.
    """

    name: str
    seed: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 2
    device: str = "auto"
    resident: int = 0
    screening: ScreeningRecipe = field(default_factory=ScreeningRecipe)
    reduction: ReductionRecipe = field(default_factory=ReductionRecipe)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises
    ------
    RecipeError
        Naming the file and the key that is unknown or has the wrong type.
    """
    with path.open("rb") as file:
        table = tomllib.load(file)
    try:
        return build_recipe(table)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def build_recipe(table: dict[str, Any]) -> Recipe:
    """Make a recipe of plain values, as TOML or a checkpoint hold them; raises as :func:`load_recipe`."""
    return _build(Recipe, table, "")


def _build(kind: type[T], table: dict[str, Any], where: str) -> T:
    types = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise RecipeError(f"unknown key {where}{key}; known are {', '.join(sorted(known))}.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        wanted = types[key]
        if is_dataclass(wanted):
            values[key] = _build(wanted, value, f"{where}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(str(error)) from None
