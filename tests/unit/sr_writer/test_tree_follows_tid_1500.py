"""The content tree, row by row of TID 1500, for 0, 1 and 3 nodules, both SOP classes, and not analysed."""

from __future__ import annotations

import pytest

from tests.builders import ChestSeries
from tests.reports import (
    NODULES,
    SMALL,
    analysis,
    children,
    descendants,
    evaluations,
    frozen,
    groups,
    headers,
    name_of,
    not_analysed,
    value_of,
    written,
)

CASES = {
    "three nodules": (analysis(), 3),
    "one nodule": (analysis(NODULES[:1]), 1),
    "no nodule": (analysis(()), 0),
    "not analysed": (not_analysed(), 0),
}


@pytest.fixture(scope="module", params=["comprehensive3d", "comprehensive"])
def sr(request):
    return request.param


@pytest.fixture(scope="module", params=CASES)
def case(request, sr):
    result, nodules = CASES[request.param]
    record = frozen(result, sr=sr)
    return record, written(record), nodules


def test_row_1_root_is_a_measurement_report_with_a_title_that_viewers_show(case):
    _, document, nodules = case
    assert document.ValueType == "CONTAINER"
    template = document.ContentTemplateSequence[0]
    assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "1500")
    assert name_of(document) == ("DCM", "126000" if nodules else "126001")


def test_every_container_is_separate_and_every_item_is_named(case):
    _, document, _ = case
    containers = [document, *(i for i in descendants(document) if i.ValueType == "CONTAINER")]
    assert {item.ContinuityOfContent for item in containers} == {"SEPARATE"}
    assert all(name_of(item)[1] for item in descendants(document))


def test_row_2_language_is_the_first_child(case):
    _, document, _ = case
    first = document.ContentSequence[0]
    assert (first.RelationshipType, name_of(first), value_of(first)) == (
        "HAS CONCEPT MOD",
        ("DCM", "121049"),
        "RFC5646 en-US",
    )
    assert len(children(document, named="121049")) == 1


def test_row_3_the_observer_is_this_device(case):
    record, document, _ = case
    observer = document.ContentSequence[1:7]
    assert {item.RelationshipType for item in observer} == {"HAS OBS CONTEXT"}
    assert [(item.ValueType, name_of(item)[1], value_of(item)) for item in observer] == [
        ("CODE", "121005", "DCM 121007"),
        ("UIDREF", "121012", record.node.device_uid),
        ("TEXT", "121013", "NODULE1"),
        ("TEXT", "121014", "nodule-node project"),
        ("TEXT", "121015", "nodule-node"),
        ("TEXT", "121016", "0.1.0"),
    ]


def test_row_4_one_procedure_reported_follows_the_observer(case):
    _, document, _ = case
    procedure = document.ContentSequence[7]
    assert (procedure.RelationshipType, name_of(procedure)[1]) == ("HAS CONCEPT MOD", "121058")
    assert value_of(procedure) == "LN 25045-6"
    assert len(children(document, named="121058")) == 1


def test_row_5_the_image_library_holds_exactly_the_slices_with_a_mark(case):
    _, document, nodules = case
    libraries = children(document, named="111028")
    if not nodules:
        assert libraries == []
        return
    (group,) = children(libraries[0], named="126200")
    listed = [image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in children(group)]
    assert {image.ValueType for image in children(group)} == {"IMAGE"}
    assert {name_of(image) for image in children(group)} == {("SCT", "260753009")}
    assert len(listed) == len(set(listed))
    assert set(listed) == {source_of(region(g)) for g in groups(document)}


def test_rows_of_tid_1602_and_1604_describe_each_slice_of_the_library():
    document = written()
    (library,) = children(document, named="111028")
    for image in children(children(library)[0]):
        assert {item.RelationshipType for item in children(image)} == {"HAS ACQ CONTEXT"}
        values = {name_of(item)[1]: value_of(item) for item in children(image)}
        assert values["121139"] == "DCM CT"
        assert values["112227"] == headers()[0].FrameOfReferenceUID
        assert [float(values[c]) for c in ("110910", "110911", "111026", "111066", "112225")] == [64, 64, 4, 4, 2.5]
        assert [float(values[f"1109{n:02d}"]) for n in range(4, 10)] == [1, 0, 0, 0, 1, 0]
        assert float(values["110903"]) in {2.5, -5.0, 7.5, 0.0}


def test_two_marks_on_one_slice_list_it_once():
    twin = analysis((NODULES[0], type(NODULES[0])((60.0, 10.0, 1.4), 6.0, 0.7)))
    (library,) = children(written(frozen(twin)), named="111028")
    assert len(children(children(library)[0])) == 1


def test_the_library_is_left_out_when_a_slice_has_no_thickness():
    slices = headers(ChestSeries(**{**vars(SMALL), "extra": {"SliceThickness": None}}))
    document = written(slices=slices)
    assert children(document, named="111028") == []
    assert len(groups(document)) == 3


def test_rows_6_and_7_one_group_for_each_nodule_in_order_of_probability(case):
    record, document, nodules = case
    assert len(children(document, named="126010")) == bool(nodules)
    assert len(groups(document)) == nodules
    assert [value_of(children(g)[0]) for g in groups(document)] == [f"Nodule {n + 1}" for n in range(nodules)]
    assert [value_of(children(g)[1]) for g in groups(document)] == [mark.tracking_uid for mark in record.marks]
    assert [mark.probability for mark in record.marks] == sorted(
        (m.probability for m in record.marks), reverse=True
    )


def test_a_group_holds_its_eight_items_in_the_order_viewers_need(case):
    record, document, _ = case
    expected = [
        ("HAS OBS CONTEXT", "TEXT", "112039"),
        ("HAS OBS CONTEXT", "UIDREF", "112040"),
        ("CONTAINS", "CODE", "121071"),
        ("HAS CONCEPT MOD", "CODE", "363698007"),
        ("CONTAINS", "NUM", "81827009"),
        ("CONTAINS", "NUM", "111012"),
        ("CONTAINS", "SCOORD", "111030"),
        ("CONTAINS", "SCOORD3D", "111010"),
    ]
    if record.sr == "comprehensive":
        expected.pop()
    for group in groups(document):
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
        assert [(i.RelationshipType, i.ValueType, name_of(i)[1]) for i in children(group)] == expected
        assert value_of(children(group)[2]) == "SCT 27925004"
        assert value_of(children(group)[3]) == "SCT 39607008"


def test_numbers_carry_unit_value_and_algorithm(case):
    record, document, _ = case
    for group, mark in zip(groups(document), record.marks, strict=True):
        diameter, certainty = children(group, of_type="NUM")
        assert unit_of(diameter) == ("mm", "UCUM", "millimeter")
        assert unit_of(certainty) == ("%", "UCUM", "percent")
        assert abs(float(value_of(diameter)) - mark.diameter_mm) <= 0.05 + 1e-9
        assert abs(float(value_of(certainty)) - 100 * mark.probability) <= 0.05 + 1e-9
        for number in (diameter, certainty):
            assert [(i.RelationshipType, name_of(i)[1], value_of(i)) for i in children(number)] == [
                ("HAS CONCEPT MOD", "111001", "nodule-node modern"),
                ("HAS CONCEPT MOD", "111003", "0.1.0+2026.1.0a1b2c3d"),
                ("HAS CONCEPT MOD", "111002", "operating_point=0.5"),
            ]


def test_numbers_are_rounded_once_and_half_up():
    numbers = [tuple(value_of(i) for i in children(g, of_type="NUM")) for g in groups(written())]
    assert numbers == [("9.0", "93.3"), ("16.0", "80.0"), ("4.3", "61.0")]


def test_rows_8_to_11_volumes_and_plain_measurements_are_never_written(case):
    _, document, _ = case
    templates = {
        i.ContentTemplateSequence[0].TemplateIdentifier
        for i in descendants(document)
        if "ContentTemplateSequence" in i
    }
    assert templates <= {"1410"}
    assert children(document, named="126011") == []


def test_rows_12_to_14_the_last_child_says_the_outcome_in_codes_and_texts(case):
    record, document, nodules = case
    last = document.ContentSequence[-1]
    assert name_of(last) == ("UMLS", "C0034375")
    assert len(children(document, named="C0034375")) == 1
    items = evaluations(document)
    assert {item.ValueType for item in items} == {"CODE", "TEXT"}
    outcome = "111245" if record.reason else "111242" if nodules else "111241"
    assert [(name_of(i)[1], value_of(i)) for i in items[:2]] == [
        ("111017", f"DCM {outcome}"),
        ("111022", "SCT 27925004"),
    ]
    assert {name_of(i)[1] for i in items[2:]} == {"121106"}
    if record.reason:
        assert value_of(items[2]) == f"Not analysed: {record.reason.text}"


def test_every_text_the_node_writes_is_ascii(case):
    _, document, _ = case
    texts = [value_of(i) for i in descendants(document) if i.ValueType == "TEXT"]
    assert texts
    assert all(text.isascii() for text in texts)


def test_references_in_the_tree_are_part_of_the_evidence_which_is_the_whole_series(case):
    _, document, _ = case
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    evidence = {i.ReferencedSOPInstanceUID for i in series.ReferencedSOPSequence}
    assert evidence == {h.SOPInstanceUID for h in headers()}
    assert len(series.ReferencedSOPSequence) == len(evidence)
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (SMALL.study_uid, SMALL.series_uid)
    references = {
        i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in descendants(document) if i.ValueType == "IMAGE"
    }
    assert references <= evidence
    assert "PertinentOtherEvidenceSequence" not in document


def region(group):
    return children(group, of_type="SCOORD")[0]


def source_of(coordinates):
    (image,) = children(coordinates)
    assert (image.RelationshipType, image.ValueType) == ("SELECTED FROM", "IMAGE")
    return image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID


def unit_of(number):
    unit = number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
    return unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning
