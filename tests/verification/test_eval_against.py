"""`resnet-deploy eval --against`: two evaluations of the same images, compared image by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_fixtures import bundle_fixture, run_fixture  # noqa: F401  # pytest finds them by their names

from runtimes.parity.intervals import tango_interval

DATA = ("--data", "built-in", "--images", 100)


@pytest.fixture(name="other")
def other_fixture(run: Any, bundle: Path, tmp_path: Path) -> Path:
    """The finished evaluation of the FP32 reference."""
    path = tmp_path / "fp32.jsonl"
    assert run(bundle, *DATA, "--backend", "pytorch", "--resume", path).code == 0
    return path


def with_answers(path: Path, to: Path, *, wrong: int, unread: int = 0) -> Path:
    """A copy in which the first images are given another class than their label, and the next ones were not read."""
    header, *batches = path.read_bytes().splitlines()
    lines = [header]
    for line in batches:
        batch = json.loads(line)
        rows = [row if row[0] >= wrong else [row[0], row[1], (row[1] + 1) % 10] for row in batch["rows"]]
        kept = [row for row in rows if not wrong <= row[0] < wrong + unread]
        batch["unreadable"] += ["damaged"] * (len(rows) - len(kept))
        lines.append(json.dumps({**batch, "rows": kept}).encode())
    to.write_bytes(b"\n".join(lines) + b"\n")
    return to


def test_the_fall_is_shown_with_its_paired_interval(run: Any, bundle: Path, other: Path, tmp_path: Path) -> None:
    shown = run(bundle, *DATA, "--against", other, "--json")
    alike, top1 = shown.json["paired"], shown.json["top1"]
    assert (alike["lost"], alike["gained"], alike["fall"], alike["images"]) == (0, 0, 0.0, 100)
    assert alike["interval"] == list(tango_interval(0, 0, 100))
    assert alike["other_top1"] == top1["share"]
    worse = with_answers(other, tmp_path / "worse.jsonl", wrong=20)
    gained = run(bundle, *DATA, "--against", worse, "--json").json["paired"]
    rows = [row for line in other.read_bytes().splitlines()[1:] for row in json.loads(line)["rows"]]
    right = sum(row[1] == row[2] for row in rows if row[0] < 20)
    assert (gained["lost"], gained["gained"], gained["fall"]) == (0, right, -right / 100)
    low, high = tango_interval(0, right, 100)
    assert (
        f"against      {worse} with {(top1['correct'] - right) / 100:.2%}: a fall of {-right}.00% (95 % interval {low:.2%}"
        f" to {high:.2%}), 0 lost and {right} gained of 100 images"
    ) in run(bundle, *DATA, "--against", worse).out


def test_images_that_either_could_not_read_are_left_out(run: Any, bundle: Path, other: Path, tmp_path: Path) -> None:
    some = with_answers(other, tmp_path / "some.jsonl", wrong=0, unread=3)
    assert run(bundle, *DATA, "--against", some, "--json").json["paired"]["images"] == 97


def test_a_stopped_evaluation_goes_on_with_its_comparison(run: Any, bundle: Path, other: Path, tmp_path: Path) -> None:
    journal = tmp_path / "ours.jsonl"
    whole = run(bundle, *DATA, "--resume", journal, "--against", other, "--json").json["paired"]
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    assert run(bundle, *DATA, "--resume", journal, "--against", other, "--json").json["paired"] == whole


def test_files_that_say_nothing_of_these_images_are_refused(
    run: Any, bundle: Path, other: Path, tmp_path: Path
) -> None:
    rubbish, short, damaged = (tmp_path / name for name in ("rubbish", "short", "damaged"))
    rubbish.write_bytes(b"notes\n")
    short.write_bytes(b"".join(other.read_bytes().splitlines(keepends=True)[:-1]))
    damaged.write_bytes(other.read_bytes() + b"{}\n")
    for path, data, said in (
        (rubbish, DATA, "was not written by an evaluation; give a file of --resume"),
        (tmp_path / "nowhere", DATA, "cannot read"),
        (short, DATA, "of 100 images; let that evaluation go on to its end"),
        (damaged, DATA, "is damaged"),
        (other, ("--data", "built-in", "--images", 50), "is an evaluation of other images"),
    ):
        shown = run(bundle, *data, "--against", path)
        assert (shown.code, said in shown.error, shown.error.startswith("error: --against: ")) == (2, True, True), (
            shown.err
        )
    shown = run(bundle, *DATA, "--resume", other, "--against", other)
    assert (shown.code, "for both; give two" in shown.error) == (2, True)
