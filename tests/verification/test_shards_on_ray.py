"""Calibration and check on workers of Ray, processes of their own: the same to the last bit as in one process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Made
from counted_pictures import COUNT, counting_task

from calibration.counting import OpenCounter, count_images
from calibration.distributed.cluster import connected
from calibration.distributed.local import Local
from calibration.distributed.ray import RayExecutor
from calibration.distributed.request import ray_request
from exporter.verification.check import check_bundle
from exporter.verification.plan import CheckPlan
from runtimes.errors import BackendUnavailable

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(name="executor", scope="module")
def executor_fixture() -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), str(TESTS.parent))), prepend=os.pathsep)
        with connected(ray_request("local:2"), None, gpu=False) as executor:
            yield executor


@pytest.fixture(name="task")
def task_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenCounter:
    """Pictures that are named by a path from here, where no worker is."""
    monkeypatch.chdir(tmp_path)
    return replace(counting_task(Path("pictures")), readable=0)


def test_calibration_counts_the_same(executor: RayExecutor, task: OpenCounter) -> None:
    here, there = count_images(task, Local()), count_images(task, executor)
    assert there.seen == replace(here.seen, unreadable=there.seen.unreadable)
    assert (there.seen.images, len(there.seen.unreadable)) == (COUNT - 1, 1)
    for name, histogram in here.histograms.items():
        assert there.histograms[name].largest == histogram.largest
        np.testing.assert_array_equal(there.histograms[name].counts, histogram.counts)


def test_pictures_that_workers_cannot_see_are_told(executor: RayExecutor, task: OpenCounter) -> None:
    shutil.rmtree("pictures")
    with pytest.raises(BackendUnavailable, match=r"pictures that this worker can read, got: .*000\.png.*same path on"):
        count_images(task, executor)


@pytest.mark.slow
def test_check_finds_the_same(executor: RayExecutor, good: Made) -> None:
    plan = CheckPlan(good[1].bundle, ("onnxruntime",), asked=True, data="built-in", images=70)
    here, there = check_bundle(plan), check_bundle(plan, executor=executor)
    checks = [
        replace(found.check, backends=tuple(replace(one, seconds=0.0) for one in found.check.backends))
        for found in (here, there)
    ]
    assert checks[0] == checks[1]
    assert (there.check.images, there.check.backends[0].verdict) == (70, "ok")
