"""Everything that the standard registers is proposed to a running listener; it answers what the statement says."""

from __future__ import annotations

import re

import pytest
from pynetdicom import AE, build_context

from scp_node.conformance import statement
from scp_node.network.registry import proposals, sop_classes, transfer_syntaxes
from tests.listening import listening

PAIR = re.compile(r"^\| .* \| `(?P<sop_class>[0-9.]+)` \| `(?P<syntax>[0-9.]+)` \|$", re.MULTILINE)
NAMED = re.compile(r"^\| .* \| `(?P<uid>[0-9.]+)` \| [a-z0-9 ]+ \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with listening(tmp_path_factory.mktemp("conformance")) as node:
        yield node


@pytest.fixture(scope="module")
def text(node):
    return statement(node.settings)


def promised(text: str) -> set[tuple[str, str]]:
    """Read the tables of acceptable presentation contexts back."""
    _, rest = text.split("Table A: SOP classes\n")
    classes, rest = rest.split("Table B: ")
    syntaxes, rest = rest.split("Table C: ")
    others, _ = rest.split("###### 4.2.1.3.2")
    every = [found["uid"] for found in NAMED.finditer(syntaxes)]
    pairs = {(found["uid"], syntax) for found in NAMED.finditer(classes) for syntax in every}
    return pairs | {(found["sop_class"], found["syntax"]) for found in PAIR.finditer(others)}


def accepted(node, contexts) -> list[tuple[str, str]]:
    """What the listener accepts of some contexts, each with one transfer syntax."""
    ae = AE(ae_title="SENDER")
    association = ae.associate("127.0.0.1", node.port, contexts, ae_title="NODULE_NODE")
    try:
        assert not association.is_rejected
        return [(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts]
    finally:
        association.release()


def test_every_registered_class_and_syntax_is_answered_as_the_statement_says(node, text):
    found = set()
    for contexts in proposals():
        found.update(accepted(node, contexts))
    assert found == promised(text)
    assert len(found) > 10_000


def test_the_registry_that_is_proposed_is_whole():
    assert len(sop_classes()) > 300
    assert len(transfer_syntaxes()) > 50


def test_private_classes_and_syntaxes_are_taken_as_the_statement_says(node, text):
    assert "Objects of private\nclasses, and of classes that are newer than this version, are taken" in text
    private, newer, syntax = "1.3.6.1.4.1.99999.1", "1.2.840.10008.5.1.4.1.1.999.1", "1.2.840.10008.1.2.1"
    contexts = [build_context(private, syntax), build_context(newer, syntax)]
    assert accepted(node, contexts) == [(private, syntax), (newer, syntax)]


def test_services_that_the_node_does_not_offer_are_refused_whatever_their_age(node):
    worklist, retired_print = "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.1.26"
    verification = build_context("1.2.840.10008.1.1", "1.2.840.10008.1.2")
    contexts = [build_context(uid, "1.2.840.10008.1.2.1") for uid in (worklist, retired_print)]
    assert accepted(node, [verification, *contexts]) == [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]


def test_of_several_syntaxes_the_first_by_the_statements_order_is_chosen(node, text):
    order = [found["uid"] for found in NAMED.finditer(text.split("Table B: ")[1].split("Table C: ")[0])]
    ct = build_context("1.2.840.10008.5.1.4.1.1.2", [order[7], order[3], order[20], order[5]])
    assert accepted(node, [ct]) == [("1.2.840.10008.5.1.4.1.1.2", order[3])]
