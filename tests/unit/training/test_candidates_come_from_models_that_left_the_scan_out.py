from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer

from tests.unit.training.tiny import scan
from training import export, reduction
from training.cli.train import _proposed, recipe_path
from training.recipes import load_recipe
from training.scans import save_scan
from training.team import ALONE

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = load_recipe(recipe_path("modern"))
PERSONS = {"a1": "a", "a2": "a", "b": "b", "phantom-1": ""}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for name, person in PERSONS.items():
        save_scan(replace(scan(name), person=person), tmp_path)
    return tmp_path


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Which checkpoint searched which scan."""
    by: dict[str, str] = {}

    def find(stage, weights, scans, *, device):
        by.update((one.name, weights) for one in scans)
        return {one.name: np.zeros((1, 3)) for one in scans}

    monkeypatch.setattr(export, "load_checkpoint", lambda path: (RECIPE, path.name, 1))
    monkeypatch.setattr(reduction, "find_candidates", find)
    return by


def test_each_persons_scans_are_searched_with_the_checkpoint_given_for_them(scans: Path, searched: dict[str, str]):
    found = _proposed({"": "all.pt", "a": "without-a.pt"}, scans, sorted(PERSONS), ALONE)
    assert searched == {"a1": "without-a.pt", "a2": "without-a.pt", "b": "all.pt", "phantom-1": "all.pt"}
    assert sorted(found) == sorted(PERSONS)


def test_a_person_that_no_scan_is_of_is_refused(scans: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit):
        _proposed({"": "all.pt", "c": "without-c.pt"}, scans, sorted(PERSONS), ALONE)
    assert "has no scan made from c." in capsys.readouterr().err
