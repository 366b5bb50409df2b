"""docs/training.md shows the recipes as their files are, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.recipe_table import HEADER, gmac, row
from training.recipes import load_recipe
from training.screening import make_network

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "training.md").read_text()
RECIPES = sorted((ROOT / "config" / "recipes").glob("*.toml"))


def part(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_stands_in_the_table_as_its_file_has_it(path: Path):
    assert row(load_recipe(path)) in part("Recipes")


def test_the_table_holds_nothing_else():
    table = [line for line in part("Recipes").splitlines() if line.startswith("| ")]
    assert table[0] == HEADER.splitlines()[0]
    names = [line.split(" | ")[0].removeprefix("| ") for line in table[1 : 1 + len(RECIPES)]]
    assert sorted(names) == sorted(path.stem for path in RECIPES)


def test_the_cost_of_the_papers_first_stage_is_that_of_its_layers():
    stage = load_recipe(ROOT / "config" / "recipes" / "paper.toml").screening
    network = make_network(stage).to("meta")
    one_patch = 8 * 26 * 26 * 32 * 75 + 6 * 9 * 9 * 32 * 75 * 32 + 4 * 5 * 5 * 64 * 75 * 32 + 64 * 100 * 250 + 500
    assert gmac(network, [10, 30, 30]) == pytest.approx(one_patch / 1e9, rel=1e-12)


def test_every_test_of_the_list_exists():
    rows = re.findall(r"^\| (T\d+) \| .* \| (.+) \|$", part("What is tested where"), re.MULTILINE)
    assert [name for name, _ in rows] == [f"T{number}" for number in range(1, 15)]
    for name, files in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", files)
        assert named, name
        assert [file for file in named if not (ROOT / file).is_file()] == [], name
