"""The surest false marks on scans without any nodule, as a table and as one picture to look at."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pipeline.domain.outcome import Refusal
from pipeline.reading import read_metaimage
from training import luna16
from training.froc import ScoredMark, judge_scan
from training.key_images import key_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from training.download import Download, DownloadedScan
    from training.marks import Mark

HOW_MANY = 10
COLUMNS_OF_PICTURES = 5
TABLE, PICTURE = "worst.csv", "worst.png"
TABLE_COLUMNS = ("seriesuid", *luna16.POSITION, "probability", "diameter_mm")


def worst_marks(
    download: Download, marks: Mapping[str, Sequence[Mark]], count: int = HOW_MANY
) -> list[tuple[DownloadedScan, Mark]]:
    """Give the most probable false marks on judged scans without nodules, the surest first."""
    found = []
    for scan in download.scans:
        if download.included.get(scan.uid) or scan.uid not in marks:
            continue
        scored = [ScoredMark(m.position_mm, m.probability) for m in marks[scan.uid]]
        false = set(judge_scan((), download.excluded.get(scan.uid, ()), scored).false_marks)
        found += [(scan, m) for m in marks[scan.uid] if m.probability in false]
    return sorted(found, key=lambda row: -row[1].probability)[:count]


def write_worst(folder: Path, worst: Sequence[tuple[DownloadedScan, Mark]]) -> None:
    """Write ``worst.csv``, and ``worst.png``: the axial plane through each mark, 60 mm wide, circled, numbered."""
    rows = ([s.uid, *m.position_mm, m.probability, m.diameter_mm] for s, m in worst)
    luna16.write_table(folder / TABLE, TABLE_COLUMNS, rows)
    pictures = [_picture(number, scan, mark) for number, (scan, mark) in enumerate(worst, 1)]
    if not pictures:
        (folder / PICTURE).unlink(missing_ok=True)
        return
    wide, high = pictures[0].size
    columns = min(len(pictures), COLUMNS_OF_PICTURES)
    sheet = Image.new("RGB", (wide * columns, high * -(-len(pictures) // columns)))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * wide, k // columns * high))
    sheet.save(folder / PICTURE)


def _picture(number: int, scan: DownloadedScan, mark: Mark) -> Image.Image:
    volume = read_metaimage(scan.path)
    if isinstance(volume, Refusal):  # it was searched a moment ago
        raise OSError(f"{scan.path}: {volume.text}")
    image = key_image(volume.hu, volume.grid, mark.position_mm, mark.diameter_mm)
    picture = Image.open(io.BytesIO(base64.b64decode(image.png.partition(",")[2]))).convert("RGB")
    draw = ImageDraw.Draw(picture)
    middle, reach = image.side / 2, image.radius + 6
    draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), outline=(255, 200, 0))
    draw.text((5, 4), f"{number}  p {mark.probability:.2f}  {mark.diameter_mm:.1f} mm", fill=(255, 200, 0))
    return picture
