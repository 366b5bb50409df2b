from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.domain.geometry import Grid
from tests.unit.training.run_folders import make_run
from training.cli.main import app
from training.examples import choose_examples
from training.froc import Annotation, ScoredMark
from training.key_images import SIDE_MM, SIDE_PIXELS, key_image
from training.luna16 import write_metaimage
from training.report import NOT_COMPARABLE


class Text(HTMLParser):
    """The words of a page, and the files that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.files: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag in {"link", "image"}):
                (self.pictures if (value or "").startswith("data:") else self.files).append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(*arguments: str) -> Text:
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == 0, result.output
    page = Text()
    page.feed(Path(arguments[arguments.index("--out") + 1]).read_text(encoding="utf-8"))
    return page


def chest_with_balls(folder: Path) -> None:
    """Scan ``s0`` with a ball of 6 mm at the origin."""
    grid = Grid((60, 90, 90), (1.5, 1.5, 1.5), (-66.0, -66.0, -44.0))
    z, y, x = (np.arange(n) * 1.5 + start for n, start in zip((60, 90, 90), (-44, -66, -66), strict=True))
    lung = np.full((60, 90, 90), -850, np.int16)
    lung[:, :20], lung[:, 70:], lung[:, :5] = 30, 30, -1000
    lung[(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) < 3.0**2] = 40
    write_metaimage(folder / "subset0" / "s0.mhd", lung, grid)


def test_a_page_needs_no_other_file_and_shows_our_rows_beside_the_published_ones(tmp_path: Path):
    chest_with_balls(tmp_path / "scans")
    for k, network in enumerate(("deepnet", "resnet", "resnet-hl")):
        make_run(tmp_path / "runs" / network, hits=1 + k, reduction=network, scans="../../scans")
    page = page_of(str(tmp_path / "runs"), "--out", str(tmp_path / "report.html"))

    assert page.files == []
    for published in ("DIAG ConvNet", "Dou et al. 2017 (the paper)", "0.839", "286.2", "0.905", "arXiv 1708.03867"):
        assert published in page.text
    assert NOT_COMPARABLE in page.text
    assert "no finished ten-fold cross-validation over the 888 scans of LUNA16" in page.text
    assert "cohort tiny; 4 scans, 4 nodules; simulated" in page.text
    assert "as in the paper" in page.text
    assert "cohort tiny, not comparable with Table 1" in page.text
    # The scan of the first run that is at hand: its hit and its false mark. The other three are said to be missing.
    assert "nodule : p 0.50, 6.5 mm true diameter 6.0 mm; scan s0" in page.text
    assert "false mark : p 0.95, 5.0 mm" in page.text
    assert "deepnet: 3 scans of its examples are not at hand, for example s3; no key images of them." in page.text
    assert len(page.pictures) == 2


def test_a_run_that_cannot_be_read_is_named_on_the_page(tmp_path: Path):
    make_run(tmp_path / "runs" / "good")
    (make_run(tmp_path / "runs" / "bad") / "run.json").write_text("{")
    page = page_of(str(tmp_path / "runs"), "--out", str(tmp_path / "report.html"), "--examples", "0")
    assert "run.json is not JSON" in page.text
    assert page.pictures == []


def test_names_cannot_put_markup_into_the_page(tmp_path: Path):
    make_run(tmp_path / "runs" / "one", data_set="<script>alert(1)</script>")
    out = tmp_path / "report.html"
    page_of(str(tmp_path / "runs"), "--out", str(out), "--examples", "0")
    assert "<script" not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_without_a_finished_run_the_command_ends_and_says_so(tmp_path: Path, name: str):
    result = CliRunner().invoke(app, ["report", str(tmp_path / name), "--out", str(tmp_path / "report.html")])
    assert result.exit_code == 2
    assert ("is not a folder" if name else "There is no finished run in") in result.output


def test_a_key_image_has_the_mark_in_its_middle_and_millimetres_for_pixels():
    grid = Grid((8, 120, 100), (2.0, 0.5, 0.8), (-20.0, 10.0, 5.0))
    hu = np.full(grid.shape_zyx, -850, np.int16)
    hu[3, 60, 10] = 1500
    position = tuple(float(v) for v in grid.index_to_lps((3, 60, 10)))
    made = key_image(hu, grid, position, 8.0)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.png.split(",")[1]))))
    bright = np.argwhere(picture > 200)
    np.testing.assert_allclose(bright.mean(axis=0), (SIDE_PIXELS - 1) / 2, atol=0.6)
    assert made.radius == pytest.approx(4.0 * SIDE_PIXELS / SIDE_MM)
    assert picture[0, 0] == 0, "outside the scan is black"


def test_examples_are_chosen_by_rule():
    nodules = {"s": [Annotation((40.0 * k, 0, 0), 4.0 + k) for k in range(5)], "t": [Annotation((0, 0, 0), 9.0)]}
    marks = {
        "s": [
            *((ScoredMark((40.0 * k, 0, 0), 0.2 * k), None) for k in range(4)),
            (ScoredMark((0.5, 0, 0), 0.9), 4.4),
            (ScoredMark((0, 90, 0), 0.7), 5.0),
            (ScoredMark((0, 50, 0), 0.8), 5.0),
        ]
    }
    others = {"s": [Annotation((0, 50, 0), -1)]}
    chosen = choose_examples(["s", "t"], nodules, others, marks, hits=3)
    assert [(e.true_diameter_mm, e.probability) for e in chosen] == [
        (4.0, 0.9),  # the smallest one found, with its best mark
        (6.0, 0.4),
        (7.0, pytest.approx(0.6)),
        (None, 0.7),  # a false mark; the one of 0.8 lies on a finding to ignore
        (9.0, None),  # missed, the larger one first
        (8.0, None),
    ]
