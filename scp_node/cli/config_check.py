"""``nodule-node config check``: the settings in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from
from scp_node.tls import check_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scp_node.settings import Destination, Sender, Settings

app = new_app("config")


@app.callback()
def _config() -> None:
    """Look at the settings."""


@app.command("check", epilog=examples("nodule-node config check", "nodule-node config check --config site.toml"))
def check(config: ConfigFile = None) -> None:
    """Say who may send what, what happens to it, and where results go.

    Every fault is named at once, with file, key, value and rule. Exit codes: 0 the settings can be used,
    78 they cannot. Nothing is contacted: for that there is 'nodule-node doctor'.
    """
    settings = settings_from(config)
    for line in sentences(settings):
        typer.echo(line)


def sentences(settings: Settings) -> Iterator[str]:
    """Give what the settings mean, one sentence a line."""
    yield f"Settings are read from {settings.path}."
    yield ""
    yield from _who_may_store(settings)
    yield ""
    yield from _what_happens(settings)
    yield ""
    yield from _where_results_go(settings)
    if warnings := (*settings.warnings(), *_certificate_faults(settings)):
        yield ""
        yield from (f"Warning: {warning}" for warning in warnings)


def _certificate_faults(settings: Settings) -> Iterator[str]:
    if settings.tls.identity is not None:
        yield from (f"{fault.text} {fault.action}" for fault in check_identity(settings.tls.identity))


def _who_may_store(settings: Settings) -> Iterator[str]:
    node = settings.node
    reach = ", reached from this machine alone" if node.bind in {"127.0.0.1", "localhost", "::1"} else ""
    yield f"This node is {node.ae_title!r} and listens on {node.bind}, port {node.port}{reach}."
    if settings.tls.port:
        plain = "" if settings.tls.plain else ", and there alone"
        yield f"It takes DICOM over TLS 1.2 and 1.3 on port {settings.tls.port}{plain}."
    if not settings.senders:
        yield "Nobody may store images: add a [[senders]] block for each device that sends."
    for sender in settings.senders:
        where = f"from {sender.host} only" if sender.host else "from any host"
        yield f"{sender.ae_title!r} may store images, {where}{_over(sender)}."


def _over(sender: Sender) -> str:
    name = f" with a certificate for {sender.tls_name}" if sender.tls_name else ""
    match sender.tls:
        case True:
            return f", over TLS only{name}"
        case False:
            return ", without TLS only"
        case _:
            return f", with TLS{name} or without" if name else ""


def _what_happens(settings: Settings) -> Iterator[str]:
    study, limits = settings.study, settings.selection
    which = "its best suitable series" if study.series == "best" else "every suitable series"
    yield f"A study is complete when nothing has arrived for {study.quiet_s:g} s; of it {which} is analysed."
    yield (
        f"With slices missing it waits up to {study.gap_wait_s:g} s more; {study.max_wait_s:g} s after its first "
        "image it is decided in any case."
    )
    yield (
        f"Suitable is an axial CT series with slices of at most {limits.max_thickness_mm:g} mm, at most "
        f"{limits.max_spacing_mm:g} mm apart, over at least {limits.min_coverage_mm:g} mm."
    )
    yield f"What is not CT is {_other_objects(settings)}, and never analysed."
    yield _detector_sentence(settings)
    yield f"Images, reports and the database are kept in {settings.storage.folder}."


def _other_objects(settings: Settings) -> str:
    return "kept as received" if settings.storage.other_objects == "keep" else "noted in the database but not kept"


def _detector_sentence(settings: Settings) -> str:
    detector = settings.detector
    if detector.implementation != "two-stage":
        return f"Nodules are looked for by {detector.implementation}."
    point = detector.operating_point
    threshold = f"the operating point {point!r}" if isinstance(point, str) else f"the threshold {point:g}"
    weights = "the bundled weights" if detector.weights == "bundled" else f"the weights {detector.weights}"
    return f"Nodules are looked for with {weights} on the device {detector.device!r}, at {threshold}."


def _where_results_go(settings: Settings) -> Iterator[str]:
    if not settings.senders:
        yield "No results arise, because nobody may store."
    for sender in settings.senders:
        places = settings.destinations_for(sender.ae_title)
        if not places:
            yield f"Results for {sender.ae_title!r} are kept here and sent nowhere."
        for place in places:
            yield f"Results for {sender.ae_title!r} go to {_destination(place)}."


def _destination(place: Destination) -> str:
    sr_class = "Comprehensive 3D SR" if place.sr == "comprehensive3d" else "Comprehensive SR"
    also = "also" if place.not_analysed else "but not"
    where = f"{place.ae_title} at {place.host}, port {place.port}" + " over TLS" * place.tls
    return f"{place.name!r} ({where}) as {sr_class}, {also} for studies that could not be analysed"
