"""A weights file gives back what was put in, or says in a sentence why not."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.detect.detector import load_detector
from pipeline.detect.resample import Preprocessing
from pipeline.detect.weights import CARD, WeightsError, load_weights, save_weights
from tests.unit.detect.scans import SMALL_FCN, SMALL_MODERN, card, weights


@pytest.fixture
def file(tmp_path):
    made = weights()
    path = tmp_path / "w.safetensors"
    save_weights(path, made.card, made.screening, made.reduction)
    return path


def rewritten(file, **changes):
    """The same file with another card."""
    with safe_open(file, framework="pt") as opened:
        text = json.loads(opened.metadata()["card"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={"card": json.dumps(text | changes)})
    return file


def test_card_and_both_networks_come_back_in_bfloat16_precision(file):
    made, loaded = weights(), load_weights(file)
    assert loaded.card == made.card
    assert len(loaded.sha256) == 64
    assert loaded.identity.name == "test"
    for before, after in ((made.screening, loaded.screening), (made.reduction, loaded.reduction)):
        assert not after.training
        for (name, a), (other, b) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
            assert name == other
            if a.is_floating_point():
                assert torch.equal(a.bfloat16().float(), b)


def test_saving_twice_gives_the_same_bytes(file, tmp_path):
    made = weights()
    again = tmp_path / "again.safetensors"
    save_weights(again, made.card, made.screening, made.reduction)
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("screening", [SMALL_FCN, SMALL_MODERN])
def test_a_card_survives_json(screening):
    made = card(screening)
    assert CARD.validate_json(CARD.dump_json(made)) == made
    assert [p.name for p in made.points()] == ["balanced", "sensitive"]


def test_weights_without_a_second_stage_are_complete_when_the_first_regresses(tmp_path):
    made = weights(reduction=None)
    save_weights(tmp_path / "one", made.card, made.screening)
    assert load_weights(tmp_path / "one").reduction is None


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(WeightsError, match=r"^There is no weights file at .*nowhere; set detector\.weights to one"):
        load_weights(tmp_path / "nowhere")


def test_a_file_of_another_kind_is_said(tmp_path):
    (tmp_path / "w").write_bytes(b"this is not a safetensors file, whatever its name says")
    with pytest.raises(WeightsError, match="is not a weights file in safetensors form"):
        load_weights(tmp_path / "w")


def test_a_file_without_a_card_is_said(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w")
    with pytest.raises(WeightsError, match="carries no card"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": "red"}, "does not fit this version \\(colour: "),
        ({"seed": "many"}, "does not fit this version \\(seed: "),
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"operating_points": []}, "names no operating point"),
        ({"reduction": None, "screening": dataclasses.asdict(SMALL_FCN)}, "gives a diameter"),
        ({"preprocessing": dataclasses.asdict(Preprocessing(shift=0.0))}, "was trained on Preprocessing"),
        ({"screening": dataclasses.asdict(SMALL_MODERN) | {"widths": [4, 6, 8, 8, 10]}}, "do not fit its card"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(file, changes, sentence):
    with pytest.raises(WeightsError, match=sentence):
        load_weights(rewritten(file, **changes))


@pytest.mark.parametrize("words", [{"device": "abacus"}, {"device": "cpu", "precision": "float8"}])
def test_an_unknown_device_or_precision_is_said(file, words):
    with pytest.raises(WeightsError, match="is unknown; use auto, cpu or cuda, and auto, float32 or bfloat16"):
        load_detector(file, **words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test asks for in vain")
def test_a_device_that_is_not_there_is_said(file):
    with pytest.raises(WeightsError, match="shows no CUDA device; use 'auto' or 'cpu'"):
        load_detector(file, device="cuda")
