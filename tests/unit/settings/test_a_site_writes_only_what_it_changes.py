"""A settings file is laid over the packaged one, and the environment over both."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from scp_node.settings import Destination, Sender, load_settings

SITE = """
[node]
ae_title = "CHEST_AI"

[[senders]]
ae_title = "CT_ROUTER"
host = "10.0.0.5"

[[senders]]
ae_title = "CT2"
host = "10.0.0.6"
port = 104

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.9"
port = 104

[[destinations]]
name = "research"
ae_title = "RESEARCH"
host = "10.0.0.10"
port = 11112
sr = "comprehensive"
not_analysed = false
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def add(path: Path, text: str) -> Path:
    path.write_text(path.read_text() + text)
    return path


def names(places: tuple[Destination, ...]) -> list[str]:
    return [place.name for place in places]


def test_keys_that_are_left_out_keep_their_defaults(site: Path) -> None:
    settings = load_settings(site)
    assert settings.node.ae_title == "CHEST_AI"
    assert settings.node.port == 11112
    assert settings.senders[0] == Sender(ae_title="CT_ROUTER", host="10.0.0.5", port=0)
    assert settings.destinations[0].sr == "comprehensive3d"
    assert settings.warnings() == ()


def test_node_toml_in_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node.toml").write_text("[node]\nport = 4242\n")
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.node.port == 4242
    assert settings.path == tmp_path / "node.toml"


def test_relative_paths_count_from_the_settings_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load_settings(add(site, '[storage]\nfolder = "spool"\n[detector]\nweights = "own.safetensors"\n'))
    assert settings.storage.folder == site.parent / "spool"
    assert settings.detector.weights == str(site.parent / "own.safetensors")
    assert settings.database_url == f"sqlite:///{site.parent}/spool/node.sqlite"


def test_a_database_address_is_taken_as_it_is(site: Path) -> None:
    settings = load_settings(add(site, '[storage]\ndatabase_url = "postgresql+psycopg://node@db/node"\n'))
    assert settings.database_url == "postgresql+psycopg://node@db/node"


def test_the_environment_comes_last(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODULE_NODE__NODE__PORT", "11113")
    monkeypatch.setenv("NODULE_NODE__NODE__AE_TITLE", "12345")
    monkeypatch.setenv("NODULE_NODE__STUDY__QUIET_S", "2.5")
    monkeypatch.setenv("NODULE_NODE__NETWORK__GUARD", "false")
    monkeypatch.setenv("NODULE_NODE__SELECTION__SKIP_PATIENT_IDS", '["QA1"]')
    monkeypatch.setenv("NODULE_NODE__ROUTING__CT2", '["research"]')
    monkeypatch.setenv("NODULE_NODE__DETECTOR__OPERATING_POINT", "0.25")
    settings = load_settings(site)
    assert settings.node.port == 11113
    assert settings.node.ae_title == "12345"
    assert settings.study.quiet_s == 2.5
    assert settings.network.guard is False
    assert settings.selection.limits().skip_patient_ids == ("QA1",)
    assert settings.detector.operating_point == 0.25
    assert names(settings.destinations_for("CT2")) == ["research"]


def test_a_whole_list_can_come_from_the_environment(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODULE_NODE__SENDERS", '[{ae_title = "ONE"}]')
    assert load_settings(site).senders == (Sender(ae_title="ONE"),)


def test_without_a_route_results_go_to_every_destination(site: Path) -> None:
    assert names(load_settings(site).destinations_for("CT_ROUTER")) == ["pacs", "research"]


def test_a_senders_own_route_wins_over_the_one_for_the_rest(site: Path) -> None:
    settings = load_settings(add(site, '[routing]\n"CT_ROUTER" = ["research"]\n"*" = ["pacs"]\n'))
    assert names(settings.destinations_for("CT_ROUTER")) == ["research"]
    assert names(settings.destinations_for("CT2")) == ["pacs"]
    assert names(settings.destinations_for("SOMEBODY")) == ["pacs"]


def test_an_empty_route_keeps_results_here(site: Path) -> None:
    settings = load_settings(add(site, '[routing]\n"CT2" = []\n'))
    assert settings.destinations_for("CT2") == ()


def test_sender_is_the_sender_itself_at_the_address_of_its_block(site: Path) -> None:
    settings = load_settings(add(site, '[routing]\n"CT2" = ["pacs", "sender"]\n'))
    back = settings.destinations_for("CT2")[1]
    assert (back.name, back.ae_title, back.host, back.port) == ("sender:CT2", "CT2", "10.0.0.6", 104)
    assert (back.sr, back.not_analysed) == ("comprehensive3d", True)
    assert settings.destination_named("sender:CT2") == back


def test_a_sender_that_is_a_destination_too_gets_results_as_that_one_and_once(site: Path) -> None:
    text = '[[destinations]]\nname = "two"\nae_title = "CT2"\nhost = "h"\nport = 105\n'
    settings = load_settings(add(site, text + '[routing]\n"CT2" = ["sender", "two"]\n'))
    assert names(settings.destinations_for("CT2")) == ["two"]


def test_a_destination_is_found_by_its_name(site: Path) -> None:
    settings = load_settings(site)
    assert settings.destination_named("research") == settings.destinations[1]
    assert settings.destination_named("gone") is None


def test_settings_cannot_be_changed(site: Path) -> None:
    settings = load_settings(site)
    with pytest.raises(ValidationError, match="frozen"):
        settings.node.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.routing["CT2"] = ()  # type: ignore[index]


def test_blanks_around_an_ae_title_do_not_count(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODULE_NODE__NODE__AE_TITLE", " NODE ")
    assert load_settings(site).node.ae_title == "NODE"


def test_ae_titles_that_differ_only_by_case_are_warned_of(site: Path) -> None:
    settings = load_settings(add(site, '[[senders]]\nae_title = "ct_router"\n'))
    assert settings.warnings() == (
        "AE titles 'CT_ROUTER' and 'ct_router' differ only by case: to DICOM they are different names.",
    )


def test_a_destination_that_is_the_node_itself_is_warned_of(site: Path) -> None:
    text = '[[destinations]]\nname = "me"\nae_title = "CHEST_AI"\nhost = "localhost"\nport = 11112\n'
    assert load_settings(add(site, text)).warnings() == (
        "Destination 'me' has this node's AE title and port: reports would return to us.",
    )
