"""Settings of the node: types and rules of ``config/node.toml``, which alone holds the defaults.

Read once, at start, and never changed. :mod:`scp_node.settings_file` says where values come from and
:mod:`scp_node.settings_faults` puts every fault into a sentence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from pipeline.domain.limits import SelectionLimits
from scp_node.settings_faults import EVERY_SENDER, SENDER, FaultReader, reference_faults
from scp_node.settings_file import (
    PACKAGED_FILE,
    SettingsError,
    find_settings_file,
    read_snapshot,
    read_values,
)
from scp_node.tls import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PACKAGED_FILE", "Destination", "Sender", "Settings", "SettingsError", "load_settings"]

AE_TITLE_RULE = (
    "an AE title is 1 to 16 ASCII characters, not all blank, no backslash, no control characters "
    "(PS3.5 Table 6.2-1)"
)


def _ae_title(title: str) -> str:
    trimmed = title.strip(" ")
    if not 1 <= len(trimmed) <= 16 or "\\" in trimmed or any(not " " <= letter <= "~" for letter in trimmed):
        raise ValueError(AE_TITLE_RULE)
    return trimmed


def _ascii_text(text: str) -> str:
    if any(not " " <= letter <= "~" for letter in text):
        raise ValueError("texts that the node writes are printable ASCII")
    return text


def _host_or_network(host: str) -> str:
    """A host name, an address, or a network such as 10.1.0.0/16."""
    if "/" in host:
        try:
            ip_network(host)
        except ValueError as fault:
            raise ValueError(f"a network is an address, a slash and a number of bits: {fault}") from None
    return host


def _destination_name(name: str) -> str:
    if name in (SENDER, EVERY_SENDER):
        raise ValueError('"sender" and "*" have a meaning of their own in [routing]; choose another name')
    return name


def _implementation(text: str) -> str:
    module, _, function = text.partition(":")
    dotted_names = all(part.isidentifier() for part in [*module.split("."), function])
    if text != "two-stage" and not dotted_names:
        raise ValueError('"two-stage", or "module:function" that returns a detector')
    return text


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is None:
        raise ValueError('must be "auto", "cpu", "cuda" or "cuda:" with a number')
    return text


def _syslog(address: str) -> str:
    if address and re.fullmatch(r"(udp|tcp|tls)://[A-Za-z0-9._-]+:\d{1,5}", address) is None:
        raise ValueError('must be "" or "udp://HOST:PORT", "tcp://HOST:PORT" or "tls://HOST:PORT"')
    return address


def _operating_point(point: float | str) -> float | str:
    try:
        threshold = float(point)
    except ValueError:
        return point
    if not 0 <= threshold <= 1:
        raise ValueError("a probability from 0 to 1, or the name of an operating point in the weights' card")
    return threshold


AeTitle = Annotated[str, AfterValidator(_ae_title)]
AsciiText = Annotated[str, AfterValidator(_ascii_text)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Routing = Annotated[Mapping[str, tuple[str, ...]], AfterValidator(lambda routes: MappingProxyType(dict(routes)))]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NodeSettings(_Section):
    """``[node]``: who we are on the network."""

    ae_title: AeTitle
    bind: Annotated[str, Field(min_length=1)]
    port: Port
    max_pdu: Annotated[int, Field(ge=4096, le=1048576)]
    max_associations: Count


class Sender(_Section):
    """One of ``[[senders]]``: who may store."""

    ae_title: AeTitle
    host: Annotated[str, AfterValidator(_host_or_network)] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    tls: bool | Literal["optional"] = "optional"
    tls_name: str = ""


class Destination(_Section):
    """One of ``[[destinations]]``: where results go."""

    name: Annotated[Name, AfterValidator(_destination_name)]
    ae_title: AeTitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    sr: Literal["comprehensive3d", "comprehensive"] = "comprehensive3d"
    not_analysed: bool = True
    query: bool = False
    verify: Literal["auto", "commitment", "query", "none"] = "auto"
    tls: bool = False
    tls_name: str = ""
    tls_ca: str = ""


class TlsSettings(_Section):
    """``[tls]``: DICOM over TLS, on a port of its own."""

    port: Annotated[int, Field(ge=0, le=65535)]
    plain: bool
    certificate: str
    key: str
    ca: str

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        missing = [name for name in ("certificate", "key", "ca") if not getattr(self, name)]
        if self.port and missing:
            raise ValueError(f"with a port, {', '.join(missing)} must be given too")
        if not self.port and not self.plain:
            raise ValueError("with plain = false a port is needed: nobody could connect otherwise")
        return self

    @property
    def identity(self) -> Identity | None:
        """The files, ``None`` when none are named."""
        if not (self.certificate and self.key and self.ca):
            return None
        return Identity(Path(self.certificate), Path(self.key), Path(self.ca))


class StorageSettings(_Section):
    """``[storage]``: the folder, the database, and what is kept."""

    folder: Path
    database_url: str
    other_objects: Literal["keep", "header"]
    min_free_mib: Annotated[int, Field(ge=0)]
    min_free_percent: Annotated[float, Field(ge=0, lt=100)]
    keep_days: NotNegative


class StudySettings(_Section):
    """``[study]``: when a study is complete, and what of it is analysed."""

    quiet_s: Annotated[float, Field(ge=2, allow_inf_nan=False)]
    max_wait_s: Seconds
    gap_wait_s: NotNegative
    max_revisions: Count
    series: Literal["best", "all"]

    @model_validator(mode="after")
    def _longest_wait_is_longest(self) -> Self:
        if self.max_wait_s < self.quiet_s:
            raise ValueError(f"max_wait_s ({self.max_wait_s:g}) is at least quiet_s ({self.quiet_s:g})")
        return self


class SelectionSettings(_Section):
    """``[selection]``: the settings' side of :class:`pipeline.domain.limits.SelectionLimits`."""

    max_thickness_mm: Annotated[float, Field(gt=0, le=5.0)]
    max_spacing_mm: Annotated[float, Field(gt=0, le=5.0)]
    warn_thickness_mm: Positive
    max_pixel_mm: Positive
    warn_pixel_mm: Positive
    min_rows: Count
    max_rows: Count
    min_slices: Count
    max_slices: Count
    max_instances: Count
    min_coverage_mm: NotNegative
    warn_coverage_mm: NotNegative
    max_axial_angle_deg: Annotated[float, Field(gt=0, le=90)]
    ignore_tilt_deg: Annotated[float, Field(ge=0, le=90)]
    max_tilt_deg: Annotated[float, Field(ge=0, le=30)]
    max_filled_slices: Annotated[int, Field(ge=0)]
    min_lung_l: NotNegative
    max_lung_l: Positive
    min_age_years: Annotated[int, Field(ge=0)]
    skip_patient_ids: tuple[str, ...]
    weight_thin: NotNegative
    weight_kernel: NotNegative
    weight_coverage: NotNegative
    weight_no_contrast: NotNegative
    weight_text: NotNegative
    weight_isotropy: NotNegative

    def limits(self) -> SelectionLimits:
        """The same values in the pipeline's own type."""
        return SelectionLimits(**self.model_dump())

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        pairs = [("min_rows", "max_rows"), ("min_slices", "max_slices"), ("min_lung_l", "max_lung_l")]
        empty = [f"{low} is at most {high}" for low, high in pairs if getattr(self, low) > getattr(self, high)]
        if empty:
            raise ValueError("; ".join(empty))
        return self


class DetectorSettings(_Section):
    """``[detector]``: which networks, where they run, and how sensitive they are."""

    implementation: Annotated[str, AfterValidator(_implementation)]
    weights: Annotated[str, Field(min_length=1)]
    device: Annotated[str, AfterValidator(_device)]
    precision: Literal["auto", "float32", "bfloat16"]
    operating_point: Annotated[float | str, AfterValidator(_operating_point)]
    threads: Annotated[int, Field(ge=0)]


class ReportSettings(_Section):
    """``[report]``: what the site adds to its reports."""

    institution: Annotated[AsciiText, Field(max_length=64)]
    texts: tuple[Annotated[AsciiText, Field(min_length=1, max_length=1024)], ...]
    copy_procedure: bool


class LogSettings(_Section):
    """``[log]``."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["text", "json"]


class NetworkSettings(_Section):
    """``[network]``: time limits and caps of DICOM connections, as server and as client."""

    guard: bool
    acse_timeout_s: Seconds
    idle_timeout_s: Seconds
    pdu_timeout_s: Seconds
    sockets_per_host: Count
    half_open_per_host: Count
    half_open: Count
    max_sockets: Count
    max_object_mib: Count
    connect_timeout_s: Seconds
    association_timeout_s: Seconds
    response_timeout_s: Seconds
    send_timeout_s: Seconds
    drain_s: NotNegative
    database_timeout_s: Seconds


class DeliverySettings(_Section):
    """``[delivery]``: how a report is sent again."""

    retry_s: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    jitter: Annotated[float, Field(ge=0, le=1)]
    give_up_s: Seconds
    breaker_failures: Count
    probe_s: Seconds
    verify_after_s: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    commitment_wait_s: NotNegative
    commitment_timeout_s: Seconds


class WorkerSettings(_Section):
    """``[worker]``: leases, time limits and memory of the analysing processes."""

    slot: Name
    lease_s: Seconds
    beat_s: Seconds
    poll_s: Seconds
    drain_s: NotNegative
    run_timeout_s: Seconds
    concurrency: Count
    reader_timeout_s: Seconds
    detect_timeout_s: Seconds
    max_starts: Count
    database_retry_s: NotNegative
    reader_memory_mib: Annotated[int, Field(ge=256)]
    detector_studies: Annotated[int, Field(ge=0)]
    run_retention_s: Seconds

    @model_validator(mode="after")
    def _beats_fit_into_the_lease(self) -> Self:
        if self.beat_s * 3 > self.lease_s:
            raise ValueError(f"beat_s ({self.beat_s:g}) is at most a third of lease_s ({self.lease_s:g})")
        return self


class MetricsSettings(_Section):
    """``[metrics]``: how others see whether the node is well."""

    port: Annotated[int, Field(ge=0, le=65535)]
    refresh_s: Seconds
    alarm_s: Seconds


class AuditSettings(_Section):
    """``[audit]``: who used the node for what, for the hospital's audit."""

    file: str
    syslog: Annotated[str, AfterValidator(_syslog)]
    poll_s: Seconds


class Settings(_Section):
    """Everything the node can be told, read once and never changed.

    Attributes have the names of the sections and keys of ``config/node.toml``, which says what each means.
    Folders are absolute.
    """

    node: NodeSettings
    senders: tuple[Sender, ...] = ()
    destinations: tuple[Destination, ...] = ()
    routing: Routing
    storage: StorageSettings
    study: StudySettings
    selection: SelectionSettings
    detector: DetectorSettings
    report: ReportSettings
    log: LogSettings
    network: NetworkSettings
    tls: TlsSettings
    delivery: DeliverySettings
    worker: WorkerSettings
    metrics: MetricsSettings
    audit: AuditSettings
    _path: Path = PrivateAttr(default=PACKAGED_FILE)
    _snapshot: Path = PrivateAttr(default=PACKAGED_FILE)
    _version: int = PrivateAttr(default=1)
    _values: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def path(self) -> Path:
        """The settings file that this came from."""
        return self._path

    @property
    def snapshot(self) -> Path:
        """The file that was read: :attr:`path`, or the snapshot that the supervisor made of it."""
        return self._snapshot

    @property
    def version(self) -> int:
        """How many times the running node has taken up settings, this time included."""
        return self._version

    @property
    def values(self) -> Mapping[str, Any]:
        """The values as they were read, packaged file and environment included."""
        return self._values

    @property
    def database_url(self) -> str:
        """SQLAlchemy address of the database: ``[storage] database_url``, or the SQLite file in the folder."""
        return self.storage.database_url or f"sqlite:///{self.storage.folder / 'node.sqlite'}"

    @property
    def run_folder(self) -> Path:
        """Where the processes of the running node keep what they tell each other."""
        return self.storage.folder / "run"

    @property
    def counters_folder(self) -> Path:
        """Where the listener's counters lie."""
        return self.run_folder / "counters"

    def destinations_for(self, sender_ae: str) -> tuple[Destination, ...]:
        """Where results of a study go that ``sender_ae`` sent, each destination once, in the order of the route."""
        everywhere = tuple(destination.name for destination in self.destinations)
        route = self.routing.get(sender_ae, self.routing.get(EVERY_SENDER, everywhere))
        found = (self._routed(name, sender_ae) for name in route)
        return tuple({place.name: place for place in found if place is not None}.values())

    def destination_named(self, name: str) -> Destination | None:
        """The destination that a delivery names, ``None`` when the settings no longer have it."""
        listed = (destination for destination in self.destinations if destination.name == name)
        as_sender = (_sender_as_destination(sender) for sender in self.senders if sender.port)
        return next((place for place in (*listed, *as_sender) if place.name == name), None)

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but is probably not meant; a sentence each, for the log and ``config check``."""
        return (
            *_nobody_warnings(self),
            *_case_warnings(self),
            *_own_address_warnings(self),
            *_tls_warnings(self),
        )

    def _routed(self, name: str, sender_ae: str) -> Destination | None:
        if name != SENDER:
            return self.destination_named(name)
        listed = (destination for destination in self.destinations if destination.ae_title == sender_ae)
        as_sender = (
            _sender_as_destination(sender)
            for sender in self.senders
            if sender.ae_title == sender_ae and sender.port
        )
        return next(iter((*listed, *as_sender)), None)


def load_settings(path: Path | None = None) -> Settings:
    """Read and check the settings.

    Parameters
    ----------
    path
        The settings file, or a running node's snapshot (``.json``); ``None`` takes ``node.toml`` in the current
        folder, else the packaged file.

    Raises
    ------
    SettingsError
        The file cannot be read, or breaks a rule; every fault is named.
    """
    found = find_settings_file(path)
    snapshot = read_snapshot(found)
    source, version = (found, 1) if snapshot is None else (snapshot.source, snapshot.version)
    values, variables = read_values(source, os.environ) if snapshot is None else (snapshot.values, {})
    reader = FaultReader(source, values, variables, _valid_names())
    try:
        settings = Settings.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise SettingsError([*reader.faults(error), *reference_faults(reader)]) from None
    if faults := reference_faults(reader):
        raise SettingsError(faults)
    complete = _with_absolute_paths(settings, source)
    complete._values, complete._version, complete._snapshot = values, version, found
    return complete


def _valid_names() -> dict[str, tuple[str, ...]]:
    return {name: tuple(SECTIONS[name].model_fields if name in SECTIONS else ()) for name in Settings.model_fields}


def _sender_as_destination(sender: Sender) -> Destination:
    return Destination.model_construct(
        name=f"{SENDER}:{sender.ae_title}",
        ae_title=sender.ae_title,
        host=sender.host,
        port=sender.port,
        tls=sender.tls is True,
        tls_name=sender.tls_name,
    )


def _with_absolute_paths(settings: Settings, source: Path) -> Settings:
    """Relative paths count from the settings file; the packaged file stands for the current folder."""
    base = Path.cwd() if source == PACKAGED_FILE else source.parent
    storage = settings.storage.model_copy(update={"folder": (base / settings.storage.folder).resolve()})
    detector = settings.detector
    if detector.weights != "bundled":
        detector = detector.model_copy(update={"weights": str((base / detector.weights).resolve())})
    files = {name: str((base / path).resolve()) for name, path in _tls_files(settings) if path}
    places = tuple(
        place.model_copy(update={"tls_ca": str((base / place.tls_ca).resolve())}) if place.tls_ca else place
        for place in settings.destinations
    )
    complete = settings.model_copy(
        update={
            "storage": storage,
            "detector": detector,
            "destinations": places,
            "tls": settings.tls.model_copy(update=files),
        }
    )
    complete._path = source
    return complete


def _tls_files(settings: Settings) -> Iterator[tuple[str, str]]:
    for name in ("certificate", "key", "ca"):
        yield name, getattr(settings.tls, name)


def _nobody_warnings(settings: Settings) -> Iterator[str]:
    if not settings.senders:
        yield "No [[senders]] are listed: nobody may store images."
    if not settings.destinations and not any(sender.port for sender in settings.senders):
        yield "No [[destinations]] are listed: reports are kept here and sent nowhere."


def _case_warnings(settings: Settings) -> Iterator[str]:
    senders = {sender.ae_title for sender in settings.senders}
    destinations = {destination.ae_title for destination in settings.destinations}
    titles = sorted({settings.node.ae_title, *senders, *destinations})
    for index, title in enumerate(titles):
        for other in titles[index + 1 :]:
            if title.lower() == other.lower():
                yield f"AE titles {title!r} and {other!r} differ only by case: to DICOM they are different names."


def _own_address_warnings(settings: Settings) -> Iterator[str]:
    own = (settings.node.ae_title, settings.node.port)
    for place in settings.destinations:
        if (place.ae_title, place.port) == own:
            yield f"Destination {place.name!r} has this node's AE title and port: reports would return to us."


def _tls_warnings(settings: Settings) -> Iterator[str]:
    tls = settings.tls
    for sender in settings.senders:
        if sender.tls is True and not tls.port:
            yield f"{sender.ae_title!r} may store over TLS only, and tls.port is 0: it cannot store at all."
        if sender.tls is False and not tls.plain:
            yield f"{sender.ae_title!r} may store without TLS only, and tls.plain is false: it cannot store at all."
    if tls.identity is None:
        for place in settings.destinations:
            if place.tls:
                yield f"Destination {place.name!r} wants TLS, and [tls] does not name certificate, key and ca."


SECTIONS: Mapping[str, type[_Section]] = MappingProxyType(
    {
        "node": NodeSettings,
        "senders": Sender,
        "destinations": Destination,
        "storage": StorageSettings,
        "study": StudySettings,
        "selection": SelectionSettings,
        "detector": DetectorSettings,
        "report": ReportSettings,
        "log": LogSettings,
        "network": NetworkSettings,
        "tls": TlsSettings,
        "delivery": DeliverySettings,
        "worker": WorkerSettings,
        "metrics": MetricsSettings,
        "audit": AuditSettings,
    }
)
"""The type of each section, of one entry for ``[[senders]]`` and ``[[destinations]]``."""
