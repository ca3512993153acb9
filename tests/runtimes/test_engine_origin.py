"""A stranger's engine is code: none is loaded that this machine did not build, unless the user names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Ran
from engine_bundles import as_a_strangers
from rtx_engines import (  # noqa: F401  # pytest finds the fixtures by their names
    REBUILD,
    add_plan,
    built_fixture,
    bundle_fixture,
    edited,
    engine_fixture,
    facts_fixture,
    here_fixture,
    said,
)

from runtimes import Bundle
from runtimes.errors import BackendUnavailable, BundleError
from runtimes.nvidia.engine_choice import Here, engine_for, loadable_engine
from runtimes.nvidia.engine_file import EngineFacts, facts_of, read_engine
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.specs import BatchRange


def test_a_strangers_engine_is_not_loaded_unless_it_is_named(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    assert loadable_engine(engine, lambda: here, ())[1] == engine.read_bytes()
    as_a_strangers(engine, options={"version_compatible": True}, version="1.0.0.0")
    with pytest.raises(BundleError) as caught:
        loadable_engine(engine, lambda: here, {"0" * 64})
    assert said(caught.value, f"--trust-engine {facts.engine_sha256}").startswith(
        f"{engine} was not built on this machine, and engines are code, "
    )
    assert REBUILD in str(caught.value)
    with pytest.raises(BackendUnavailable, match="has no engine for .* was not built on this machine.* --trust-engine"):
        engine_for(Bundle.open(bundle), here)
    for trusted in ({facts.engine_sha256}, [facts.engine_sha256]):
        assert loadable_engine(engine, lambda: here, trusted)[1] == engine.read_bytes()
        assert engine_for(Bundle.open(bundle), here, trusted) == engine


@pytest.mark.parametrize(
    "change",
    [
        {"seal": ""},
        {"options": {"version_compatible": True}},
        {"checked": True},
        {"onnx_sha256": "0" * 64},
        {"targets": ["sm86", "sm89"]},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sidecar_that_was_edited_vouches_for_nothing(engine: Path, here: Here, change: dict[str, Any]) -> None:
    sidecar_of(engine).write_bytes(edited(lambda document: document.update(change))(sidecar_of(engine).read_bytes()))
    with pytest.raises(BundleError, match="was not built on this machine"):
        loadable_engine(engine, lambda: here, ())


def test_an_engine_that_was_exchanged_is_not_loaded_even_when_it_is_named(
    engine: Path, facts: EngineFacts, here: Here
) -> None:
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    for trusted in ((), (facts.engine_sha256,)):
        with pytest.raises(BundleError, match="was changed after it was built"):
            loadable_engine(engine, lambda: here, trusted)


def test_nothing_of_a_strangers_engine_is_read_beyond_its_header(engine: Path, facts: EngineFacts, here: Here) -> None:
    size = 1 << 40
    with engine.open("r+b") as file:
        file.truncate(size)  # of zeros that take no room
    for read in (facts_of, read_engine):
        with pytest.raises(BundleError, match="was changed after it was built"):
            read(engine)
    as_a_strangers(engine, engine_bytes=size)
    with pytest.raises(BundleError, match="was not built on this machine"):
        loadable_engine(engine, lambda: here, ())


def test_of_several_engines_the_one_that_is_named_is_taken_and_a_strangers_never(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    special = add_plan(bundle, engine.read_bytes()[:-1] + b"!", facts, options={"optimization_level": 5})
    strangers = add_plan(bundle, engine.read_bytes()[:-1] + b"?", facts, batch=BatchRange(1, 1, 1))
    named = as_a_strangers(strangers)
    for second, path in enumerate((engine, special, strangers)):
        os.utime(path, (1000 + second, 1000 + second))
    opened = Bundle.open(bundle)
    assert engine_for(opened, here) == special
    assert engine_for(opened, here, {named}) == strangers
    assert engine_for(opened, here, {facts.engine_sha256}) == engine
    os.utime(special, (1000, 1000))
    assert engine_for(opened, here) == engine  # of the same age, the one with fewer options


def test_inspect_says_whose_an_engine_is(engine: Path, facts: EngineFacts, deploy: Callable[..., Ran]) -> None:
    shown = deploy("inspect", engine)
    assert "trust        built on this machine" in shown.out
    assert deploy("inspect", engine, "--json").json["built_here"]
    as_a_strangers(engine)
    shown = deploy("inspect", engine)
    assert shown.code == 0
    assert f"trust        {engine} was not built on this machine" in shown.out
    assert f"sha256       {facts.engine_sha256}" in shown.out
    assert not deploy("inspect", engine, "--json").json["built_here"]
