"""`resnet-deploy bench`: what is measured, what goes on where a backend fails, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import failing_measurements
import numpy as np
import pytest
from made_results import FOLDER, MACHINE, STEADY, entry, facts, result, slowed
from manifest_edits import rewrite_manifest
from PIL import Image
from spoilt import answer_nan

from exporter.verification.bench import run as bench_run
from exporter.verification.bench import station
from exporter.verification.bench.pictures import picture_files
from exporter.verification.bench.plan import BenchPlan
from exporter.verification.bench.remarks import remarks_on
from exporter.verification.bench.run import order_of_round
from exporter.verification.bench.speedup import check_speedup, speedup_of
from exporter.verification.own_process import OwnProcess
from exporter.verification.report.bench_lines import bench_lines, winner_text
from exporter.verification.report.bench_page import html_from_result
from runtimes import Bundle, Manifest
from runtimes.benchmark.result_file import json_from_result, result_from_file
from runtimes.benchmark.results import Result, Roof
from runtimes.errors import BackendUnavailable, PlanError, SpeedError
from runtimes.processor import Processor

QUICK = ("--rounds", "2", "--seconds", "0.001", "--warm-up", "1", "--no-variants", "--quiet")
ONE = ("--backend", "onnxruntime")


@pytest.fixture(autouse=True)
def no_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' products are tested in tests/runtimes/test_benchmark_machine.py, and take seconds."""
    monkeypatch.setattr(bench_run, "library_names", lambda: ())


@pytest.fixture
def bundle(good: Any) -> Path:
    """The tiny model, for batches of one to eight."""
    folder: Path = good[1].bundle.folder
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / failing_measurements.FAILING))


# --- what is measured ---


def test_every_line_at_every_batch_in_every_round(deploy: Any, bundle: Path, tmp_path: Path) -> None:
    done = deploy("bench", bundle, *ONE, *QUICK, "--json")
    assert done.code == 0
    (tmp_path / "result.json").write_text(done.out)
    found = result_from_file(tmp_path / "result.json")
    (one,) = found.entries
    assert one.contender.name == "onnxruntime cpu"
    assert {(timing.line, timing.batch) for timing in one.timings} == {
        (line, batch) for line in ("device", "copies", "files") for batch in (1, 4, 8)
    }
    assert all(len(timing.images_per_s) == 2 for timing in one.timings)
    assert all(rate > 0 for timing in one.timings for rate in timing.images_per_s)
    assert one.latency is not None
    assert (one.latency.batch, one.latency.calls >= 20) == (1, True)
    assert one.latency.percentiles_ms == tuple(sorted(one.latency.percentiles_ms))
    assert one.memory_bytes is not None
    assert one.memory_bytes > 10 << 20
    assert one.answers is not None
    assert one.answers.within_budget
    assert one.load_s > 0
    assert "32 JPEG files of 56x42 pixels" in found.settings.pictures
    assert found.bundle_of(found.entries[0]).macs == 1000
    assert json_from_result(found).decode() == done.out


def test_the_batch_sizes_that_are_named_are_measured_and_the_table_shows_them(deploy: Any, bundle: Path) -> None:
    done = deploy("bench", bundle, "--backend", "onnxruntime", "--batch", "2,3", *QUICK, "--threads", "1")
    assert done.code == 0
    assert "1 thread" in done.out
    assert "images/s        2        3" in done.out
    assert "ms, batch 2" in done.out


def test_a_backend_that_takes_several_batches_at_a_time_is_measured_so_too(deploy: Any, bundle: Path) -> None:
    pytest.importorskip("openvino", reason="no other backend here takes several batches at a time")
    done = deploy("bench", bundle, "--backend", "openvino", "--batch", "1,4", *QUICK, "--json")
    one, many = json.loads(done.out)["entries"]
    assert (one["contender"]["variant"], many["contender"]["variant"]) == ("", "throughput")
    assert {timing["line"] for timing in many["timings"]} == {"copies", "files"}
    assert (one["latency"] is None, many["latency"] is None) == (False, True)


def test_pictures_of_the_users_are_read_from_their_files(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for place in range(3):
        Image.fromarray(np.full((20 + place, 30, 3), 90, np.uint8)).save(data / f"{place}.png")
    (data / "damaged.png").write_bytes(b"junk")
    made = tmp_path / "made"
    made.mkdir()
    found = picture_files(Bundle.open(bundle), str(data), made)
    assert found.paths == tuple(data / f"{place}.png" for place in range(3))
    assert "3 of" in found.what
    assert "30x21 pixels" in found.what
    assert list(made.iterdir()) == []
    built_in = picture_files(Bundle.open(bundle), "built-in", made)
    assert len(built_in.paths) == len(list(made.iterdir())) == 256


@pytest.mark.slow
def test_a_variant_that_is_not_here_is_named_and_the_rest_goes_on(
    deploy: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    quick = [one for one in QUICK if one != "--no-variants"]
    done = deploy("bench", bundle, "--backend", "pytorch", "--batch", "4", *quick, "--json")
    found = {one["contender"]["variant"]: one for one in json.loads(done.out)["entries"]}
    assert found[""]["verdict"] == "ok"
    assert found[""]["remarks"] == ["it runs the FP32 reference, not the bundle's own graph"]
    assert found["compile"]["verdict"] == "not here"
    assert "torch.compile needs a C++ compiler" in found["compile"]["reason"]
    assert found["bf16"]["verdict"] in ("ok", "not here")
    if found["bf16"]["verdict"] == "ok":
        assert not found["bf16"]["answers"]["within_budget"] or found["bf16"]["answers"]["sqnr_db"] < 100


# --- one fails, the rest goes on ---


@pytest.mark.parametrize(
    ("kind", "verdict", "said"),
    [
        (failing_measurements.CrashesInTheThirdRound, "crashed", "its process was ended by SIGSEGV"),
        (failing_measurements.RaisesInTheThirdRound, "failed", "RuntimeError: out of memory"),
        (failing_measurements.CrashesOnOpening, "crashed", "its process was ended by SIGSEGV"),
    ],
)
def test_a_backend_that_fails_in_the_middle_is_named_and_the_others_go_on(
    deploy: Any, bundle: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, kind: type, verdict: str, said: str
) -> None:
    monkeypatch.setattr(station, "Measurement", kind)
    done = deploy("bench", bundle, copy, *ONE, "--batch", "1", *QUICK, "--json")
    assert done.code == 0
    first, second = json.loads(done.out)["entries"]
    assert (first["verdict"], len(first["timings"])) == ("ok", 3)
    assert all(len(timing["images_per_s"]) == 2 for timing in first["timings"])
    assert (second["verdict"], second["timings"]) == (verdict, [])
    assert said in second["reason"]
    assert "\n" not in second["reason"]


def test_where_all_fail_the_command_does(deploy: Any, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(station, "Measurement", failing_measurements.CrashesOnOpening)
    done = deploy("bench", copy, *ONE, *QUICK)
    assert done.code == 1
    assert "no backend could be measured: onnxruntime" in done.err
    assert "Traceback" not in done.err


def test_a_backend_that_hangs_is_given_up_after_the_timeout(
    deploy: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "Measurement", failing_measurements.HangsOnOpening)
    done = deploy("bench", copy, *ONE, *QUICK, "--timeout", "4")
    assert done.code == 1
    assert "no answer within 4 s; give a longer --timeout" in done.err
    assert "expected a timeout of more than 0" in deploy("bench", copy, *ONE, *QUICK, "--timeout", "nan").error


def test_a_backend_that_is_not_here_is_listed_with_its_reason(deploy: Any, bundle: Path) -> None:
    done = deploy("bench", bundle, "--backend", "tensorrt-rtx", *QUICK)
    assert done.code == 3
    assert "expected a backend that can run it, got none: tensorrt-rtx" in done.err


def test_a_backend_that_was_named_and_is_not_here_ends_with_3_and_the_others_are_measured(
    deploy: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(entry("tensorrt-rtx"), verdict="not here", reason="no driver", timings=(), latency=None)
    found = result(entry("onnxruntime"), absent)
    monkeypatch.setattr("exporter.verification.bench.run.bench", lambda *_: found)
    monkeypatch.setattr("runtimes.benchmark.winners.keep_rankings", lambda _: "")
    named = deploy("bench", bundle, *ONE, "--backend", "tensorrt-rtx")
    assert (named.code, named.err) == (
        3,
        "error: tensorrt-rtx was not measured, for it is not here; its entry says why, and what to do\n",
    )
    assert "onnxruntime cpu" in named.out
    assert "no driver" in named.out
    for every in ((), ("--backend", "all")):
        assert deploy("bench", bundle, *every).code == 0


def test_wrong_answers_are_shown_and_win_nothing(deploy: Any, copy: Path) -> None:
    answer_nan(copy)
    done = deploy("bench", copy, *ONE, "--batch", "1", *QUICK)
    assert done.code == 0
    assert "onnxruntime cpu: its answers are out of the bundle's budget" in done.out
    fast = entry("openvino", slowed(STEADY, 0.1), right=False)
    found = result(fast, entry("onnxruntime"), entry("pytorch", slowed(STEADY, 2)))
    assert {(one.measure, one.decision.best) for one in found.winners} == {
        ("latency", "onnxruntime cpu"),
        ("throughput", "onnxruntime cpu"),
    }


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "9"), "expected --batch from 1 to 8, the range of"),
        (("--batch", "0"), "expected --batch from 1 to 8, the range of"),
        (("--batch", "1,two"), "expected --batch as whole numbers, got '1,two'"),
        (("--min-speedup", "1.5"), "expected --against with --min-speedup"),
        (("--threads", "0"), "expected --threads from 1 to"),
        (("--threads", "100000"), "expected --threads from 1 to"),
        (("--rounds", "0"), "expected at least 1 round, got 0"),
        (("--seconds", "0"), "expected more than 0 seconds"),
        (("--seconds", "nan"), "expected more than 0 seconds"),
        (("--warm-up", "0"), "expected at least 1 call to warm up"),
        (("--backend", "onnxrutime"), "did you mean onnxruntime?"),
        (("--data", "/no/such/folder"), "--data: /no/such/folder does not exist"),
        (("--html", "/no/such/folder/page.html"), "there is no folder /no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    deploy: Any, bundle: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = deploy("bench", bundle, "--quiet", *arguments)
    assert done.code == 2
    assert said in done.error


def test_nothing_to_measure_and_too_much_are_refused(deploy: Any, bundle: Path, tmp_path: Path) -> None:
    assert "expected a bundle to measure" in deploy("bench").error
    assert "expected each bundle once" in deploy("bench", bundle, bundle).error
    assert "expected one bundle with --against" in deploy("bench", "a", "b", "--against", bundle).error
    assert "above 0, got nan" in deploy("bench", bundle, "--against", "b", "--min-speedup", "nan").error
    path = tmp_path / "result.json"
    path.write_bytes(json_from_result(result(entry("onnxruntime"))))
    assert "nothing to measure with --compare" in deploy("bench", bundle, "--compare", path, path).error
    with pytest.raises(PlanError, match="expected a bundle to measure"):
        BenchPlan(())


# --- comparing ---


def test_two_results_are_compared_by_the_command(deploy: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    paths[0].write_bytes(json_from_result(result(entry("onnxruntime"))))
    paths[1].write_bytes(
        json_from_result(result(entry("onnxruntime", slowed(STEADY, 2)), machine=replace(MACHINE, processor="Another")))
    )
    done = deploy("bench", "--compare", *paths)
    assert done.code == 0
    assert "they differ (processor A processor and Another)" in done.out
    assert "0.50 (0.49 to 0.51) slower" in done.out
    assert deploy("bench", "--compare", *paths, "--json").json["rows"][0]["ratio"]["median"] == pytest.approx(0.5)
    paths[1].write_bytes(json_from_result(result(entry("onnxruntime"), bundles=[facts(macs=7)])))
    refused = deploy("bench", "--compare", *paths)
    assert refused.code == 2
    assert "expected two results of the same model, got macs 1000000 and 7" in refused.error


def against(factor: float, rounds: int = 10, turns: tuple[float, ...] = ()) -> Result:
    rates = STEADY[:rounds]
    fast = [rate * factor * turn for rate, turn in zip(rates, turns or (1.0,) * rounds, strict=True)]
    bundles = [facts(), facts("other", name="tiny-fp32")]
    return with_speedup(
        result(
            entry("onnxruntime", fast),
            entry("pytorch", [9 * rate for rate in rates]),
            entry("openvino", [9 * rate for rate in rates], right=False),
            entry("onnxruntime", rates, folder="other"),
            bundles=bundles,
        )
    )


def with_speedup(found: Result) -> Result:
    return replace(found, speedup=speedup_of(found.bundles, found.entries))


def test_a_speedup_is_held_to_its_lower_limit() -> None:
    check_speedup(against(2.0), 1.5)
    check_speedup(against(1.5), 1.4999)
    with pytest.raises(
        SpeedError, match=r"expected at least 1.5 times, got fewer: tiny-int8 \(onnxruntime cpu, batch 8"
    ):
        check_speedup(against(1.4), 1.5)
    turns = (0.9, 1.1, 0.95, 1.05, 1.0, 1.1, 0.9, 1.0, 1.05, 0.95)
    with pytest.raises(SpeedError, match="undecided: .* give more --rounds, on an idle machine"):
        check_speedup(against(1.5, turns=turns), 1.5)
    with pytest.raises(SpeedError, match="got too few rounds to tell: .* give --rounds 6 or more"):
        check_speedup(against(9.0, rounds=5), 1.5)
    assert SpeedError.exit_code == 4


def test_a_speedup_needs_a_right_answer_on_both_sides() -> None:
    bundles = [facts(), facts("other", name="tiny-fp32")]
    found = result(entry("onnxruntime", right=False), entry("onnxruntime", folder="other"), bundles=bundles)
    with pytest.raises(BackendUnavailable, match="expected a backend that runs .* within its budget, got none"):
        check_speedup(with_speedup(found), None)


def test_the_speedup_is_in_all_that_is_written() -> None:
    found = against(2.0)
    assert found.speedup is not None
    assert found.speedup.ratio.median == pytest.approx(2.0)
    assert speedup_of(found.bundles[:1], found.entries) is None
    said = (
        "runs 2.00 times as many images a second as tiny-fp32 (onnxruntime cpu, batch 8) (95 % interval 2.00 to 2.00)"
    )
    assert any(line.startswith("speed-up") and said in line for line in bench_lines(found))
    assert said in html_from_result(found).decode()
    assert json.loads(json_from_result(found))["speedup"]["ratio"]["median"] == pytest.approx(2.0)


def test_the_command_measures_both_bundles_in_the_same_rounds(deploy: Any, bundle: Path, copy: Path) -> None:
    done = deploy(
        *("bench", bundle, "--against", copy, "--min-speedup", "1000", "--backend", "onnxruntime", "--batch", "8"),
        *("--rounds", "6", *QUICK[2:], "--json"),
    )
    assert done.code == 4
    assert "expected at least 1000 times, got fewer: tiny-fp32" in done.err
    assert [len(one["timings"][0]["images_per_s"]) for one in json.loads(done.out)["entries"]] == [6, 6]


def test_the_speedup_is_shown_where_it_is_enough(deploy: Any, bundle: Path, copy: Path) -> None:
    asked = ("--against", copy, "--min-speedup", "0.001", "--backend", "onnxruntime", "--batch", "8", "--rounds", "6")
    done = deploy("bench", bundle, *asked, *QUICK[2:])
    assert done.code == 0
    assert "speed-up     tiny-fp32 (onnxruntime cpu, batch 8) runs" in done.out


def test_the_highest_roof_of_each_type_counts() -> None:
    low, high = (Roof("fp32", "cpu", rate, "numpy", 2048) for rate in (1e9, 2e9))
    other = Roof("fp32", "cuda", 9e9, "pytorch", 8192)
    assert bench_run.highest((high, other, low)) == (high, other)


# --- what is said ---


def test_a_machine_that_is_too_noisy_names_no_winner() -> None:
    turns = (1.3, 0.8, 1.2, 0.7, 1.4, 1.1, 0.9, 1.3, 0.6, 1.2)
    noisy = [rate * turn for rate, turn in zip(STEADY, turns, strict=True)]
    found = result(
        entry("onnxruntime", noisy), entry("openvino"), variation=0.2, machine=replace(MACHINE, load=4.0), drift=0.8
    )
    text = "\n".join(bench_lines(found))
    assert "too noisy to tell onnxruntime cpu from openvino cpu" in text
    assert "on an idle machine" in text
    assert "a rate varies by 20.0% over the 10 rounds" in text
    assert "the second half was 20 % slower" in text
    assert "the machine was busy before (load 4.0)" in text
    assert "is the fastest" not in text
    quiet = result(entry("onnxruntime"), entry("openvino", slowed(STEADY, 1.3)))
    assert "is the fastest, 1.30 (1.30 to 1.30) times as fast as openvino cpu" in winner_text(quiet, quiet.winners[0])


def test_large_rates_keep_their_columns_and_their_digits() -> None:
    line = next(line for line in bench_lines(result(entry("onnxruntime", [3021.7] * 10))) if "device " in line)
    assert line.split()[-3:] == ["3022", "12087", "1209%"]


@pytest.mark.parametrize(
    ("precision", "flags", "expected"),
    [
        ("int8", ("avx2", "avx_vnni"), []),
        ("int8", ("avx2",), ["INT8 is tuned for a processor with instructions for it"]),
        ("bf16", ("avx2",), ["BF16 is fast where the processor multiplies in it"]),
        ("fp32", ("avx2",), []),
    ],
)
def test_a_bundle_on_a_processor_without_its_instructions_is_measured_with_a_remark(
    manifest: Manifest, precision: str, flags: tuple[str, ...], expected: list[str]
) -> None:
    made = replace(manifest, precision=precision)
    found = remarks_on(entry("onnxruntime"), made, Processor("A processor", flags)).remarks
    assert len(found) == len(expected)
    assert all(text in said for text, said in zip(expected, found, strict=True))


def test_what_a_backend_says_of_how_it_runs_is_shown() -> None:
    simulated = replace(entry("onnxruntime"), details={"int8": "simulated as a GPU computes it"})
    assert any(
        line.endswith("onnxruntime cpu: int8 simulated as a GPU computes it") for line in bench_lines(result(simulated))
    )


def test_the_page_holds_plots_tables_and_the_machine() -> None:
    missing = replace(
        entry("tensorrt"), verdict="not here", reason="no <driver>", timings=(), latency=None, answers=None
    )
    found = result(entry("onnxruntime"), entry("openvino", slowed(STEADY, 1.3)), missing)
    page = html_from_result(found).decode()
    assert page.count("<svg") == 2
    for said in (
        "tiny &lt;int8&gt;",
        "Onnxruntime cpu is the fastest".lower(),
        "roof, int8",
        "400 (396 to 404)",
        "no &lt;driver&gt;",
        "governor performance",
        "half below",
    ):
        assert said.lower() in page.lower(), said
    assert FOLDER not in page
    assert html_from_result(found).decode() == page


def test_the_page_is_written_by_the_command_and_the_unmeasured_has_no_plot(
    deploy: Any, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    assert deploy("bench", bundle, *ONE, "--batch", "1", *QUICK, "--html", path).code == 0
    assert path.read_text().count("<svg") == 2
    nothing = replace(entry("tensorrt"), verdict="not here", timings=(), latency=None, answers=None)
    assert html_from_result(result(nothing)).decode().count("<svg") == 0


# --- auto ---


@pytest.mark.slow
def test_what_was_measured_is_what_auto_takes(
    deploy: Any, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rewrite_manifest(copy, lambda document: document.update(name="its own"))
    picture = tmp_path / "grey.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(picture)
    before = deploy("run", copy, picture, "--backend", "auto")
    assert before.code == 0
    assert "by the documented order" in before.err
    assert "auto chose openvino (cpu)" in before.err
    assert deploy("bench", copy, "--backend", "pytorch", *ONE, "--batch", "1", *QUICK).code == 0
    after = deploy("run", copy, picture, "--backend", "auto")
    assert re.search(
        r"auto chose (onnxruntime|pytorch) \(cpu\): the first in latency of those measured here", after.err
    )
    assert after.out.splitlines()[0] == before.out.splitlines()[0]


def test_a_folder_for_what_was_measured_that_cannot_be_written_is_said(
    deploy: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    loud = [one for one in QUICK if one != "--quiet"]
    done = deploy("bench", bundle, "--backend", "onnxruntime", "--backend", "pytorch", "--batch", "1", *loud)
    assert done.code == 0
    assert "not kept for --backend auto: cannot make the folder" in done.err
    assert "set XDG_STATE_HOME to another folder" in done.err


# --- processes ---


def test_a_process_keeps_what_it_made_until_it_dies() -> None:
    with OwnProcess() as process:
        assert process.keep(list, [1, 2]).verdict == "ok"
        assert process.ask("append", 3).value is None
        assert process.ask("count", 3).value == 1
        failed = process.ask("index", 9)
        assert (failed.verdict, failed.value) == ("failed", None)
        assert "ValueError: 9 is not in list" in failed.reason
        assert process.ask("count", 1).value == 1, "it lives on"
        process._process.kill()
        assert process.ask("count", 1).verdict == "crashed"
        assert process.ask("count", 1).verdict == "crashed"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_are_first_and_behind_each_other_equally_often(count: int) -> None:
    orders = [order_of_round(number, count) for number in range(2 * count)]
    assert Counter(order[0] for order in orders) == dict.fromkeys(range(count), 2)
    behind = Counter((one, other) for order in orders for one, other in itertools.combinations(order, 2))
    assert set(behind.values()) == {count}
    assert order_of_round(0, 0) == []
