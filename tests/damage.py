"""Damaged chests, and a node in one process through which they are sent: nothing wrong may end in a clean report.

``python -m tests.damage 500`` runs the long form and prints a table: damage by outcome, and every silent negative.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.analysis import analyse_series, decide
from pipeline.content import same_content
from pipeline.domain.finding import Detection
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Code, Outcome, Refusal
from pipeline.lungs import find_lungs
from pipeline.wholeness import look_and_decide
from scp_node.children import WrittenReport
from scp_node.identifiers import Part10, split_file
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.ledger.outbox import Outbox
from scp_node.ledger.proofs import Proofs
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import Studies
from scp_node.readiness import Ready, readiness
from scp_node.receive import Incoming, Receiver
from scp_node.settings import load_settings
from scp_node.spool import Spool
from scp_node.work import Run, Work
from sr_writer.record import NodeIdentity, ReportRecord
from sr_writer.report import build_report, encode
from tests.builders import ChestSeries, as_bytes, uid_of
from tests.dicom_forms import write_as
from tests.fakes import SCRIPTED, ScriptedDetector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom.dataset import Dataset

    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress

    Damage = Callable[[random.Random, list[Dataset]], "Damaged"]

LIMITS = SelectionLimits(
    min_rows=32,
    max_pixel_mm=8,
    warn_pixel_mm=8,
    max_thickness_mm=5,
    max_spacing_mm=5,
    warn_thickness_mm=5,
    min_slices=20,
)
SETTINGS = """
[storage]
folder = "storage"
[study]
gap_wait_s = 600.0
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
"""
LUNG_HU = (-950, -600)
LEAST_LOSS = 0.005
"""Part of the lung that a damage must take before a clean report counts as a silent negative."""


@dataclass(frozen=True)
class Damaged:
    """A damaged series.

    Attributes
    ----------
    files
        What is sent, in this order.
    loss
        Part of the lung that is uncovered or replaced in it, from 0 to 1.
    late
        What is sent after the first report; the loss is that of before, and nothing is lost afterwards.
    """

    files: list[bytes]
    loss: float
    late: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """What a radiologist gets to know: the outcome in the archive, every code, and the study's state."""

    outcome: str
    codes: tuple[str, ...]
    state: str

    @property
    def clean(self) -> bool:
        """Whether it reads as "nothing there" without any warning but that of a tilt, which some chests have."""
        return self.outcome == Outcome.NO_FINDINGS and set(self.codes) <= {Code.TILT_CORRECTED.value}


def chest(rng: random.Random, name: str) -> ChestSeries:
    """An intact chest of varied size and form."""
    step = rng.choice([4.0, 5.0, 5.0])
    feet_first = rng.random() < 0.3
    return ChestSeries(
        name,
        slices=round(rng.uniform(215, 260) / step),
        rows=64,
        columns=64,
        pixel_mm=rng.uniform(4.6, 5.6),
        slice_step=step,
        thickness=step,
        orientation=(-1, 0, 0, 0, 1, 0) if feet_first else (1, 0, 0, 0, 1, 0),
        shear_mm=rng.choice([0.0, 0.0, 0.0, 0.3]),
        noise_hu=rng.choice([5.0, 15.0, 40.0]),
        seed=rng.randrange(1 << 30),
    )


def hu_of(dataset: Dataset) -> np.ndarray:
    """Hounsfield units of an image of the builders."""
    return np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns) - 1024


def with_hu(dataset: Dataset, hu: np.ndarray) -> None:
    """Put other Hounsfield units into an image."""
    dataset.PixelData = (np.clip(np.rint(hu), -1024, 3071) + 1024).astype("<i2").tobytes()


def lung_of(dataset: Dataset) -> int:
    """Number of lung pixels of an image."""
    hu = hu_of(dataset)
    return int(((hu > LUNG_HU[0]) & (hu < LUNG_HU[1])).sum())


def loss_of(lost: Sequence[Dataset], of: Sequence[Dataset]) -> float:
    """Part of the lung that lies in some images."""
    return sum(map(lung_of, lost)) / sum(map(lung_of, of))


def middle(rng: random.Random, made: Sequence[Dataset], count: int) -> int:
    """A place where so many slices in a row lie in the lungs."""
    return rng.randint(len(made) // 5, 4 * len(made) // 5 - count)


def files(made: Sequence[Dataset]) -> list[bytes]:
    return [as_bytes(dataset) for dataset in made]


def missing_inner(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.choice([1, 2, 3, 5, 10])
    if rng.random() < 0.5:
        at = middle(rng, made, count)
        lost = set(range(at, at + count))
    else:
        lost = set(rng.sample(range(3, len(made) - 3), count))
    kept = [d for k, d in enumerate(made) if k not in lost]
    return Damaged(files(kept), loss_of([made[k] for k in lost], made))


def every_other_missing(rng: random.Random, made: list[Dataset]) -> Damaged:
    kept = made[rng.choice([0, 1]) :: 2]
    return Damaged(files(kept), 0.5)


def missing_end(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.randint(3, len(made) // 2)
    kept, lost = (made[count:], made[:count]) if rng.random() < 0.5 else (made[:-count], made[-count:])
    return Damaged(files(kept), loss_of(lost, made))


def missing_both_ends(rng: random.Random, made: list[Dataset]) -> Damaged:
    low, high = rng.randint(2, len(made) // 4), rng.randint(2, len(made) // 4)
    return Damaged(files(made[low:-high]), loss_of([*made[:low], *made[-high:]], made))


def duplicates(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Some images twice, under other UIDs: the same pixels, or others at the same place."""
    other = rng.random() < 0.5
    again = []
    for k in rng.sample(range(len(made)), rng.randint(1, len(made))):
        twin = copy.deepcopy(made[k])
        twin.SOPInstanceUID = uid_of(twin.SOPInstanceUID, "twin")
        twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
        if other:
            with_hu(twin, hu_of(twin)[::-1])
        again.append(twin)
    return Damaged(files([*made, *again]), loss_of(again, made) if other else 0.0)


def interleaved(rng: random.Random, made: list[Dataset]) -> Damaged:
    """A second acquisition, of blank images or from elsewhere, between the slices of the first."""
    blank, told_apart = rng.random() < 0.5, rng.random() < 0.5
    between = []
    for k, dataset in enumerate(made):
        twin = copy.deepcopy(dataset)
        twin.SOPInstanceUID = uid_of(twin.SOPInstanceUID, "second")
        twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
        step = np.subtract(made[1].ImagePositionPatient, made[0].ImagePositionPatient)
        twin.ImagePositionPatient = [float(v) for v in np.add(dataset.ImagePositionPatient, step / 2)]
        twin.AcquisitionNumber = 2 if told_apart else 1
        with_hu(twin, np.full((64, 64), -1000.0) if blank else hu_of(made[k - len(made) // 3]))
        between.append(twin)
    return Damaged(files([*made, *between]), 0.5)


def mixed_geometry(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.randint(1, len(made) // 2)
    at = middle(rng, made, count) if count < len(made) // 2 else len(made) // 4
    for dataset in made[at : at + count]:
        if rng.random() < 0.5:
            dataset.PixelSpacing = [float(v) * 1.3 for v in dataset.PixelSpacing]
        else:
            with_hu(dataset, hu_of(dataset)[:48, :])
            dataset.Rows = 48
    return Damaged(files(made), loss_of(made[at : at + count], made))


def mixed_orientation(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.randint(1, len(made) // 2)
    at = rng.randint(0, len(made) - count)
    turned = made[at : at + count]
    loss = loss_of(turned, made)
    for dataset in turned:
        dataset.ImageOrientationPatient = rng.choice(
            [[1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1], [0, 1, 0, -1, 0, 0]]
        )
    return Damaged(files(made), loss)


def wrong_rescale(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Some images, or all, claim another slope or intercept."""
    count = rng.choice([1, 3, 10, len(made)])
    at = 0 if count == len(made) else middle(rng, made, count)
    wrong = made[at : at + count]
    loss = loss_of(wrong, made)
    change = rng.choice(["intercept 0", "intercept -500", "slope 2", "missing", "not HU"])
    for dataset in wrong:
        if change == "missing":
            del dataset.RescaleIntercept
        elif change == "not HU":
            dataset.RescaleType = "US"
        elif change == "slope 2":
            dataset.RescaleSlope = 2
        else:
            dataset.RescaleIntercept = int(change.split()[1])
    return Damaged(files(made), loss)


def cut_short(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Pixel data cut short, plain or compressed."""
    count = rng.choice([1, 2, 5])
    at = middle(rng, made, count)
    syntax = rng.choice([None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
    sent, loss = [], loss_of(made[at : at + count], made)
    with tempfile.TemporaryDirectory() as folder:
        for k, dataset in enumerate(made):
            if not at <= k < at + count:
                sent.append(as_bytes(dataset))
            elif syntax is None:
                dataset.PixelData = dataset.PixelData[: int(rng.uniform(0.1, 0.9) * 4096) * 2]
                sent.append(as_bytes(dataset))
            else:
                whole = write_as(dataset, Path(folder) / "x.dcm", syntax).read_bytes()
                sent.append(_stream_cut(whole, rng.uniform(0.2, 0.8)))
    return Damaged(sent, loss)


def _stream_cut(file: bytes, part: float) -> bytes:
    """Keep the first part of the only fragment of encapsulated pixel data, correctly framed."""
    start = file.index(b"\xe0\x7f\x10\x00O")
    table = int.from_bytes(file[start + 16 : start + 20], "little")
    item = start + 20 + table
    length = int.from_bytes(file[item + 4 : item + 8], "little")
    keep = int(length * part) // 2 * 2
    body = file[item + 8 : item + 8 + keep]
    return file[: item + 4] + keep.to_bytes(4, "little") + body + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def wrong_order(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Positions exchanged: two blocks, all at random, or within a window."""
    places = [list(d.ImagePositionPatient) for d in made]
    order = list(range(len(made)))
    how = rng.choice(["blocks", "all", "window"])
    if how == "all":
        rng.shuffle(order)
    elif how == "blocks":
        size = rng.randint(6, len(made) // 4)
        a, b = rng.randint(4, len(made) // 2 - size), rng.randint(len(made) // 2, len(made) - size - 4)
        order[a : a + size], order[b : b + size] = order[b : b + size], order[a : a + size]
    else:
        size = rng.randint(12, len(made) // 2)
        at = rng.randint(0, len(made) - size)
        window = order[at : at + size]
        rng.shuffle(window)
        order[at : at + size] = window
    for dataset, k in zip(made, order, strict=True):
        dataset.ImagePositionPatient = places[k]
    far = [made[i] for i, k in enumerate(order) if abs(i - k) > 2]
    return Damaged(files(made), loss_of(far, made))


def replaced_pixels(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Images whose pixels are blank, of one value, or noise."""
    count = rng.choice([1, 2, 5, 15])
    at = middle(rng, made, count)
    loss = loss_of(made[at : at + count], made)
    how = rng.choice([-1024.0, 0.0, 3000.0, None])
    noise = np.random.default_rng(rng.randrange(1 << 30))
    for dataset in made[at : at + count]:
        with_hu(dataset, noise.uniform(-1000, 1000, (64, 64)) if how is None else np.full((64, 64), how))
    return Damaged(files(made), loss)


def without_position(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.choice([1, 2, 3, 10])
    at = middle(rng, made, count)
    loss = loss_of(made[at : at + count], made)
    for dataset in made[at : at + count]:
        if rng.random() < 0.5:
            del dataset.ImagePositionPatient
        else:
            dataset.PixelSpacing = [0, 0]
    return Damaged(files(made), loss)


def narrow_field(rng: random.Random, made: list[Dataset]) -> Damaged:
    """A field of view that cuts the lungs: a side, a corner, or a circle with padding around it."""
    rows, columns = np.mgrid[0:64, 0:64]
    how = rng.choice(["side", "corner", "circle"])
    kept = 0
    total = sum(map(lung_of, made))
    cut_rows, cut_columns = rng.randint(18, 24), rng.randint(18, 24)
    centre = (31.5 + rng.uniform(-6, 6), 31.5 + rng.uniform(-8, 8))
    radius = rng.uniform(15, 20)
    outside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 > radius**2
    for dataset in made:
        hu = hu_of(dataset).copy()
        if how == "circle":
            hu[outside] = -1024
        else:
            hu = hu[cut_rows:, cut_columns:] if how == "corner" else hu[:, cut_columns:]
            dataset.Rows, dataset.Columns = hu.shape
        with_hu(dataset, hu)
        kept += lung_of(dataset)
    return Damaged(files(made), 1 - kept / total)


def irregular(rng: random.Random, made: list[Dataset]) -> Damaged:
    """The table moves farther from some slice on, as if slices had been taken out and nobody had noticed."""
    at, by = middle(rng, made, 1), rng.uniform(0.2, 0.8)
    step = np.subtract(made[1].ImagePositionPatient, made[0].ImagePositionPatient)
    for dataset in made[at:]:
        dataset.ImagePositionPatient = [float(v) for v in np.add(dataset.ImagePositionPatient, by * step)]
    return Damaged(files(made), 0.02)


def split_series(rng: random.Random, made: list[Dataset]) -> Damaged:
    """One scan in two series, each with a part of the lungs."""
    at = rng.randint(len(made) // 4, 3 * len(made) // 4)
    for dataset in made[at:]:
        dataset.SeriesInstanceUID = uid_of(dataset.SeriesInstanceUID, "other half")
    return Damaged(files(made), min(loss_of(made[:at], made), loss_of(made[at:], made)))


def changed_later(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Images come again under their UIDs with other pixels, before the study is complete."""
    count = rng.choice([1, 3, 10])
    at = middle(rng, made, count)
    first, loss = files(made), loss_of(made[at : at + count], made)
    for dataset in made[at : at + count]:
        with_hu(dataset, hu_of(dataset)[::-1])
    return Damaged([*first, *files(made[at : at + count])], loss)


def two_patients(rng: random.Random, made: list[Dataset]) -> Damaged:
    count = rng.choice([1, 5, 20])
    at = middle(rng, made, count)
    loss = loss_of(made[at : at + count], made)
    for dataset in made[at : at + count]:
        dataset.PatientID = "TEST-0002"
    return Damaged(files(made), loss)


def broken_header(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Elements behind the identifiers are cut or garbled."""
    count = rng.choice([1, 2, 5])
    at = middle(rng, made, count)
    loss = loss_of(made[at : at + count], made)
    sent = files(made)
    for k in range(at, at + count):
        after = sent[k].index(b"\x20\x00\x0e\x00UI") + 60
        cut = rng.random() < 0.5
        sent[k] = sent[k][: after + 120] if cut else sent[k][:after] + rng.randbytes(200) + sent[k][after + 200 :]
    return Damaged(sent, loss)


def arriving_late(rng: random.Random, made: list[Dataset]) -> Damaged:
    late = set(rng.sample(range(len(made)), rng.randint(1, len(made) // 2)))
    first = [d for k, d in enumerate(made) if k not in late]
    rest = [made[k] for k in late]
    return Damaged(files(first), loss_of(rest, made), files(rest))


def out_of_order(rng: random.Random, made: list[Dataset]) -> Damaged:
    """Harmless: images in any order, numbered wrongly, some of them twice."""
    for dataset in made:
        dataset.InstanceNumber = rng.randint(1, 9999)
    sent = files(made)
    sent += rng.sample(sent, 5)
    rng.shuffle(sent)
    return Damaged(sent, 0.0)


def intact(_rng: random.Random, made: list[Dataset]) -> Damaged:
    """Harmless: nothing is wrong."""
    return Damaged(files(made), 0.0)


DAMAGES: tuple[Damage, ...] = (
    missing_inner,
    every_other_missing,
    missing_end,
    missing_both_ends,
    duplicates,
    interleaved,
    mixed_geometry,
    mixed_orientation,
    wrong_rescale,
    cut_short,
    wrong_order,
    replaced_pixels,
    without_position,
    narrow_field,
    irregular,
    split_series,
    changed_later,
    two_patients,
    broken_header,
    arriving_late,
)
HARMLESS: tuple[Damage, ...] = (intact, out_of_order)


class LungReader(ScriptedDetector):
    """Finds nothing, but looks where the real one does, and says what that says of the lungs."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        lungs = find_lungs(volume.hu, volume.grid.spacing_zyx_mm, LIMITS)
        if isinstance(lungs, Refusal):
            return lungs
        return Detection((), (), SCRIPTED, self.operating_points, lungs.notices, {})


class ReaderHere:
    """The reader's answers without a child process."""

    def decide(self, paths: Sequence[Path], _cancelled: object) -> Any:
        return decide(paths, LIMITS)

    def look(self, paths: Sequence[Path], _cancelled: object) -> Any:
        return look_and_decide(paths, LIMITS)[0]

    def same_content(self, pairs: Sequence[tuple[Path, Path]], _cancelled: object) -> list[bool]:
        return [same_content(one, other) for one, other in pairs]

    def write_report(self, record: ReportRecord, images: Sequence[Path], target: Path, _cancelled: object) -> Any:
        headers = [dcmread(path, stop_before_pixels=True) for path in images]
        dicom = encode(build_report(record, headers))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(dicom)
        return WrittenReport(hashlib.sha256(dicom).hexdigest())


class DetectorHere:
    """The detector's answers without a child process."""

    def analyse(self, paths: Sequence[Path], _cancelled: object) -> Any:
        return analyse_series(paths, LungReader(), LIMITS, operating_point="balanced")


@dataclass
class Clock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time


class SmallNode:
    """Receiving, readiness, work and outbox of a node in one process, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(SETTINGS)
        self.settings = load_settings(folder / "node.toml")
        upgrade(self.settings.database_url)
        self.engine = make_engine(self.settings.database_url)
        self.clock = Clock()
        spool = Spool(self.settings.storage.folder)
        spool.prepare()
        self.receiver = Receiver(
            spool, Arrivals(self.engine), self.clock, keep_other_objects=True, max_object_bytes=1 << 30
        )
        self.studies = Studies(self.engine)
        self.work = Work(
            self.settings,
            studies=self.studies,
            proofs=Proofs(self.engine),
            outbox=Outbox(self.engine),
            steps=Steps(self.engine, executor="test", clock=self.clock, retry_s=0.0),
            reader=ReaderHere(),
            detector=DetectorHere(),
            clock=self.clock,
            node=NodeIdentity("NODULE", "installation", "0.1"),
        )

    def send(self, dicom: bytes) -> int:
        """C-STORE one file; gives the status."""
        part10 = split_file(dicom)
        assert isinstance(part10, Part10), part10
        self.clock.time += 0.01
        names = (part10.sop_class_uid, part10.sop_instance_uid, part10.transfer_syntax_uid)
        incoming = Incoming(*names, dicom[part10.dataset_at :], "MODALITY", "NODULE", "127.0.0.1")
        return self.receiver.receive(incoming).status

    def settle(self) -> None:
        """Let time pass until every study has ended."""
        limits = self.settings.study
        while waiting := self.studies.waiting(now=self.clock.now()):
            self.clock.time += limits.quiet_s
            for seen in waiting:
                answer = readiness(
                    seen.facts,
                    quiet_s=limits.quiet_s,
                    max_wait_s=limits.max_wait_s,
                    gap_wait_s=limits.gap_wait_s,
                    now=self.clock.now(),
                )
                if isinstance(answer, Ready):
                    start = self.studies.claim(seen, why=answer.why, now=self.clock.now(), start=_nothing)
                    assert start is not None
                    self._run(Run(seen.study_uid, start, answer.timed_out))

    def told(self, study_uid: str) -> Told:
        """Read the report that counts, from its file, and the study's state."""
        from scp_node.ledger.overview import studies

        (view,) = studies(self.engine, study_uid=study_uid)
        newest = max(view.reports, key=lambda report: report.revision, default=None)
        record = None if newest is None else self._record(newest.sop_instance_uid)
        codes = () if record is None else tuple(notice.code.value for notice in record.notices)
        return Told("nothing" if record is None else record.outcome.value, codes or view.codes, view.state)

    def _record(self, sop_instance_uid: str) -> ReportRecord:
        import sqlalchemy as sa

        from scp_node.ledger.tables import report

        query = sa.select(report.c.record).where(report.c.sop_instance_uid == sop_instance_uid)
        with self.engine.connect() as connection:
            return ReportRecord.from_json(connection.execute(query).scalar_one())

    def _run(self, run: Run) -> None:
        following = self.work.decide(run, _never)
        while (series := following.series_uid) is not None:
            self.work.analyse(run, series, _never)
            self.work.report(run, series, _never)
            following = self.work.go_on(run, series, _never)


def _nothing(*_: object) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Case:
    """One damaged phantom, and what was told of it: before its late images, and in the end."""

    name: str
    seed: int
    loss: float
    early: Told
    final: Told

    @property
    def silent(self) -> bool:
        """Whether part of the lung is uncovered or replaced, and nothing says so."""
        return self.loss > LEAST_LOSS and self.early.clean

    @property
    def unseen(self) -> bool:
        """Whether the study did not end in a state that somebody sees."""
        return self.final.state not in {"REPORTED", "NOT_ANALYSED", "FAILED"}


def run_case(node: SmallNode, damage: Damage, seed: int) -> Case:
    """Send one phantom through the node."""
    rng = random.Random(f"{damage.__name__} {seed}")
    series = chest(rng, f"{damage.__name__}-{seed}")
    damaged = damage(rng, series.datasets())
    for file in damaged.files:
        node.send(file)
    node.settle()
    early = final = node.told(series.study_uid)
    if damaged.late:
        for file in damaged.late:
            node.send(file)
        node.settle()
        final = node.told(series.study_uid)
    return Case(damage.__name__, seed, damaged.loss, early, final)


def run_cases(folder: Path, damages: Sequence[Damage], count: int) -> list[Case]:
    """Send so many phantoms through one node, each kind of damage in turn."""
    node = SmallNode(folder)
    try:
        return [run_case(node, damages[k % len(damages)], k) for k in range(count)]
    finally:
        node.engine.dispose()


def _main(count: int) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / name for name in ("damaged", "intact")]
        for part in parts:
            part.mkdir()
        cases = run_cases(parts[0], DAMAGES, count)
        clean = run_cases(parts[1], HARMLESS, max(2, count // 10))
    for name in dict.fromkeys(case.name for case in cases):
        told = Counter(
            f"{case.early.outcome}: {' '.join(sorted(set(case.early.codes))) or '-'}"
            for case in cases
            if case.name == name
        )
        print(name, *(f"  {number:3} {what}" for what, number in told.most_common()), sep="\n")
    silent = [case for case in cases if case.silent or case.unseen]
    alarms = [case for case in clean if not case.final.clean]
    print(f"{len(cases)} damaged, {len(silent)} silent; {len(clean)} intact, {len(alarms)} false alarms")
    for case in (*silent, *alarms):
        print(case)
    return 1 if silent or alarms else 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
