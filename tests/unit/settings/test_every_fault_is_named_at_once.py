"""A fault is a sentence: file, key, value, rule, and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scp_node.settings import SettingsError, load_settings

SENDER = '[[senders]]\nae_title = "CT"\n'
PACS = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\nport = 104\n'


def faults(tmp_path: Path, text: str) -> list[str]:
    """The faults of a settings file, its own path cut off."""
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[node]\nae_titel = 'X'", 'node.ae_titel = "X": unknown key; the nearest valid name is ae_title'),
        ("[nodes]\nport = 1", "nodes: unknown section; the nearest valid name is node"),
        ("[zzz]\nport = 1", "zzz: unknown section"),
        ("[node]\nport = 70000", "node.port = 70000: must be less than or equal to 65535"),
        ("[node]\nport = '104'", 'node.port = "104": must be a valid integer'),
        ("[node]\nport = true", "node.port = true: must be a valid integer"),
        ("[study]\nquiet_s = 1", "study.quiet_s = 1: must be greater than or equal to 2"),
        ("[study]\nquiet_s = inf", "study.quiet_s = Infinity: must be a finite number"),
        ("[study]\nmax_wait_s = 9", "study: max_wait_s (9) is at least quiet_s (60)"),
        ("[study]\nseries = 'first'", "study.series = \"first\": must be 'best' or 'all'"),
        (
            "[selection]\nmax_thickness_mm = 5.5",
            "selection.max_thickness_mm = 5.5: must be less than or equal to 5",
        ),
        ("[selection]\nmax_spacing_mm = 6", "selection.max_spacing_mm = 6: must be less than or equal to 5"),
        ("[selection]\nmin_rows = 9999", "selection: min_rows is at most max_rows"),
        ("[worker]\nbeat_s = 6.0", "worker: beat_s (6) is at most a third of lease_s (15)"),
        (
            "[detector]\ndevice = 'gpu'",
            'detector.device = "gpu": must be "auto", "cpu", "cuda" or "cuda:" with a number',
        ),
        (
            "[detector]\noperating_point = 1.5",
            "detector.operating_point = 1.5: a probability from 0 to 1, or the name of an operating point in the "
            "weights' card",
        ),
        (
            "[detector]\nimplementation = 'mine'",
            'detector.implementation = "mine": "two-stage", or "module:function" that returns a detector',
        ),
        (
            "[report]\ninstitution = 'Köln'",
            'report.institution = "K\\u00f6ln": texts that the node writes are printable ASCII',
        ),
        (
            "[delivery]\nretry_s = []",
            "delivery.retry_s = []: must have at least 1 item, not 0",
        ),
        ("node = 5", "node = 5: must be a table"),
        ("[[senders]]\nhost = 'h'", "senders[1].ae_title: this key is required"),
        (
            PACS.replace('"pacs"', '"sender"'),
            'destinations[1].name = "sender": "sender" and "*" have a meaning of their own in [routing]; '
            "choose another name",
        ),
        (SENDER + SENDER, 'senders[2].ae_title = "CT": is listed twice in [[senders]]; each ae_title once'),
        (PACS + PACS, 'destinations[2].name = "pacs": is listed twice in [[destinations]]; each name once'),
        (
            SENDER + PACS + "[routing]\nCT = ['pac']",
            "routing.CT = [\"pac\"]: no destination is named 'pac'; the nearest valid name is pacs",
        ),
        (
            SENDER + PACS + "[routing]\nct = ['pacs']",
            "routing.ct = [\"pacs\"]: no sender in [[senders]] has the AE title 'ct'",
        ),
        (
            SENDER + PACS + "[routing]\n'*' = ['sender']",
            "[routing] sends results back to 'CT', whose address is not known: give its [[senders]] block host and "
            "port, or list it in [[destinations]]",
        ),
    ],
)
def test_one_fault_one_sentence(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, text) == [fault]


@pytest.mark.parametrize("title", ["", "   ", "A" * 17, "A\\B", "CÖ", "A\tB"])
def test_an_ae_title_breaks_the_standards_rules(tmp_path: Path, title: str) -> None:
    text = f"[[senders]]\nae_title = '{title}'\n"
    (fault,) = faults(tmp_path, text)
    assert fault.startswith("senders[1].ae_title = ")
    assert fault.endswith(
        ": an AE title is 1 to 16 ASCII characters, not all blank, no backslash, no control characters "
        "(PS3.5 Table 6.2-1)"
    )


def test_faults_of_all_kinds_are_listed_together(tmp_path: Path) -> None:
    text = "[node]\nport = 0\nbnd = 'x'\n[study]\nquiet_s = 0\n" + SENDER + "[routing]\nCT = ['nowhere']\n"
    assert faults(tmp_path, text) == [
        "node.port = 0: must be greater than or equal to 1",
        'node.bnd = "x": unknown key; the nearest valid name is bind',
        "study.quiet_s = 0: must be greater than or equal to 2",
        "routing.CT = [\"nowhere\"]: no destination is named 'nowhere'",
    ]


def test_a_fault_in_the_environment_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODULE_NODE__STUDY__QUIET_S", "soon")
    monkeypatch.setenv("NODULE_NODE__NODE__PROT", "1")
    assert faults(tmp_path, "") == [
        "environment variable NODULE_NODE__NODE__PROT = 1: unknown key; the nearest valid name is port",
        'environment variable NODULE_NODE__STUDY__QUIET_S = "soon": must be a valid number',
    ]


def test_secrets_and_patient_identifiers_are_not_repeated(tmp_path: Path) -> None:
    text = "[storage]\ndatabase_url = 5\n[selection]\nskip_patient_ids = 'PAT^ID'\n"
    assert faults(tmp_path, text) == [
        "storage.database_url = (not shown): must be a valid string",
        "selection.skip_patient_ids = (not shown): must be a valid array",
    ]


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, f"[study]\nseries = '{'x' * 200}'\n")
    assert fault == f"study.series = \"{'x' * 76}...: must be 'best' or 'all'"


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "[node\n")
    assert fault.startswith("is not valid TOML: ")
    assert "line 1" in fault


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml: cannot be read: No such file or directory"):
        load_settings(tmp_path / "gone.toml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"[report]\ninstitution = 'K\xf6ln'\n")
    with pytest.raises(SettingsError, match=r"latin\.toml: is not UTF-8 text: byte 25 cannot be read"):
        load_settings(path)
