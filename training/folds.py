"""Folds: which scans train, validate and test, and the guard that no scan is judged by a model that saw it.

Pure. The official division is LUNA16's: fold i tests on subset i, validates on subset i + 1, trains on the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

VALIDATION_PART = 4
"""With two subsets there is none left for validation: one person in so many of the training subset serves."""


class LeakError(Exception):
    """A scan, or another scan of the same person, would be judged by a model that saw it; the text names it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A scan in the division: its UID, whose it is, its subset, and how many nodules it has."""

    uid: str
    person: str
    subset: int
    nodules: int = 0


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: UIDs of the scans to train on, to choose thresholds on, and to judge."""

    number: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def seen(self) -> tuple[str, ...]:
        """Scans that had any part in the model: training and validation."""
        return (*self.train, *self.validation)


def divide(members: Sequence[Member]) -> tuple[Fold, ...]:
    """Divide scans by their subsets, a fold for each.

    Raises
    ------
    ValueError
        When there are fewer than two subsets, or nothing to train or validate on.
    LeakError
        When a person's scans lie in several subsets.
    """
    subsets = sorted({m.subset for m in members})
    if len(subsets) < 2:
        raise ValueError(f"Cross-validation needs scans in two subsets at least, found {len(subsets)}.")
    folds = []
    for place, subset in enumerate(subsets):
        test = [m for m in members if m.subset == subset]
        following = subsets[(place + 1) % len(subsets)]
        if len(subsets) > 2:
            validation = [m for m in members if m.subset == following]
            train = [m for m in members if m.subset not in (subset, following)]
        else:
            train, validation = _two(m for m in members if m.subset == following)
        if not train or not validation:
            raise ValueError(f"Fold {subset} has nothing to train or to validate on; more scans are needed.")
        fold = Fold(subset, _uids(train), _uids(validation), _uids(test))
        check(fold, {m.uid: m.person for m in members})
        folds.append(fold)
    return tuple(folds)


def _two(members: Iterable[Member]) -> tuple[list[Member], list[Member]]:
    """Set every fourth person aside for validation, one at least, those with nodules first."""
    rows = list(members)
    sick = {m.person for m in rows if m.nodules}
    persons = sorted(
        {m.person for m in rows}, key=lambda p: (p not in sick, hashlib.sha256(p.encode()).hexdigest())
    )
    aside = set(persons[: max(1, len(persons) // VALIDATION_PART)])
    return [m for m in rows if m.person not in aside], [m for m in rows if m.person in aside]


def _uids(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(sorted(m.uid for m in members))


def check(fold: Fold, persons: Mapping[str, str]) -> None:
    """Refuse a fold in which a scan or a person is in two of training, validation and test.

    Raises
    ------
    LeakError
        Naming the scan and both places.
    """
    where: dict[str, tuple[str, str]] = {}
    for place, uids in (("training", fold.train), ("validation", fold.validation), ("test", fold.test)):
        for uid in uids:
            for key in {uid, persons.get(uid, uid)}:
                other, its = where.setdefault(key, (place, uid))
                if other != place:
                    raise LeakError(
                        f"Fold {fold.number}: {uid} is for {place} and {its}, of the same person, for {other}. "
                        "Put all scans of a person into one subset."
                    )


def refuse_seen(judged: Iterable[str], seen: Iterable[str], persons: Mapping[str, str]) -> None:
    """Refuse to judge scans by a model that saw them or their persons.

    Raises
    ------
    LeakError
        Naming the first such scan.
    """
    known = {key for uid in seen for key in (uid, persons.get(uid, uid))}
    for uid in judged:
        if uid in known or persons.get(uid, uid) in known:
            raise LeakError(
                f"{uid} was seen by this model in training or validation, or another scan of the same person was; "
                "it cannot be judged by it."
            )
