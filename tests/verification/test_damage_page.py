"""The page's part about what INT8 costs in each block."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from exporter.verification.report.block_text import asked_text, returned_text, search_lines, worst_text
from exporter.verification.report.drawing import Caption
from exporter.verification.report.plots import damage_svg
from runtimes.block_precision import BlockDamage, MixedPrecision, Sensitivity, Tried, limit_text
from runtimes.manifest import Manifest, json_from_manifest, manifest_from_json

SENSITIVITY = Sensitivity(
    48, (BlockDamage("stem", 1e-4, 100), BlockDamage("layer1.0", 7e-4, 800), BlockDamage("head", 2e-4, 0))
)
NONE = Tried((), "broken", 250, 0.03, (0.01, 0.05), ("fall of top-1 3%",), 1.0, 1000)
SOME = Tried(("layer1.0",), "ok", 500, 0.001, (-0.002, 0.004), (), 1 / 9, 1900)
MIXED = MixedPrecision("max_drop", 0.005, ("layer1.0",), 2, 1000, (NONE, SOME))


def test_the_worst_blocks_come_first_with_their_shares() -> None:
    assert worst_text(SENSITIVITY) == "layer1.0 70%, head 20% and stem 10% of the damage, 48 images"
    assert worst_text(replace(SENSITIVITY, blocks=SENSITIVITY.blocks[:1])) == "stem 100% of the damage, 48 images"


def test_a_network_that_loses_nothing_has_shares_of_nothing() -> None:
    exact = replace(SENSITIVITY, blocks=tuple(replace(one, damage=0.0) for one in SENSITIVITY.blocks))
    assert set(exact.shares.values()) == {0.0}


def test_a_choice_is_said_with_its_limit_and_its_price() -> None:
    assert asked_text(MIXED) == "a fall of top-1 of at most 0.5 points"
    assert limit_text("min_agreement", 99.5) == "an agreement of at least 99.5%"
    assert returned_text(MIXED) == "1 of 2 blocks in float: layer1.0; 11.1% of the work in INT8"
    assert search_lines(MIXED)[1:] == [
        "  tried      a fall of 3.00 points (at most 5.00) with 0 blocks in float, 100.0% of the work in INT8: broken, 250"
        " images",
        "             a fall of 0.10 points (at most 0.40) with 1 block in float, 11.1% of the work in INT8: ok, 500 images",
    ]


@pytest.mark.parametrize("returned", [(), ("layer1.0",), ("stem", "layer1.0", "head")])
def test_the_plot_has_a_bar_for_each_block_and_says_which_are_in_fp16(returned: tuple[str, ...]) -> None:
    root = ElementTree.fromstring(damage_svg(SENSITIVITY, returned, Caption("b1-damage", "title", "description")))
    texts = {element.text.strip() for element in root.iter("text") if element.text}
    assert {"stem", "layer1.0", "head"} <= texts
    assert ("in INT8" in texts) == (len(returned) < 3)
    assert any("in float" in text for text in texts) == bool(returned)


def test_the_manifest_keeps_both_and_reads_without_them(manifest: Manifest) -> None:
    full = replace(manifest, sensitivity=SENSITIVITY, mixed=MIXED)
    assert manifest_from_json(json_from_manifest(full), where="here") == full
    assert manifest_from_json(json_from_manifest(manifest), where="here").mixed is None
    old = json.loads(json_from_manifest(manifest))
    for name in ("sensitivity", "mixed", "asked"):
        del old[name]
    assert manifest_from_json(json.dumps(old).encode(), where="here") == manifest
