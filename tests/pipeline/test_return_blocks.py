"""`--max-drop` and `--min-agreement` on a ResNet-20 with blocks that INT8 cannot hold: what is found, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bad_blocks import BLOCKS, SIZE, fashion_fixture, write_checkpoint  # noqa: F401  # likewise
from commands import Ran, run_main
from manifest_edits import rewrite_manifest
from rtx_builds import build_in_precision

from exporter.cli import export as export_cli
from exporter.lowering.block_search import most_evaluations
from exporter.lowering.ranges import chosen_places
from exporter.lowering.registry import load_precision
from exporter.models.loading import load_model
from exporter.pipeline import return_blocks
from exporter.pipeline.choose_images import calibration_set, opened_data, parted_images
from exporter.pipeline.export import export
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.terms import budget_for
from runtimes import Bundle
from runtimes.progress import Steps

BAD = ("layer2.1", "layer3.1")


@dataclass(frozen=True)
class Networks:
    """Checkpoints: one with two bad blocks, one in which every block is bad."""

    two: Path
    every: Path


@pytest.fixture(name="networks", scope="session")
def networks_fixture(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    return Networks(
        write_checkpoint(folder / "two.pth", BAD, pairs=16),
        write_checkpoint(folder / "every.pth", BLOCKS, pairs=16),
    )


def plan_for(weights: Path, output: Path, data: Path, *, max_drop: float) -> ExportPlan:
    mean, std = (float(SIZE[place]) for place in (1, 3))
    return ExportPlan(
        "resnet20",
        output,
        precision="int8",
        weights=str(weights),
        mean=(mean,),
        std=(std,),
        data=str(data),
        max_drop=max_drop,
    )


@pytest.fixture(name="bundle", scope="module")
def bundle_fixture(tmp_path_factory: pytest.TempPathFactory, networks: Networks, fashion: Path) -> Bundle:
    """What `--max-drop 1` makes of the network with two bad blocks."""
    plan = plan_for(networks.two, tmp_path_factory.mktemp("mixed") / "mixed", fashion, max_drop=1)
    return Bundle.open(export(plan).folder)


@pytest.mark.slow
def test_the_two_bad_blocks_return_and_nothing_else(bundle: Bundle) -> None:
    found = bundle.manifest.mixed
    assert found is not None
    assert found.returned == BAD
    assert found.blocks == 10
    assert (found.wanted, found.limit) == ("max_drop", 0.01)
    assert 0.7 < found.chosen.int8_share < 0.8
    assert found.curve[0].returned == ()
    assert found.curve[0].verdict == "broken"
    assert found.curve[0].problems
    assert not any("undecided" in problem for problem in found.curve[0].problems)
    assert len(found.curve) <= most_evaluations(found.blocks)
    sizes = {one.returned: one.bytes for one in found.curve}
    assert sizes[()] < sizes[BAD] < max(sizes.values())
    low, high = found.chosen.limits
    assert low <= found.chosen.measured <= high <= 0.01


@pytest.mark.slow
def test_the_proof_keeps_the_limit_on_other_images(bundle: Bundle) -> None:
    parity, accuracy = bundle.manifest.parity, bundle.manifest.accuracy
    assert parity.ok
    assert parity.budget.max_accuracy_drop == 0.01
    assert accuracy is not None
    assert accuracy.images == parity.images


@pytest.mark.slow
def test_sensitivity_names_the_blocks_that_return(bundle: Bundle) -> None:
    assert bundle.manifest.sensitivity is not None
    assert set(bundle.manifest.sensitivity.worst(2)) == set(BAD)


@pytest.mark.slow
def test_tensorrt_runs_exactly_the_convolutions_in_int8_that_the_bundle_says(bundle: Bundle) -> None:
    returned = frozenset(f"{block}.conv{place}" for block in BAD for place in (1, 2))
    built, _, facts = build_in_precision(bundle, bundle.manifest.batch, returned)
    assert built.left_in_float == returned
    assert facts.convolutions == {"int8": len(built.convolutions) - len(returned), "fp16": len(returned)}
    assert facts.fallback == ()


@pytest.mark.slow
def test_the_page_shows_every_block_and_every_choice(bundle: Bundle) -> None:
    page = bundle.file("report.html").read_text(encoding="utf-8")
    assert "What INT8 costs, block by block" in page
    assert "2 of 10 blocks in float: layer2.1, layer3.1" in page
    assert page.count("broken</td>") >= 1
    assert "ok, chosen" in page


@pytest.mark.slow
def test_calibration_choosing_and_proof_share_no_image(networks: Networks, tmp_path: Path, fashion: Path) -> None:
    plan = plan_for(networks.two, tmp_path / "out", fashion, max_drop=1)
    loaded = load_model(plan.model_request)
    budget = budget_for(plan, loaded, load_precision("int8").BUDGET)
    data = opened_data(plan)
    parts = parted_images(loaded, plan, data, budget, Steps())
    calibration = calibration_set(loaded, plan, data)
    assert calibration.source is not None

    def places(images: ProofImages) -> set[int]:
        assert images.first.places is not None
        return {*map(int, images.first.places), *map(int, images.rest)}

    calibrated = set(map(int, chosen_places(calibration.source, plan.lowering_request)))
    choosing, proof = places(parts.choosing), places(parts.proof)
    assert (len(calibrated), len(choosing), len(proof)) == (512, 1244, 1244)
    assert len(calibrated | choosing | proof) == 3000


class Cut(KeyboardInterrupt):
    """A user's Ctrl-C."""


@pytest.fixture(name="cut_after")
def cut_after_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Interrupt a search after so many evaluations; returns a list that each evaluation is added to."""
    own, ran = return_blocks.Judge.__call__, list[int]()

    def cut_after(count: int) -> list[int]:
        def judge(self: return_blocks.Judge, model: object) -> object:
            if len(ran) == count:
                raise Cut
            ran.append(1)
            return own(self, model)  # type: ignore[arg-type]  # a graph

        monkeypatch.setattr(return_blocks.Judge, "__call__", judge)
        return ran

    return cut_after


@pytest.mark.slow
def test_an_interrupted_search_goes_on_to_the_same_bytes(
    bundle: Bundle, networks: Networks, tmp_path: Path, fashion: Path, cut_after: Callable[[int], list[int]]
) -> None:
    plan = plan_for(networks.two, tmp_path / "mixed", fashion, max_drop=1)
    journal = tmp_path / "mixed.search.json"
    cut_after(3)
    with pytest.raises(Cut):
        export(plan)
    assert len(json.loads(journal.read_text())["tried"]) == 3
    assert not plan.output.exists()
    ran, said = cut_after(1000), list[str]()
    ran.clear()
    export(plan, lambda step, done=0, total=0: said.append(step))
    assert f"{journal.name}: going on after 3 evaluations" in said
    assert bundle.manifest.mixed is not None
    assert len(ran) == len(bundle.manifest.mixed.curve) - 3
    assert not journal.exists()
    for name in ("manifest.json", *bundle.manifest.files):
        assert (plan.output / name).read_bytes() == (bundle.folder / name).read_bytes(), name


@pytest.mark.slow
def test_a_journal_of_something_else_is_not_gone_on_from(
    networks: Networks, tmp_path: Path, fashion: Path, cut_after: Callable[[int], list[int]]
) -> None:
    cut_after(1)
    with pytest.raises(Cut):
        export(plan_for(networks.two, tmp_path / "mixed", fashion, max_drop=1))
    said = list[str]()
    ran = cut_after(2)
    with pytest.raises(Cut):
        export(
            plan_for(networks.two, tmp_path / "mixed", fashion, max_drop=2),
            lambda step, done=0, total=0: said.append(step),
        )
    assert len(ran) == 2
    assert any("is of another network, other images or options; searching from the start" in one for one in said)


@pytest.fixture(name="run")
def run_fixture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)
    return lambda *options: run_main(
        export_cli.main, ["resnet20", "--int8", "--output", "out", *SIZE, *options], capsys, monkeypatch
    )


@pytest.mark.slow
def test_a_diffuse_loss_is_refused_with_the_best_found_and_what_to_do(
    run: Callable[..., Ran], networks: Networks, fashion: Path
) -> None:
    shown = run("--weights", networks.every, "--data", fashion, "--max-drop", "1")
    assert shown.code == 4
    assert "the loss of INT8 is spread over the network: to keep a fall of top-1 of at most 1 point" in shown.error
    assert "9 of 10 blocks would have to return to float" in shown.error
    assert "train the network with quantization (QAT)" in shown.error
    assert "at most 15 evaluations on 1244 images each, then one proof on others" in shown.err
    assert list(Path().glob("out*")) == []


@pytest.mark.slow
def test_what_not_even_fp16_keeps_is_not_int8s(run: Callable[..., Ran], networks: Networks, fashion: Path) -> None:
    """An SQNR that FP16 does not reach, either."""
    shown = run("--weights", networks.two, "--data", fashion, "--max-drop", "1", "--budget", "min_sqnr_db=90")
    assert shown.code == 4
    assert "no choice of blocks shows a fall of top-1 of at most 1 point: with all 10 in float, SQNR" in shown.error
    assert "best found: a fall of" in shown.error
    assert "INT8 is not what costs it" in shown.error
    assert list(Path().glob("out*")) == []


@pytest.mark.slow
def test_an_agreement_needs_no_classes(run: Callable[..., Ran], networks: Networks, fashion: Path) -> None:
    with np.load(fashion) as archive:
        np.savez("plain.npz", images=archive["images"])
    shown = run("--weights", networks.two, "--data", "plain.npz", "--min-agreement", "98.5")
    assert shown.code == 0, shown.err
    assert "2 of 10 blocks in float: layer2.1, layer3.1" in shown.out
    manifest = Bundle.open(Path("out")).manifest
    assert manifest.parity.budget.min_agreement == 0.985
    assert manifest.accuracy is None
    assert manifest.mixed is not None
    low, _ = manifest.mixed.chosen.limits
    assert low >= 0.985


@pytest.mark.slow
def test_a_bundle_of_a_version_without_sensitivity_is_read(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(bundle.folder, folder)
    rewrite_manifest(folder, lambda document: [document.pop(name) for name in ("sensitivity", "mixed")])
    manifest = Bundle.open(folder).manifest
    assert manifest.sensitivity is None
    assert manifest.mixed is None


def test_another_file_where_the_journal_is_to_be_is_left_alone(tmp_path: Path) -> None:
    from exporter.pipeline.search_journal import Journal
    from runtimes.errors import PlanError

    path = tmp_path / "out.search.json"
    path.write_text("my notes")
    with pytest.raises(PlanError, match="is no journal of a search; move it away, or choose another --output"):
        Journal(path, "digest", print)
    assert path.read_text() == "my notes"
