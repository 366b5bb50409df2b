"""Opens a report of the running node over its CT in OHIF, and measures what is drawn: `make viewer-check`.

Not part of `make test`. Orthanc, the node, a web server and Chromium run together in a network namespace that holds
nothing but loopback. What is drawn is read from the page: the circle in the viewport, the image behind it.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from math import cos, dist, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from pydicom import dcmread

from demo.dicom_client import Peer, dicom_files, quiet, send
from demo.processes import running, tail, wait_for_echo
from demo.sr import Mark, analysed_series, read_marks
from demo.truth import Nodule, nodule_of, read_truth
from pipeline.domain.geometry import SlicePlane
from tests.orthanc import (
    DICOM_PORT,
    DICOMWEB_PLUGIN,
    NODE_PORT,
    NODE_TITLE,
    TITLE,
    alone_with_loopback,
    orthanc,
    reports_in,
    why_not,
)
from tests.viewer.picture import image_shift
from tests.viewer.stage import fetch_ohif, web_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Page
    from pydicom.dataset import Dataset

CHROMIUM = Path("/usr/bin/chromium")
PICTURE = Path("docs/images/viewer.png")
COLOURED, ACCENTS = 40, 48  # of 256: how far the channels of a coloured pixel differ; colours kept for them
PICTURE_LIMIT_BYTES = 400_000
NODE = Peer(NODE_TITLE, NODE_PORT, calling="CT")
REPORT_LIMIT_S = 900
SHOWN_LIMIT_S = 30
PHANTOM_SEED = 10_001
TOLERANCE_PIXELS = 1.0
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]

SETTINGS = f"""\
[[senders]]
ae_title = "CT"
[[destinations]]
name = "orthanc"
ae_title = "{TITLE}"
host = "127.0.0.1"
port = {DICOM_PORT}
[storage]
folder = "data"
min_free_mib = 500
min_free_percent = 0.0
[study]
quiet_s = 2
"""

# What the active viewport shows: the image, and each ellipse drawn on it, its points in patient millimetres
# and its place on the screen.
SHOWN = """() => {
  const id = window.services.viewportGridService.getActiveViewportId();
  const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
  const place = viewport.element.getBoundingClientRect();
  const ellipses = [...viewport.element.querySelectorAll('svg.svg-layer ellipse')].map((ellipse) => {
    const [x, y, rx, ry] = ['cx', 'cy', 'rx', 'ry'].map((name) => Number(ellipse.getAttribute(name)));
    const world = (dx, dy) => [...viewport.canvasToWorld([x + dx, y + dy])];
    const rim = [world(rx, 0), world(-rx, 0), world(0, ry), world(0, -ry)];
    return { centre: world(0, 0), rim, at: [place.left + x, place.top + y], radius: rx };
  });
  return { image: viewport.getCurrentImageId(), ellipses };
}"""
LOADED = """() => {
  const sr = window.services.displaySetService.getActiveDisplaySets().find((set) => set.Modality === 'SR');
  return { isLoaded: sr.isLoaded, marks: sr.measurements.map((mark) => mark.loaded) };
}"""
LUNG_WINDOW = """() => {
  const id = window.services.viewportGridService.getActiveViewportId();
  const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
  viewport.setProperties({ voiRange: { lower: -1350, upper: 150 } });
  viewport.render();
}"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A mark as the viewer shows it.

    Attributes
    ----------
    centre_lps_mm
        Where the viewer puts the centre of its ellipse.
    off_pixels
        Largest distance of centre and rim from the report's circle; CT pixels.
    at, radius
        Centre and radius on the screen; screen pixels.
    shift_pixels
        How far the image on the screen lies beside the ellipse; CT pixels.
    png
        The screen.
    """

    centre_lps_mm: tuple[float, float, float]
    off_pixels: float
    at: tuple[float, float]
    radius: float
    shift_pixels: float = math.inf
    png: bytes = b""


def main() -> int:
    """Run the check; 0 when every circle is where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=Path, help="folder of one CT study; a phantom is made without it")
    parser.add_argument("--report", type=Path, help="show this report; without it the node makes one")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    if arguments.inside:
        with tempfile.TemporaryDirectory() as folder:
            return _check(Path(folder), arguments.series, arguments.report)
    lacking = _lacking()
    if lacking:
        print(f"viewer-check cannot run here: {lacking}", file=sys.stderr)
        return 1
    fetch_ohif()
    inside = alone_with_loopback("tests.viewer.check", "--inside", *sys.argv[1:])
    print(inside.stdout, end="")
    return inside.returncode


def _lacking() -> str:
    lacking = [str(path) for path in (CHROMIUM, DICOMWEB_PLUGIN) if not path.exists()]
    lacking += [] if shutil.which("npm") else ["npm"]
    if lacking:
        return f"missing {', '.join(lacking)}; on Debian: apt-get install orthanc-dicomweb chromium npm"
    return why_not()


def _check(folder: Path, series: Path | None, report: Path | None) -> int:
    if series is None:
        _command("nodule-train", "phantom", PHANTOM_SEED, "--kernel", "STANDARD", "--out", folder)
        series = folder / f"phantom-{PHANTOM_SEED}"
    files = dicom_files(series)
    images = {str(header.SOPInstanceUID): path for path, header in files}
    study_uid = str(files[0][1].StudyInstanceUID)
    with orthanc(folder / "orthanc") as address, web_server(fetch_ohif(), address) as site:
        archive = Peer(TITLE, DICOM_PORT)
        print(f"{len(images)} images to Orthanc", flush=True)
        send(series, archive, lambda *_: None)
        if report is not None:
            (folder / "report").mkdir()
            shutil.copy(report, folder / "report" / "report.dcm")
            send(folder / "report", archive, lambda *_: None)
        else:
            _let_the_node_report(folder, series, address, study_uid)
        with urlopen(f"{address}/instances/{reports_in(address, study_uid)[0]}/file", timeout=30) as answer:
            document = dcmread(io.BytesIO(answer.read()))
        marks = read_marks(document)
        if not marks:
            raise SystemExit("the report has no mark: there is nothing to see")
        truth = read_truth(series, analysed_series(document))
        drawn = _look(site, study_uid, marks, images)
    return _judge(marks, drawn, truth)


def _let_the_node_report(folder: Path, series: Path, address: str, study_uid: str) -> None:
    settings, log = folder / "node.toml", folder / "node.log"
    settings.write_text(SETTINGS)
    command = [Path(sys.executable).with_name("nodule-node"), "serve", "--config", settings]
    with running(command, log) as node:
        wait_for_echo(NODE, node, log)
        send(series, NODE, lambda *_: None)
        end = time.monotonic() + REPORT_LIMIT_S
        while not reports_in(address, study_uid):
            if node.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the node delivered no report:\n{tail(log)}")
            time.sleep(1)
    print("the node's report is in Orthanc", flush=True)


def _look(site: str, study_uid: str, marks: Sequence[Mark], images: dict[str, Path]) -> list[Drawn]:
    """Open the report in OHIF and step from mark to mark."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{site}/viewer?StudyInstanceUIDs={study_uid}")
        page.locator('[data-cy="study-browser-thumbnail"]').first.wait_for()
        page.get_by_text("Skip all").click()
        page.locator('[data-cy="study-browser-thumbnail-no-image"]').first.dblclick()
        page.locator("svg.svg-layer ellipse").first.wait_for()
        loaded = page.evaluate(LOADED)
        if not loaded["isLoaded"] or loaded["marks"] != [True] * len(marks):
            raise SystemExit(f"OHIF did not load every mark: {loaded}")
        drawn = []
        for number, mark in enumerate(marks):
            if number:
                page.locator('[data-cy="viewport-action-arrows-right"]').click()
            drawn.append(_one(page, mark, dcmread(images[mark.sop_instance_uid])))
        browser.close()
        return drawn


def _one(page: Page, mark: Mark, image: Dataset) -> Drawn:
    """Wait until the mark's image is shown with a circle where it should be, or no better one comes; measure it."""
    end = time.monotonic() + SHOWN_LIMIT_S
    drawn = None
    while drawn is None or drawn.off_pixels > TOLERANCE_PIXELS:
        if time.monotonic() > end:
            break
        page.evaluate(LUNG_WINDOW)
        page.wait_for_timeout(300)
        shown = page.evaluate(SHOWN)
        if f"/{mark.sop_instance_uid}/" in shown["image"] and shown["ellipses"]:
            drawn = _measure(shown["ellipses"], mark, _plane(image))
    if drawn is None:
        raise SystemExit(f"{mark.name} is not shown on its image")
    png = page.screenshot()
    shift = image_shift(png, drawn.at, drawn.radius / mark.radius_pixel, image, mark.centre_pixel)
    return replace(drawn, shift_pixels=shift, png=png)


def _measure(ellipses: list[dict[str, Any]], mark: Mark, plane: SlicePlane) -> Drawn:
    """The ellipse whose centre is nearest to the mark's, and how far its centre and rim are off."""
    pixels = [[plane.lps_to_pixel(point) for point in (e["centre"], *e["rim"])] for e in ellipses]
    nearest = min(range(len(pixels)), key=lambda n: dist(pixels[n][0], mark.centre_pixel))
    centre, *rim = pixels[nearest]
    expected = [_rim_point(mark, angle) for angle in (0, pi, pi / 2, 3 * pi / 2)]
    off = [dist(centre, mark.centre_pixel), *(min(dist(point, other) for other in expected) for point in rim)]
    x, y, z = (float(v) for v in plane.pixel_to_lps(*centre))  # the viewer's camera may still be on its way
    left, top = ellipses[nearest]["at"]
    return Drawn((x, y, z), max(off), (left, top), ellipses[nearest]["radius"])


def _rim_point(mark: Mark, angle: float) -> tuple[float, float]:
    column, row = mark.centre_pixel
    return column + mark.radius_pixel * cos(angle), row + mark.radius_pixel * sin(angle)


def _plane(image: Dataset) -> SlicePlane:
    x, y, z = (float(v) for v in image.ImagePositionPatient)
    cosines = [float(v) for v in image.ImageOrientationPatient]
    row_spacing, column_spacing = (float(v) for v in image.PixelSpacing)
    return SlicePlane(
        origin_lps_mm=(x, y, z),
        along_row=(cosines[0], cosines[1], cosines[2]),
        along_column=(cosines[3], cosines[4], cosines[5]),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        rows=int(image.Rows),
        columns=int(image.Columns),
    )


def _judge(marks: Sequence[Mark], drawn: Sequence[Drawn], truth: Sequence[Nodule] | None) -> int:
    """Print a line for each mark; 0 when all is well and at least one true nodule holds its circle."""
    good, seen = True, []
    for mark, shown in zip(marks, drawn, strict=True):
        near = max(shown.off_pixels, shown.shift_pixels) <= TOLERANCE_PIXELS
        nodule = nodule_of(mark, truth or ())
        inside = nodule is None or dist(shown.centre_lps_mm, nodule.centre_lps_mm) < nodule.diameter_mm / 2
        if nodule is not None:
            seen.append(shown)
        good &= near and inside
        place = "no true nodule" if nodule is None else f"in its nodule of {nodule.diameter_mm:.1f} mm: {inside}"
        off = f"circle {shown.off_pixels:.2f} and image {shown.shift_pixels:.2f} CT pixels off"
        print(f"{mark.name}: on its slice, {off}, {place}")
    if not seen:
        print("no circle lies in a true nodule", file=sys.stderr)
        return 1
    _save(seen[0].png)
    print(f"{'every circle is where it belongs' if good else 'a circle is not where it belongs'}; {PICTURE}")
    return 0 if good else 1


def _save(png: bytes) -> None:
    """Keep the picture for the README, in as many colours as fit into the limit."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for greys in (192, 96, 48, 24):
        few_colours = picture.quantize(palette=_palette(picture, greys), dither=Image.Dither.NONE)
        few_colours.save(PICTURE, "PNG", optimize=True)
        if PICTURE.stat().st_size <= PICTURE_LIMIT_BYTES:
            return
    raise SystemExit(f"{PICTURE} has {PICTURE.stat().st_size} bytes")


def _palette(picture: Image.Image, greys: int) -> Image.Image:
    """Greys for the CT and colours for what is drawn over it: chosen together, the greys would take all places."""
    pixels = np.asarray(picture).reshape(1, -1, 3)
    coloured = pixels[:, np.ptp(pixels[0], axis=1) > COLOURED]
    accents = Image.fromarray(coloured).quantize(ACCENTS).getpalette() or []
    steps = np.linspace(0, 255, greys).astype(int)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*accents[: 3 * ACCENTS], *(int(v) for step in steps for v in (step, step, step))])
    return palette


def _command(name: str, *arguments: object) -> None:
    subprocess.run([str(Path(sys.executable).with_name(name)), *map(str, arguments)], check=True)


if __name__ == "__main__":
    sys.exit(main())
