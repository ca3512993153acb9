"""Who was the fastest, kept for `open_runtime(bundle, "auto")`: one small file for each bundle, machine and number of
threads.

It is data alone: names of backends and providers, which are opened as if a user had named them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runtimes.benchmark.results import THROUGHPUT, BundleFacts, Contender, Entry, Result, Winner
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BackendUnavailable
from runtimes.private import home_folder, private_folder, read_regular
from runtimes.tuning import Hint

SCHEMA_VERSION = 1
LARGEST_FILE = 1 << 20
STATE_VARIABLE, STATE_DEFAULT = "XDG_STATE_HOME", ".local/state"  # XDG Base Directory Specification, version 0.8
FOLDER = ("resnet-export", "bench")
ORDER: tuple[tuple[str, str | None], ...] = (
    ("tensorrt", None),
    ("tensorrt-rtx", None),
    ("onnxruntime", "cuda"),
    ("openvino", None),
    ("onnxruntime", "cpu"),
    ("pytorch", None),
)
"""What `auto` tries where nothing was measured: backends and, where they have several, their providers."""


@dataclass(frozen=True)
class Ranking:
    """Backends and their providers, the fastest first, by what counts; `date` is that of the measurement."""

    schema_version: int
    date: str
    latency: tuple[tuple[str, str | None], ...]
    throughput: tuple[tuple[str, str | None], ...]

    def by(self, hint: Hint) -> tuple[tuple[str, str | None], ...]:
        return self.latency if hint == "latency" else self.throughput


def keep_rankings(result: Result) -> str:
    """Keep who was the fastest for each bundle of a result.

    Returns:
        why they could not be kept, in one line; empty where they were.
    """
    try:
        for bundle in result.bundles:
            ranking = ranking_of(result, bundle)
            if ranking is not None:
                folder = private_folder(_base(), *FOLDER, remedy=f"set {STATE_VARIABLE} to another folder")
                data = msgspec.json.format(msgspec.json.encode(ranking), indent=2) + b"\n"
                name = _name(bundle.sha256, result.machine.key, result.settings.threads)
                write_in_one_step(folder / name, data)
    except BackendUnavailable as error:
        return str(error)
    except OSError as error:
        return f"cannot write {error.filename}: {error.strerror}"
    return ""


def kept_ranking(bundle_sha256: str, machine_key: str, threads: int) -> tuple[Ranking | None, str]:
    """The ranking that was kept for a bundle on a machine with so many threads, or None; and what is wrong with its
    file, if anything is."""
    try:
        path = _base().joinpath(*FOLDER, _name(bundle_sha256, machine_key, threads))
    except BackendUnavailable:
        return None, ""
    try:
        found = msgspec.json.decode(read_regular(path, LARGEST_FILE), type=Ranking)
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return None, f"what was measured is not used, since {path} is damaged ({_said(error)}); measure again"
    if found.schema_version != SCHEMA_VERSION:
        return None, f"what was measured is not used, since {path} is of another version; measure again"
    return found, ""


def ranking_of(result: Result, bundle: BundleFacts) -> Ranking | None:
    """The order of a bundle's contenders that `open_runtime` can open, the fastest first; None where fewer than two
    were measured beside each other: one alone says nothing of the others. A server's model is never chosen."""
    here = [one for one in result.entries_of(bundle) if not one.contender.is_served]
    able = [one for one in here if one.can_win and one.of_line("copies")]
    if len({(one.contender.backend, one.contender.provider) for one in able}) < 2:
        return None
    each = {winner.measure: winner for winner in result.winners if winner.bundle == bundle.folder}
    latency, throughput = (_ordered(able, each.get(hint)) for hint in ("latency", "throughput"))
    return Ranking(SCHEMA_VERSION, result.date, latency, throughput) if latency or throughput else None


def _ordered(entries: list[Entry], winner: Winner | None) -> tuple[tuple[str, str | None], ...]:
    """The fastest first; those that the rounds cannot tell from it follow in the documented order."""

    def place(entry: Entry) -> tuple[float, int]:
        name = entry.contender.name
        if winner is None or name == winner.decision.best or name in winner.decision.tied:
            return 0.0, _documented_place(entry.contender)
        ratio = winner.decision.ratios.get(name)
        return (ratio.median if ratio is not None else float("inf")), 0

    chosen = [one for one in entries if one.contender.variant in ("", THROUGHPUT)]
    return tuple(dict.fromkeys((one.contender.backend, one.contender.provider) for one in sorted(chosen, key=place)))


def _documented_place(contender: Contender) -> int:
    for place, (backend, provider) in enumerate(ORDER):
        if contender.backend == backend and provider in (None, contender.provider):
            return place
    return len(ORDER)


def _base() -> Path:
    return home_folder(STATE_VARIABLE, STATE_DEFAULT)


def _name(bundle_sha256: str, machine_key: str, threads: int) -> str:
    return f"{bundle_sha256[:32]}-{machine_key[:32]}-{threads}.json"


def _said(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error)
