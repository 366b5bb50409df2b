"""The same CT in other forms: compressed, deflated, big endian, Enhanced and Legacy Converted multi-frame."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import gdcm
import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.builders import uid_of

if TYPE_CHECKING:
    from pathlib import Path

LOSSLESS_FORMS = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLossless,
    "JPEG lossless SV1": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}
PYDICOM_ENCODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}


def write_as(dataset: Dataset, path: Path, syntax: str) -> Path:
    """Write an Explicit VR Little Endian image in another transfer syntax."""
    made = copy.deepcopy(dataset)
    if syntax in PYDICOM_ENCODERS:
        made.compress(syntax, encoding_plugin=PYDICOM_ENCODERS[syntax], generate_instance_uid=False)
    elif syntax in {JPEGLossless, JPEGLosslessSV1}:
        return _write_with_gdcm(made, path, syntax)
    elif syntax == ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, "<i2").byteswap().tobytes()
    made.file_meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dcmwrite(path, made, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    return path


def _write_with_gdcm(dataset: Dataset, path: Path, syntax: str) -> Path:
    dcmwrite(path, dataset, enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def _item(**values: object) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def enhanced(
    slices: list[Dataset], *, shared_orientation: bool = True, sop_class: str = EnhancedCTImageStorage
) -> Dataset:
    """An Enhanced CT of classic slices, its frames in the order given."""
    first = slices[0]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for element in first:
        if element.keyword not in {
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SliceThickness",
            "RescaleSlope",
            "RescaleIntercept",
            "RescaleType",
            "ConvolutionKernel",
            "PixelData",
        }:
            made.add(element)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid_of("enhanced", first.SOPInstanceUID)
    made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made.NumberOfFrames = len(slices)
    orientation = {"PlaneOrientationSequence": _item(ImageOrientationPatient=first.ImageOrientationPatient)}
    measures = _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    shared = {
        "PixelMeasuresSequence": measures,
        "CTReconstructionSequence": _item(ConvolutionKernel=first.ConvolutionKernel),
        "CTImageFrameTypeSequence": _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        **(orientation if shared_orientation else {}),
    }
    made.SharedFunctionalGroupsSequence = _item(**shared)
    made.PerFrameFunctionalGroupsSequence = [
        _item(
            FrameContentSequence=_item(FrameAcquisitionNumber=1),
            PlanePositionSequence=_item(ImagePositionPatient=s.ImagePositionPatient),
            PixelValueTransformationSequence=_item(
                RescaleSlope=s.RescaleSlope, RescaleIntercept=s.RescaleIntercept, RescaleType="HU"
            ),
            **({} if shared_orientation else orientation),
        )[0]
        for s in slices
    ]
    made.PixelData = b"".join(s.PixelData for s in slices)
    return made


def compressed_frames(dataset: Dataset) -> Dataset:
    """A multi-frame image with each frame in JPEG-LS, without an offset table."""
    import jpeg_ls

    made = copy.deepcopy(dataset)
    frames = np.frombuffer(made.PixelData, "<u2").reshape(-1, made.Rows, made.Columns)
    made.PixelData = encapsulate([bytes(jpeg_ls.encode_array(f)) for f in frames], has_bot=False)
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = JPEGLSLossless
    return made
