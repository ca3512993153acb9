"""A Ray cluster of two nodes on this machine. A test file imports the fixture that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

TESTS = Path(__file__).resolve().parent
NODE = {"object_store_memory": 1 << 27}


@pytest.fixture(scope="module", name="two_nodes")
def two_nodes_fixture() -> Iterator[Cluster]:
    """A head with one core, and another node with two."""
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths, prepend=os.pathsep)  # what workers import is theirs
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **NODE})
        cluster.add_node(num_cpus=2, **NODE)
        yield cluster
        cluster.shutdown()
