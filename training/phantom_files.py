"""A phantom as files: a valid classic CT series, or a MetaImage with LUNA16's annotation tables.

Attributes follow PS3.3 A.3 (CT Image IOD); UIDs follow from the seed and the scan settings alone, so that the same
phantom written twice is the same study. The patient is invented and named as such.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from training import luna16

if TYPE_CHECKING:
    from pathlib import Path

    from training.phantom import Phantom

STUDY_DATE = "20260105"
STUDY_TIME = "090000"
INTERCEPT = -1024
TRUTH_FILE = "truth.json"


def uid_of(*parts: object) -> str:
    """Give the UID that follows from some values (PS3.5 B.2, the 2.25 root)."""
    digest = hashlib.sha256("|".join(map(str, ("nodule-node phantom", *parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def series_uid(phantom: Phantom) -> str:
    """Series Instance UID of a phantom."""
    return uid_of("series", phantom.seed, phantom.settings)


def study_uid(phantom: Phantom) -> str:
    """Study Instance UID of a phantom."""
    return uid_of("study", phantom.seed, phantom.settings)


def write_series(phantom: Phantom, folder: Path) -> list[Path]:
    """Write a phantom as a CT series, a file a slice, and its truth as ``truth.json`` beside it.

    Returns
    -------
    list of Path
        The DICOM files, from the feet to the head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(len(phantom.hu)):
        paths.append(folder / f"IM{k + 1:04d}.dcm")
        dcmwrite(paths[-1], slice_of(phantom, k), enforce_file_format=True)
    (folder / TRUTH_FILE).write_text(truth_json(phantom), encoding="ascii")
    return paths


def truth_json(phantom: Phantom) -> str:
    """Give nodules and imitators of a phantom as JSON; positions in LPS mm."""
    truth = {
        "seed": phantom.seed,
        "series_instance_uid": series_uid(phantom),
        "settings": asdict(phantom.settings),
        "nodules": [asdict(n) for n in phantom.nodules],
        "mimics": [asdict(m) for m in phantom.mimics],
    }
    return json.dumps(truth, indent=1) + "\n"


def slice_of(phantom: Phantom, k: int) -> Dataset:
    """Give slice ``k`` (from the feet) as a data set of the CT Image Storage class."""
    dataset = _identity(phantom, k)
    _acquisition(dataset, phantom)
    _place(dataset, phantom, k)
    _pixels(dataset, phantom, k)
    return dataset


def _identity(phantom: Phantom, k: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    instance = UID(uid_of("instance", phantom.seed, phantom.settings, k))
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = study_uid(phantom)
    dataset.SeriesInstanceUID = series_uid(phantom)
    dataset.FrameOfReferenceUID = uid_of("frame of reference", phantom.seed)
    dataset.PositionReferenceIndicator = ""
    for prefix in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{prefix}Date", STUDY_DATE)
        setattr(dataset, f"{prefix}Time", STUDY_TIME)
    dataset.AccessionNumber = f"PH{phantom.seed}"
    dataset.StudyID = f"PH{phantom.seed}"
    dataset.SeriesNumber = 2
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = k + 1
    dataset.PatientName = f"PHANTOM^SEED {phantom.seed}"
    dataset.PatientID = f"PHANTOM-{phantom.seed}"
    dataset.PatientBirthDate = "19600101"
    dataset.PatientSex = "O"
    dataset.PatientAge = "066Y"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "CT CHEST PHANTOM"
    dataset.SeriesDescription = f"CHEST {phantom.settings.thickness_mm:g} {phantom.settings.kernel}"
    return dataset


def _acquisition(dataset: Dataset, phantom: Phantom) -> None:
    settings = phantom.settings
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "nodule-node"
    dataset.ManufacturerModelName = "Digital chest phantom"
    dataset.SoftwareVersions = "1"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.ScanOptions = "HELICAL"
    dataset.KVP = "120"
    dataset.ConvolutionKernel = settings.kernel
    dataset.SliceThickness = f"{settings.thickness_mm:g}"
    dataset.SpacingBetweenSlices = f"{settings.slice_distance_mm:g}"
    dataset.GantryDetectorTilt = "0"
    dataset.LossyImageCompression = "00"
    dataset.BurnedInAnnotation = "NO"


def _place(dataset: Dataset, phantom: Phantom, k: int) -> None:
    spacing = phantom.grid.spacing_zyx_mm
    x, y, z = (float(v) for v in phantom.grid.index_to_lps((k, 0, 0)))
    dataset.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[2]:.6f}"]
    dataset.ImagePositionPatient = [f"{x:.6f}", f"{y:.6f}", f"{z:.6f}"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.SliceLocation = f"{z:.6f}"


def _pixels(dataset: Dataset, phantom: Phantom, k: int) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = phantom.hu.shape[1:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept = str(INTERCEPT)
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    dataset.WindowCenter = "-500"
    dataset.WindowWidth = "1500"
    stored = phantom.hu[k].astype(np.int32) - INTERCEPT
    dataset.PixelData = stored.astype("<i2").tobytes()


def write_metaimage(phantom: Phantom, folder: Path) -> Path:
    """Write a phantom as ``UID.mhd`` and ``UID.raw``, and add its nodules to ``annotations.csv`` of the folder.

    Returns
    -------
    Path
        The ``.mhd`` file; its stem is the series UID, as in LUNA16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = series_uid(phantom)
    path = folder / f"{uid}.mhd"
    luna16.write_metaimage(path, phantom.hu, phantom.grid)
    _annotate(phantom, folder / luna16.ANNOTATIONS, uid)
    return path


def _annotate(phantom: Phantom, path: Path, uid: str) -> None:
    """Put the phantom's rows into the table in place of older ones of the same series."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="ascii") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row and row[0] != uid]
    for nodule in phantom.nodules:
        rows.append([uid, *(f"{v:.6f}" for v in (*nodule.centre_lps_mm, nodule.diameter_mm))])
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(luna16.ANNOTATION_COLUMNS)
        writer.writerows(rows)
