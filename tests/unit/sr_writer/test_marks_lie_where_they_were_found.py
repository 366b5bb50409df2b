"""Circle, slice and centre of each mark, in every orientation that a CT can have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from pipeline.domain.finding import Finding
from tests.builders import as_bytes
from tests.reports import SMALL, analysis, children, descendants, frozen, groups, headers, reread, written

COS, SIN = np.cos(np.radians(17)), np.sin(np.radians(17))
ORIENTATIONS = {
    "head first supine": (1, 0, 0, 0, 1, 0),
    "feet first supine": (-1, 0, 0, 0, 1, 0),
    "head first prone": (-1, 0, 0, 0, -1, 0),
    "feet first prone": (1, 0, 0, 0, -1, 0),
    "tilted gantry": (1, 0, 0, 0, COS, -SIN),
    "oblique": (COS, SIN, 0, -SIN * COS, COS * COS, -SIN),
}
CENTRE = np.array([-20.04, 10.5, 1.3])


def one_mark(series=SMALL, slices=None, *, centre=CENTRE, diameter=9.04, **changes):
    """The group of a single mark, and the headers."""
    slices = headers(series) if slices is None else slices
    result = analysis((Finding(tuple(centre), diameter, 0.9),), series=series)
    (group,) = groups(written(frozen(result, **changes), slices))
    return group, slices


def circle(group):
    (region,) = children(group, of_type="SCOORD")
    (image,) = children(region)
    return region, np.reshape(region.GraphicData, (-1, 2)), image.ReferencedSOPSequence[0]


def vectors(header):
    cosines = np.array(header.ImageOrientationPatient, float)
    return np.array(header.ImagePositionPatient, float), cosines[:3], cosines[3:]


def back_projected(point, header):
    """PS3.3 equation C.7.6.2.1-1, written out here once more."""
    origin, along_row, along_column = vectors(header)
    row_spacing, column_spacing = map(float, header.PixelSpacing)
    column, row = np.asarray(point) - 0.5
    return origin + along_row * column * column_spacing + along_column * row * row_spacing


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_the_circle_lies_at_the_projected_centre_of_the_nearest_slice(orientation):
    series = replace(SMALL, orientation=orientation)
    group, slices = one_mark(series)
    region, points, source = circle(group)
    distances = {}
    for header in slices:
        origin, along_row, along_column = vectors(header)
        distances[header.SOPInstanceUID] = float((CENTRE - origin) @ np.cross(along_row, along_column))
    nearest = min(distances, key=lambda uid: abs(distances[uid]))
    assert source.ReferencedSOPInstanceUID == nearest
    assert "ReferencedFrameNumber" not in source
    header = next(h for h in slices if nearest == h.SOPInstanceUID)
    normal = np.cross(*vectors(header)[1:])
    assert region.GraphicType == "CIRCLE"
    assert back_projected(points[0], header) == pytest.approx(CENTRE - normal * distances[nearest], abs=1e-3)
    assert points[1] - points[0] == pytest.approx([9.04 / 2 / 4.0, 0], abs=1e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_the_3d_centre_is_the_found_centre_in_the_images_frame(orientation):
    group, slices = one_mark(replace(SMALL, orientation=orientation))
    (centre,) = children(group, of_type="SCOORD3D")
    assert centre.GraphicType == "POINT"
    assert list(centre.GraphicData) == pytest.approx(CENTRE, abs=1e-5)
    assert centre.ReferencedFrameOfReferenceUID == slices[0].FrameOfReferenceUID


@pytest.mark.parametrize("shear", [0.76, -0.76])
def test_a_sheared_stack_is_measured_along_its_normal(shear):
    group, slices = one_mark(replace(SMALL, shear_mm=shear))
    _, points, source = circle(group)
    header = next(h for h in slices if source.ReferencedSOPInstanceUID == h.SOPInstanceUID)
    assert header.ImagePositionPatient[2] == 2.5
    assert back_projected(points[0], header) == pytest.approx([CENTRE[0], CENTRE[1], 2.5], abs=1e-3)


def test_the_order_and_instance_numbers_of_the_slices_do_not_matter():
    slices = headers()
    assert one_mark(slices=slices[::-1])[0] == one_mark(slices=slices)[0]


def test_a_scout_inside_the_series_never_carries_a_mark():
    scout = SMALL.datasets()[0]
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.ImagePositionPatient = [-126, CENTRE[1], 126]
    _, _, source = circle(one_mark(slices=[reread(as_bytes(scout)), *headers()])[0])
    assert source.ReferencedSOPInstanceUID != "2.25.77"


def test_orientations_that_differ_in_their_last_decimals_are_one_stack():
    images = SMALL.datasets()
    for image in images:
        sine = 0.00501 if image.ImagePositionPatient[2] == 2.5 else 0.00499
        image.ImageOrientationPatient = [round(float(np.sqrt(1 - sine**2)), 8), 0, sine, 0, 1, 0]
    slices = [reread(as_bytes(image)) for image in images]
    _, _, source = circle(one_mark(slices=slices, centre=np.array([-20.04, 10.5, 3.0]))[0])
    header = next(h for h in slices if source.ReferencedSOPInstanceUID == h.SOPInstanceUID)
    assert header.ImagePositionPatient[2] == 2.5


def test_pixels_that_are_not_square_get_an_outline_instead_of_a_circle():
    series = replace(SMALL, extra={"PixelSpacing": [4.0, 2.0]})
    group, slices = one_mark(series)
    region, points, source = circle(group)
    assert region.GraphicType == "POLYLINE"
    assert points[0] == pytest.approx(points[-1])
    header = next(h for h in slices if source.ReferencedSOPInstanceUID == h.SOPInstanceUID)
    ring = np.array([back_projected(point, header) for point in points])
    radii = np.linalg.norm(ring - [CENTRE[0], CENTRE[1], ring[0, 2]], axis=1)
    assert radii == pytest.approx(9.04 / 2, abs=1e-3)


def test_images_without_a_frame_of_reference_get_no_3d_centre():
    group, _ = one_mark(replace(SMALL, extra={"FrameOfReferenceUID": None}))
    assert children(group, of_type="SCOORD3D") == []
    assert circle(group)[0].GraphicType == "CIRCLE"


def test_comprehensive_sr_gets_no_3d_centre():
    group, _ = one_mark(sr="comprehensive")
    assert children(group, of_type="SCOORD3D") == []


def test_findings_in_a_series_without_any_geometry_are_a_bug_and_said_so():
    slices = headers(replace(SMALL, extra={"ImagePositionPatient": None}))
    with pytest.raises(ValueError, match="no image of the series has a usable geometry"):
        one_mark(slices=slices)


def test_every_image_item_of_a_multi_frame_image_names_its_frame():
    document = written(frozen(analysis(), evidence_uids=["2.25.5"]), [multi_frame()])
    images = [i.ReferencedSOPSequence[0] for i in descendants(document) if i.ValueType == "IMAGE"]
    assert {i.ReferencedSOPInstanceUID for i in images} == {"2.25.5"}
    # z = 1.3, -6.1 and 8.0 on slices from -15 mm in steps of 2.5 mm; frames are stored from the top down
    assert [i.ReferencedFrameNumber for i in images] == [12 - 7, 12 - 4, 12 - 9] * 2
    (evidence,) = (
        document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    )
    assert "ReferencedFrameNumber" not in evidence
    assert evidence.ReferencedSOPClassUID == EnhancedCTImageStorage


def multi_frame():
    """The small series as one Enhanced CT header, its frames from the top down."""
    slices = SMALL.datasets()
    image = slices[0]
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "2.25.5"
    image.NumberOfFrames = len(slices)
    image.PerFrameFunctionalGroupsSequence = [frame_of(s) for s in slices[::-1]]
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    shared.PixelMeasuresSequence = [measures]
    orientation = Dataset()
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    shared.PlaneOrientationSequence = [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "PixelData",
    ):
        delattr(image, keyword)
    return reread(as_bytes(image))


def frame_of(slice_):
    frame, position = Dataset(), Dataset()
    position.ImagePositionPatient = slice_.ImagePositionPatient
    frame.PlanePositionSequence = [position]
    return frame
