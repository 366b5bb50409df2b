from __future__ import annotations

from pathlib import Path

import pytest

from training.froc import Annotation, ScoredMark
from training.judge_tables import TableError, read_annotations, read_series, read_submission

HEADER = "seriesuid,coordX,coordY,coordZ,probability\n"


def fault_of(path: Path, text: str, read=read_submission) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError) as caught:
        read(path)
    return str(caught.value)


def test_columns_are_found_by_name_and_others_are_left_alone(tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text("probability,seriesuid,coordZ,coordY,coordX,diameter_mm\n0.5,s,3,2,1,7.5\n\n1e-3,s,6,5,4,\n")
    assert read_submission(path) == {"s": [ScoredMark((1, 2, 3), 0.5), ScoredMark((4, 5, 6), 0.001)]}


def test_a_table_of_a_spreadsheet_reads_too(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfseriesuid,coordX,coordY,coordZ,diameter_mm\r\ns,1,2,3,-1\r\n")
    assert read_annotations(path) == {"s": [Annotation((1, 2, 3), -1)]}


def test_a_header_alone_is_a_submission_without_marks(tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text(HEADER)
    assert read_submission(path) == {}


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (
            "",
            None,
            "the file is empty; its first line must name the columns: seriesuid,coordX,coordY,coordZ,probability.",
        ),
        (
            "seriesuid,coordX,coordY,coordZ\n",
            1,
            "column probability is missing; found seriesuid,coordX,coordY,coordZ",
        ),
        ("seriesuid,CoordX,coordY,coordZ,probability\n", 1, "column coordX is missing; found seriesuid,CoordX"),
        ("seriesuid,coordX,coordX,coordY,coordZ,probability\n", 1, "column coordX stands there 2 times; keep one."),
        (
            f"{HEADER}s,0,0,0,0.5\n{HEADER}",
            3,
            "the header stands here again (were files joined?); delete the line.",
        ),
        (f"{HEADER}s,0,0,0,nan\n", 2, "probability is 'nan'; a finite number with a decimal point is needed."),
        (f"{HEADER}s,0,0,0,inf\n", 2, "probability is 'inf'"),
        (f"{HEADER}s,0,0,0,\n", 2, "probability is ''"),
        (f'{HEADER}s,0,0,0,"0,5"\n', 2, "probability is '0,5'"),
        (f"{HEADER}\ns,0,left,0,0.5\n", 3, "coordY is 'left'"),
        (f"{HEADER}s,0,0,0.5\n", 2, "4 values where the header names 5 columns; complete or delete the line."),
        (f"{HEADER},0,0,0,0.5\n", 2, "seriesuid is empty; write the series UID."),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, text: str, line: int | None, sentence: str):
    path = tmp_path / "marks.csv"
    place = f"{path}: " if line is None else f"{path}, line {line}: "
    assert fault_of(path, text).startswith(place + sentence)


def test_all_faults_are_told_at_once_up_to_ten(tmp_path: Path):
    few = fault_of(tmp_path / "m.csv", HEADER + "s,0,0,0,nan\ns,0,0,0,0.5\ns,x,0,0,0.5\n").splitlines()
    assert [("line 2" in few[0], "line 4" in few[1], len(few))] == [(True, True, 2)]
    many = fault_of(tmp_path / "m.csv", HEADER + "s,0,0,0,nan\n" * 50).splitlines()
    assert (len(many), many[-1]) == (11, "... and more.")


def test_what_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "marks.csv.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00rest")
    with pytest.raises(TableError, match=r"not a text file \(byte 1\); give the unpacked CSV"):
        read_submission(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(TableError, match=r"none\.csv: cannot be read \(No such file"):
        read_annotations(tmp_path / "none.csv")


def test_the_list_of_series_has_no_header_and_may_have_one(tmp_path: Path):
    plain, headed = tmp_path / "plain.csv", tmp_path / "headed.csv"
    plain.write_text("1.2.3\n1.2.4\n")
    headed.write_text("seriesuid\n1.2.3\n1.2.4\n")
    assert read_series(plain) == read_series(headed) == ["1.2.3", "1.2.4"]


def test_a_series_listed_twice_is_refused_with_both_lines(tmp_path: Path):
    said = fault_of(tmp_path / "s.csv", "1.2.3\n1.2.4\n1.2.3\n", read_series)
    assert "s.csv, line 3: series 1.2.3 stands in line 1 already and would be counted twice" in said


@pytest.mark.parametrize("text", ["", "\n\n", "seriesuid\n"])
def test_an_empty_list_of_series_is_refused(tmp_path: Path, text: str):
    assert "lists no series; write one series UID a line." in fault_of(tmp_path / "s.csv", text, read_series)
