"""The one list of codes: nothing undocumented, nothing that a DICOM text could not carry."""

import pytest

from pipeline.domain.outcome import CODES, Code, Kind


@pytest.mark.parametrize("code", list(Code))
def test_a_code_says_what_it_means_why_and_what_to_do(code: Code) -> None:
    page = CODES[code]
    for text in (page.meaning, page.cause, page.action):
        assert text.isascii()
        assert text.endswith(".")
    assert code.value == code.name
    assert code.value == code.value.upper()


def test_every_kind_is_used() -> None:
    assert {page.kind for page in CODES.values()} == set(Kind)


def test_the_list_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        CODES[Code.NOT_CT] = CODES[Code.NO_GEOMETRY]  # type: ignore[index]
