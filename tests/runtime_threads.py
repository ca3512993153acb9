"""What threads may do with a runtime of any backend."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_answers import INPUT, OUTPUT, assert_same_rows, images

from runtimes import Preprocess, Runtime

THREADS, ROUNDS = 4, 12
STEPS = Preprocess(28, (28, 28), "bilinear", True, (0.5,), (0.5,))


def stress(runtime: Runtime) -> None:
    """Threads that each feed pictures and batch sizes of their own: each must get its own answers."""
    fed = [{INPUT: images(1 + place % 3, seed=place)} for place in range(THREADS)]
    expected = [runtime.run(one)[OUTPUT] for one in fed]
    begin = threading.Barrier(THREADS)

    def work(place: int) -> None:
        begin.wait(20)
        for _ in range(ROUNDS):
            assert_same_rows(runtime.run(fed[place])[OUTPUT], expected[place])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def siblings(runtime: Runtime) -> None:
    """Threads with siblings, which run side by side and are each closed for itself."""
    runtime.preprocess = STEPS
    fed = [{INPUT: images(1 + place % 3, seed=place)} for place in range(THREADS)]
    expected = [runtime.run(one)[OUTPUT] for one in fed]

    def work(place: int) -> None:
        with runtime.sibling() as mine:
            assert (mine.inputs, mine.outputs, mine.batch) == (runtime.inputs, runtime.outputs, runtime.batch)
            for _ in range(ROUNDS):
                assert_same_rows(mine.run(fed[place])[OUTPUT], expected[place])
            assert len(list(mine.stream([np.zeros((28, 28), np.uint8)] * 3, batch=3))) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    last = runtime.sibling()
    runtime.close()
    with last:  # it outlives the one that it came from
        assert_same_rows(last.run(fed[0])[OUTPUT], expected[0])
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.sibling()
