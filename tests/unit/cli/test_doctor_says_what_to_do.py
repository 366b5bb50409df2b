"""``doctor``: a line for each thing that must hold, and what to do when it does not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import pixels
from scp_node import doctor
from scp_node.cli.main import application
from scp_node.doctor import DECODER_SAMPLES, SAMPLES, SR_CLASSES, Level, Line
from scp_node.ports import SendResult
from scp_node.settings import Destination, Settings, load_settings

PACS = Destination(name="pacs", ae_title="PACS", host="10.0.0.9", port=104)
UP = SendResult("delivered", 0, "C-ECHO answered.")
DOWN = SendResult("retry", None, "No connection to 10.0.0.9:104; is the archive running and the port right?")


@dataclass
class Peer:
    """An archive that answers as told."""

    answer: SendResult = UP
    classes: frozenset[str] | SendResult = frozenset(SR_CLASSES.values())

    def echo(self) -> SendResult:
        return self.answer

    def accepts(self, sop_class_uids: Sequence[str]) -> frozenset[str] | SendResult:
        return self.classes

    def store(self, dicom: bytes) -> SendResult:
        raise AssertionError("doctor sends nothing")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str], Settings]:
    def settings(text: str) -> Settings:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return load_settings(path)

    return settings


def test_a_decoder_sample_exists_for_every_compressed_syntax_we_name_a_decoder_for() -> None:
    found = {
        read.slices[0].pixels.transfer_syntax for sample in DECODER_SAMPLES if (read := read_sample(sample.file))
    }
    same_decoder = {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.202"}
    same_decoder.add("1.2.840.10008.1.2.4.203")
    assert found | same_decoder == set(pixels.DECODERS) - pixels.NATIVE_SYNTAXES


def read_sample(file: str) -> doctor.Instance:
    instance = doctor.read_instance(SAMPLES / file)
    assert isinstance(instance, doctor.Instance)
    return instance


def test_every_required_decoder_works_here() -> None:
    lines = list(doctor.decoders())
    assert [line.text for line in lines if line.level is Level.FAIL] == []
    assert Line(Level.OK, "decoder", "HTJ2K Lossless: decoded as expected") in lines
    assert len(lines) == 1 + len(DECODER_SAMPLES)


def test_a_missing_decoder_fails_and_an_optional_one_is_only_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "DECODERS", {})
    rle, *_, extended = list(doctor.decoders())[1:]
    assert rle == Line(
        Level.FAIL,
        "decoder",
        "RLE Lossless: the decoder is missing or broken; such images end as DECODE_FAILED",
        "Install it again: pip install --force-reinstall pylibjpeg-rle",
    )
    assert extended == Line(
        Level.WARN,
        "decoder",
        "JPEG Extended 12 bit (lossy): no decoder, such images end as DECODE_FAILED",
        "If a sender uses it: pip install 'nodule-node[gpl-codecs]' (GPL).",
    )


def test_a_decoder_that_decodes_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.sample_hu()
    monkeypatch.setattr(doctor, "sample_hu", lambda: right + 7)
    assert list(doctor.decoders())[1].text == (
        "RLE Lossless: decoded wrongly, by up to 7 HU; such images end as DECODE_FAILED"
    )


def test_a_folder_that_is_not_there_yet_is_fine_where_it_can_be_made(
    tmp_path: Path, changed: Callable[[str], Settings]
) -> None:
    (line,) = doctor.folders(changed("").storage)
    assert line.level is Level.OK
    assert line.text.startswith(f"{tmp_path}/node-data does not exist yet and will be made in {tmp_path}, as user ")


def test_every_folder_that_is_there_is_tried(tmp_path: Path, changed: Callable[[str], Settings]) -> None:
    (tmp_path / "node-data" / "objects").mkdir(parents=True)
    lines = list(doctor.folders(changed("").storage))
    assert [line.level for line in lines] == [Level.OK, Level.OK]
    assert lines[1].text.startswith(f"{tmp_path}/node-data/objects is writable")


def test_a_folder_that_cannot_be_written_says_who_should_own_it(
    tmp_path: Path, changed: Callable[[str], Settings]
) -> None:
    (tmp_path / "node-data").write_text("a file where the folder should be")
    (line,) = doctor.folders(changed("").storage)
    assert line.level is Level.FAIL
    assert "cannot be written by user" in line.text
    assert line.action.endswith(f"{tmp_path}/node-data")
    assert "chown -R " in line.action


@pytest.mark.parametrize(("floor", "level"), [(0, Level.OK), (10**9, Level.FAIL)])
def test_free_space_is_held_against_the_floor(changed: Callable[[str], Settings], floor: int, level: Level) -> None:
    line = doctor.disk_space(changed(f"[storage]\nmin_free_mib = {floor}\nmin_free_percent = 0\n").storage)
    assert line.level is level
    assert f"images are refused below {floor} MiB" in line.text


def test_the_port_is_free_ours_or_somebody_elses(changed: Callable[[str], Settings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = changed(f"[node]\nport = {number}\n")
        where = f"127.0.0.1, port {number}"
        ours = doctor.port(settings, lambda _: Peer(UP))
        deaf = doctor.port(settings, lambda _: Peer(DOWN))
        strict = doctor.port(settings, lambda _: Peer(SendResult("refused", None, "It does not know us (1/1/3).")))
    free = doctor.port(settings, lambda _: Peer(UP))
    assert ours == Line(Level.OK, "port", f"{where} is ours: the node runs and answers C-ECHO")
    assert deaf.level is Level.FAIL
    assert deaf.action == "Stop the other program, or choose another node.port or node.bind."
    assert strict.text == f"{where} is taken by a DICOM node that answers (It does not know us (1/1/3).)"
    assert free == Line(Level.OK, "port", f"{where} is free: the node does not run")


def test_a_good_destination_answers_and_takes_our_class() -> None:
    assert list(doctor.destination(PACS, Peer())) == [
        Line(Level.OK, "destination pacs", "PACS at 10.0.0.9, port 104 answers C-ECHO"),
        Line(Level.OK, "destination pacs", "PACS at 10.0.0.9, port 104 takes our SR class (comprehensive3d)"),
    ]


def test_a_destination_that_is_down_says_what_to_check() -> None:
    (line,) = doctor.destination(PACS, Peer(DOWN))
    assert line.level is Level.FAIL
    assert DOWN.text in line.text
    assert line.action == (
        "Check that it runs, its address in [[destinations]] pacs, and that it knows our AE title."
    )


@pytest.mark.parametrize(
    ("sr", "taken", "level", "action"),
    [
        (
            "comprehensive3d",
            "comprehensive",
            Level.WARN,
            'Nothing: it will get Comprehensive SR instead. Set sr = "comprehensive" to spare the question.',
        ),
        (
            "comprehensive",
            "comprehensive3d",
            Level.FAIL,
            'It takes sr = "comprehensive3d": set that for this destination.',
        ),
        (
            "comprehensive3d",
            None,
            Level.FAIL,
            "Allow Comprehensive 3D SR or Comprehensive SR storage there.",
        ),
    ],
)
def test_a_refused_class_says_which_other_one_is_taken(
    sr: str, taken: str | None, level: Level, action: str
) -> None:
    place = PACS.model_copy(update={"sr": sr})
    classes = frozenset([SR_CLASSES[taken]] if taken else [])
    line = list(doctor.destination(place, Peer(classes=classes)))[1]
    assert (line.level, line.action) == (level, action)
    assert line.text == f"PACS at 10.0.0.9, port 104 does not take our SR class ({sr})"


def test_senders_that_get_results_themselves_are_asked_too(changed: Callable[[str], Settings]) -> None:
    settings = changed('[[senders]]\nae_title = "CT"\nhost = "h"\nport = 104\n[routing]\nCT = ["sender"]\n')
    assert [place.name for place in doctor.destinations_in_use(settings)] == ["sender:CT"]


def test_another_detector_is_named_and_not_checked(changed: Callable[[str], Settings]) -> None:
    (line,) = doctor.detector(changed('[detector]\nimplementation = "tests.fakes:scripted_detector"\n').detector)
    assert line.level is Level.WARN
    assert line.text == "tests.fakes:scripted_detector takes the place of ours; it is not checked here"


def test_missing_weights_and_a_missing_device_fail_in_sentences(
    changed: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = changed('[detector]\nweights = "gone.safetensors"\ndevice = "cuda"\n')
    device, weights = doctor.detector(settings.detector)
    assert device.level is Level.FAIL
    assert device.action == "Correct detector.device or detector.precision."
    assert weights.level is Level.FAIL
    assert "gone.safetensors" in weights.text


def test_the_command_shows_each_line_and_exits_1_when_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [Line(Level.OK, "disk", "Much room"), Line(Level.FAIL, "port", "Taken", "Choose another.")]
    monkeypatch.setattr(doctor, "examine", lambda _: iter(lines))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(application(["doctor"]), ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok    disk: Much room",
        "FAIL  port: Taken",
        "      -> Choose another.",
        "1 checks failed.",
    ]
    lines.pop()
    result = CliRunner().invoke(application(["doctor"]), ["doctor"])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "All is well.")
