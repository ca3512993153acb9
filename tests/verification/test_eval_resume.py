"""`resnet-deploy eval --resume`: an evaluation goes on after an interruption, and other journals are refused."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import msgspec
import numpy as np
import pytest
from eval_fixtures import bundle_fixture, copied, counts, edited, run_fixture, tree  # noqa: F401  # pytest finds them by their names

from calibration.data import built_in
from exporter.verification.accuracy.resume_file import EvaluationKey, open_resume_file
from runtimes.errors import BadInput, PlanError

MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from exporter.cli.deploy import main; main()"


def test_a_journal_cut_anywhere_gives_the_figures_of_one_run(run: Any, bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    options = ("--data", tree(tmp_path, tuple(map(str, range(10))), 120), "--json", "--resume", journal)
    (sorted((tmp_path / "tree").rglob("*.JPEG"))[60]).write_bytes(b"junk")
    whole = run(bundle, *options).json
    assert counts(whole) == counts(run(bundle, *options[:3]).json)
    data = journal.read_bytes()
    header = data.index(b"\n") + 1
    chance = random.Random(3)
    for cut in (header, header + 1, len(data) - 1, len(data), *(chance.randrange(header, len(data)) for _ in range(4))):
        journal.write_bytes(data[:cut])
        assert counts(run(bundle, *options).json) == counts(whole)
        after = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
        assert [one["rows"] for one in after] == [json.loads(line)["rows"] for line in data.splitlines()[1:]]


def test_a_finished_journal_is_kept_and_asks_the_model_nothing(run: Any, bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    options = ("--data", "built-in", "--images", 100, "--resume", journal)
    first = run(bundle, *options)
    data = journal.read_bytes()
    assert run(bundle, *options).out == first.out  # the speed too: nothing was measured again
    assert journal.read_bytes() == data


@pytest.mark.parametrize("what", ["backend", "images", "data", "bundle"])
def test_a_journal_of_another_evaluation_is_refused_with_what_differs(
    run: Any, bundle: Path, tmp_path: Path, what: str
) -> None:
    journal = tmp_path / "journal"
    data = tree(tmp_path, tuple(map(str, range(10))))
    run(bundle, "--data", data, "--resume", journal)
    before = journal.read_bytes()
    options: list[object] = ["--data", data, "--resume", journal]
    if what == "backend":
        options += ["--backend", "pytorch"]
    elif what == "images":
        options += ["--images", 20]
    elif what == "data":
        path = next(data.rglob("*.JPEG"))
        path.rename(path.with_name("other.JPEG"))
    else:
        bundle = copied(bundle, tmp_path)
        edited(bundle, batch={"min": 1, "opt": 4, "max": 8})
    shown = run(bundle, *options)
    assert (shown.code, "is of another evaluation" in shown.error, f"{what} " in shown.error) == (2, True, True)
    assert journal.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_as_it_is(run: Any, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    options = ("--data", "built-in", "--images", 150, "--resume")
    for text in ("my notes\n", "my notes", "{}\n"):
        file.write_text(text)
        shown = run(bundle, *options, file)
        assert (shown.code, "was not written by an evaluation" in shown.error, file.read_text()) == (2, True, text)
    file.write_text("")
    assert run(bundle, *options, file).code == 0
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged, said in (
        (lines[1][:20] + b"\n", "line 2 is damaged"),
        (lines[2], "line 3 holds no images that are still missing there (those from 64 to 128)"),
        (lines[1].replace(b'"start":0', b'"start":1'), "line 2 holds no images that are still missing there"),
        (lines[1].replace(b"[[0,", b"[[9,"), "line 2 is damaged (no answers to the images from 0 to 64)"),
        (lines[1].replace(b"]],", b",99]],"), "line 2 is damaged (no answers to the images from 0 to 64)"),
    ):
        assert damaged != lines[1]
        file.write_bytes(lines[0] + damaged + lines[2])
        shown = run(bundle, *options, file)
        assert (shown.code, said in shown.error) == (2, True)


def test_a_journal_that_says_no_time_was_taken_gives_its_figures(run: Any, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    options = (bundle, "--data", "built-in", "--images", 20, "--json", "--resume", file)
    whole = run(*options).json
    file.write_bytes(re.sub(rb'(?<=_s":)[0-9.e-]+', b"0.0", file.read_bytes()))
    found = run(*options).json
    assert (counts(found), found["images_per_s"], found["model_images_per_s"]) == (counts(whole), 0, 0)


def test_a_journal_of_an_earlier_version_is_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    before = {name: value for name, value in msgspec.to_builtins(KEY).items() if name != "shard"}
    file = tmp_path / "journal"
    file.write_bytes(msgspec.json.encode(before) + b"\n")
    for option in ("--resume", "--against"):
        shown = run(bundle, "--data", "built-in", "--images", 20, option, file)
        assert (shown.code, f"{file} was written by an earlier version, in another form" in shown.error) == (2, True)


def test_shards_in_any_order_give_the_same_figures_and_are_sorted_in_the_end(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    journal, options = tmp_path / "journal", ("--data", "built-in", "--images", 300, "--json", "--resume")
    whole = run(bundle, *options, journal).json
    header, *shards = journal.read_bytes().splitlines(keepends=True)
    for order in ((4, 3, 2, 1, 0), (3, 0), (1,), (2, 4, 0, 1)):
        journal.write_bytes(header + b"".join(shards[number] for number in order))
        assert counts(run(bundle, *options, journal).json) == counts(whole)
        found = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
        assert [(one["start"], one["rows"]) for one in found] == [
            (old["start"], old["rows"]) for old in map(json.loads, shards)
        ]


def test_too_many_pictures_that_cannot_be_read_are_refused_by_the_same_command_too_until_they_are_mended(
    run: Any, bundle: Path, tmp_path: Path
) -> None:
    data, resume = tree(tmp_path, tuple(map(str, range(10))), 201), tmp_path / "journal"
    broken = {path: path.read_bytes() for path in sorted(data.rglob("*.JPEG"))[70:73]}
    for path in broken:
        path.write_bytes(b"junk")
    for _ in range(2):
        shown = run(bundle, "--data", data, "--resume", resume)
        assert (shown.code, "3 of the 201 pictures cannot be read, more than 1 %" in shown.error) == (1, True)
    for path, content in broken.items():
        path.write_bytes(content)
    assert run(bundle, "--data", data, "--resume", resume, "--json").json["images"] == 201


def test_a_journal_that_cannot_be_written_is_said_in_one_line(run: Any, bundle: Path, tmp_path: Path) -> None:
    options = ("--data", "built-in", "--images", 20, "--resume")
    assert "there is no folder" in run(bundle, *options, tmp_path / "nowhere" / "journal").error
    assert run(bundle, *options, tmp_path).code == 2
    journal = tmp_path / "journal"
    run(bundle, *options, journal)
    with journal.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shown = run(bundle, *options, journal)
    assert (shown.code, "another evaluation is writing" in shown.error) == (2, True)


KEY = EvaluationKey("bundle", "file", "onnxruntime", "cpu", "1:8:32", 10, 8, "data")


def test_of_two_evaluations_that_start_at_once_one_keeps_the_journal_and_the_other_is_told(tmp_path: Path) -> None:
    start, end = Barrier(2), Barrier(2)

    def work(path: Path) -> bool:
        start.wait(10)
        try:
            with open_resume_file(path, KEY):
                end.wait(10)
            return True
        except PlanError:
            end.wait(10)
            return False

    with ThreadPoolExecutor(2) as threads:
        for number in range(50):
            assert sorted(threads.map(work, [tmp_path / str(number)] * 2)) == [False, True]


def test_a_journal_whose_first_line_was_torn_is_begun_again(tmp_path: Path) -> None:
    with open_resume_file(tmp_path / "journal", KEY):
        whole = (tmp_path / "journal").read_bytes()
    for cut in (0, 1, len(whole) - 1):
        (tmp_path / "journal").write_bytes(whole[:cut])
        with open_resume_file(tmp_path / "journal", KEY) as journal:
            assert list(journal.shards(built_in("test"), 8)) == []
        assert (tmp_path / "journal").read_bytes() == whole


def test_a_pipe_is_no_journal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is not a file; give another"), open_resume_file(tmp_path / "pipe", KEY):
        pytest.fail("there is none")


def test_a_full_disk_is_said_in_one_line_and_what_was_written_is_used(bundle: Path, tmp_path: Path, run: Any) -> None:
    journal = tmp_path / "journal"
    options = ["eval", str(bundle), "--data", "built-in", "--images", "300", "--resume", str(journal)]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); {MAIN}"
    done = subprocess.run([sys.executable, "-c", limited, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith(f"error: --resume: cannot write {journal}: ")) == (
        2,
        True,
    ), done.stderr
    assert "Traceback" not in done.stderr
    assert 3000 < journal.stat().st_size <= 4000
    assert counts(run(*options[1:], "--json").json) == counts(run(*options[1:6], "--json").json)


def test_ctrl_c_leaves_a_journal_that_is_gone_on_with(run: Any, bundle: Path, tmp_path: Path) -> None:
    source = built_in("test")
    places = np.resize(np.arange(2000), 4000)
    np.savez(
        tmp_path / "many.npz",
        images=np.stack([np.asarray(source.image(int(place))) for place in places]),
        labels=np.asarray(source.labels)[places],
    )
    journal = tmp_path / "journal"
    options = [str(bundle), "--data", str(tmp_path / "many.npz"), "--resume", str(journal)]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "eval", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.stat().st_size < 5000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: interrupted; ")
    assert last.endswith(f" of 4000 pictures are in {journal}, and the same command goes on from there")
    done = sum(len(json.loads(line)["rows"]) for line in journal.read_bytes().splitlines()[1:])
    assert 0 < done < 4000
    answer = run(*options, "--json").json
    assert (answer["images"], answer["top1"]["correct"]) == (4000, 2 * 1889)
