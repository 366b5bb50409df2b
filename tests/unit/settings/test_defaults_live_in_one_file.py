"""``config/node.toml`` holds every default; the types hold none that could differ."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from pipeline.domain.limits import SelectionLimits
from scp_node.cli.generate_docs import read_reference
from scp_node.settings import PACKAGED_FILE, SECTIONS, Settings, load_settings


@pytest.fixture
def text() -> str:
    return PACKAGED_FILE.read_text(encoding="utf-8")


def test_file_and_types_have_the_same_sections_and_keys(text: str) -> None:
    _, sections = read_reference(text)
    in_file = {section.name.strip("[]"): [key.name for key in section.keys] for section in sections}
    in_types = {name: list(model.model_fields) for name, model in SECTIONS.items()} | {"routing": []}
    assert in_file == in_types
    assert set(in_types) == set(Settings.model_fields)


def test_every_key_has_a_meaning_that_ends_in_a_full_stop(text: str) -> None:
    _, sections = read_reference(text)
    without = [key.name for section in sections for key in section.keys if not key.meaning.endswith((".", ")"))]
    assert without == []


def test_only_entries_of_lists_have_defaults_in_their_types_and_the_file_shows_the_same(text: str) -> None:
    _, sections = read_reference(text)
    shown = {
        (section.name.strip("[]"), key.name): tomllib.loads(f"value = {key.default}")["value"]
        for section in sections
        for key in section.keys
        if section.name.startswith("[[") and key.default
    }
    typed = {
        (name, key): field.default
        for name, model in SECTIONS.items()
        for key, field in model.model_fields.items()
        if not field.is_required()
    }
    assert shown == typed


def test_selection_has_the_keys_and_defaults_of_the_pipelines_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = list(SECTIONS["selection"].model_fields)
    assert keys == [field.name for field in dataclasses.fields(SelectionLimits)]
    assert load_settings().selection.limits() == SelectionLimits()


def test_durations_and_lengths_carry_their_unit_and_are_numbers(text: str) -> None:
    values = tomllib.loads(text)
    timed = [
        (section, key, value)
        for section, keys in values.items()
        for key, value in keys.items()
        if key.endswith(("_s", "_mm"))
    ]
    assert len(timed) > 20
    for section, key, value in timed:
        numbers = value if isinstance(value, list) else [value]
        assert all(isinstance(number, float) for number in numbers), f"{section}.{key}"


def test_the_packaged_file_alone_listens_on_loopback_and_lets_nobody_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.path == PACKAGED_FILE
    assert settings.node.bind == "127.0.0.1"
    assert settings.senders == ()
    assert settings.storage.folder == tmp_path / "node-data"
    assert settings.database_url == f"sqlite:///{tmp_path}/node-data/node.sqlite"
    assert settings.warnings() == (
        "No [[senders]] are listed: nobody may store images.",
        "No [[destinations]] are listed: reports are kept here and sent nowhere.",
    )


def test_the_packaged_file_given_by_its_path_means_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(PACKAGED_FILE) == load_settings()
