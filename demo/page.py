"""One HTML page for a report: a key image per finding, in three planes, drawn from what the report itself says.

The images are read with pydicom and stacked here, on purpose without the product's own reader: the page shows what
any other program would see.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from pydicom import dcmread

from demo.dicom_client import dicom_files
from demo.sr import read_comments, read_marks, read_summary
from demo.truth import missed, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from demo.sr import Mark
    from demo.truth import Nodule

LUNG_WINDOW_HU = (-1350.0, 150.0)
ZOOM_MM = 64.0
ZOOM_PIXELS = 320


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The images of a series in space.

    Attributes
    ----------
    hu
        Hounsfield units, shape ``(z, y, x)``, slices in order along their normal.
    spacing_zyx_mm
        Mean slice distance, row distance, column distance; mm.
    origin, normal
        Position of the first slice and unit vector of the order; LPS mm.
    place
        SOP Instance UID to index along z.
    """

    hu: NDArray[np.int16]
    spacing_zyx_mm: tuple[float, float, float]
    origin: NDArray[np.float64]
    normal: NDArray[np.float64]
    place: dict[str, int]


def read_stack(folder: Path, series_uid: str) -> Stack | None:
    """Stack the classic CT images of one series; ``None`` when it has fewer than two of them."""
    files = [
        (path, header)
        for path, header in dicom_files(folder)
        if header.SeriesInstanceUID == series_uid and "ImagePositionPatient" in header
    ]
    if len(files) < 2:
        return None
    cosines = np.array(files[0][1].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    files.sort(key=lambda file: float(np.dot(normal, np.array(file[1].ImagePositionPatient, float))))
    first, last = (np.array(files[i][1].ImagePositionPatient, float) for i in (0, -1))
    rows, columns = (float(v) for v in files[0][1].PixelSpacing)
    return Stack(
        hu=np.stack([_hounsfield(dcmread(path)) for path, _ in files]),
        spacing_zyx_mm=(float((last - first) @ normal) / (len(files) - 1), rows, columns),
        origin=first,
        normal=normal,
        place={str(header.SOPInstanceUID): k for k, (_, header) in enumerate(files)},
    )


def render(report: Dataset, folder: Path, truth: Sequence[Nodule] | None, title: str) -> str:
    """Make the page.

    Parameters
    ----------
    report
        The structured report, as the archive gave it back.
    folder
        The CT images.
    truth
        The true nodules, ``None`` where nobody knows them.
    title
        What was analysed, in words; no patient data.

    Returns
    -------
    str
        HTML that needs no other file.
    """
    marks = read_marks(report)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    stack = read_stack(folder, str(evidence.SeriesInstanceUID)) if marks else None
    environment = Environment(loader=FileSystemLoader(__file__.rpartition("/")[0]), autoescape=True)
    return environment.get_template("page.html").render(
        title=title,
        summary=read_summary(report),
        comments=read_comments(report),
        report=report,
        images=len(evidence.ReferencedSOPSequence),
        cards=[_card(mark, stack, truth) for mark in marks],
        truth=truth,
        missed=missed(marks, truth or ()),
    )


def _card(mark: Mark, stack: Stack | None, truth: Sequence[Nodule] | None) -> dict[str, Any]:
    nodule = verdict(mark, truth)
    card: dict[str, Any] = {"mark": mark, "verdict": nodule, "hit": nodule.startswith("nodule"), "views": []}
    if stack is None or mark.sop_instance_uid not in stack.place:
        return card
    k = stack.place[mark.sop_instance_uid]
    column, row = mark.centre_pixel
    depth = float(k)
    if mark.centre_lps_mm is not None:
        depth = float((np.array(mark.centre_lps_mm) - stack.origin) @ stack.normal) / stack.spacing_zyx_mm[0]
    dz, dy, dx = stack.spacing_zyx_mm
    radius = mark.diameter_mm / 2
    j, i = (int(np.clip(round(v), 0, n - 1)) for v, n in zip((row, column), stack.hu.shape[1:], strict=True))
    card |= {
        "slice": k + 1,
        "slices": len(stack.hu),
        "whole": {
            "png": _png(stack.hu[k]),
            "width": stack.hu.shape[2],
            "height": stack.hu.shape[1],
            "x": column + 0.5,
            "y": row + 0.5,
            "r": mark.radius_pixel,
        },
        # Coronal and sagittal planes are shown head up: z grows towards the head, the image's rows downwards.
        "views": [
            _zoom("axial", stack.hu[k], (row, column), (dy, dx), radius),
            _zoom("coronal", stack.hu[::-1, j, :], (len(stack.hu) - 1 - depth, column), (dz, dx), radius),
            _zoom("sagittal", stack.hu[::-1, :, i], (len(stack.hu) - 1 - depth, row), (dz, dy), radius),
        ],
    }
    return card


def _zoom(
    name: str,
    plane: NDArray[np.int16],
    centre: tuple[float, float],
    spacing_mm: tuple[float, float],
    radius_mm: float,
) -> dict[str, Any]:
    """Cut ``ZOOM_MM`` around a centre (row, column) and bring it to square pixels; outside is air."""
    half = [int(np.ceil(ZOOM_MM / 2 / step)) + 1 for step in spacing_mm]
    padded = np.pad(plane, [(n, n) for n in half], constant_values=-1024)
    start = [int(np.floor(c)) for c in centre]
    cut = padded[start[0] : start[0] + 2 * half[0] + 1, start[1] : start[1] + 2 * half[1] + 1]
    # Edges of the wanted square within the cut; pixel p of the cut covers [p, p + 1].
    middle = [h + c - s + 0.5 for h, c, s in zip(half, centre, start, strict=True)]
    reach = [ZOOM_MM / 2 / step for step in spacing_mm]
    box = (middle[1] - reach[1], middle[0] - reach[0], middle[1] + reach[1], middle[0] + reach[0])
    grey = Image.fromarray(_grey(cut)).resize((ZOOM_PIXELS, ZOOM_PIXELS), Image.Resampling.BICUBIC, box=box)
    scale = ZOOM_PIXELS / ZOOM_MM
    return {"name": name, "png": _encode(grey), "size": ZOOM_PIXELS, "r": radius_mm * scale, "cm": 10 * scale}


def _hounsfield(dataset: Dataset) -> NDArray[np.int16]:
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return np.clip(dataset.pixel_array * slope + intercept, -1024, 3071).astype(np.int16)


def _grey(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    low, high = LUNG_WINDOW_HU
    return (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _png(hu: NDArray[np.int16]) -> str:
    return _encode(Image.fromarray(_grey(hu)))


def _encode(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
