"""How `auto` chooses a backend for a bundle: the fastest that was measured here, or the documented order."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.winners import ORDER, kept_ranking
from runtimes.bundle import MANIFEST, Bundle, sha256_of_file
from runtimes.tuning import Tuning


@dataclass(frozen=True)
class Choice:
    """A backend that `auto` chose.

    Attributes:
        why: what it was chosen by, in words.
        skipped: the backends that came before it, and why each cannot run the bundle here.
    """

    backend: str
    provider: str | None
    why: str
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" ({self.provider})" if self.provider else ""
        left = f"; skipped {'; '.join(self.skipped)}" if self.skipped else ""
        return f"{self.backend}{where}: {self.why}{left}"


def candidates(bundle: Bundle, tuning: Tuning, provider: str | None) -> list[Choice]:
    """The backends to try, in order: those measured here, the fastest first, and then those of the documented order.

    Args:
        provider: only those that run on it; None takes any.
    """
    ranking, problem = kept_ranking(sha256_of_file(bundle.folder / MANIFEST), this_machine().key, tuning.cores)
    measured = ranking.by(tuning.hint) if ranking is not None else ()
    why = "nothing was measured here for this bundle, so by the documented order"
    if problem:
        why = f"by the documented order: {problem}"
    elif ranking is not None:
        why = "not measured, and by the documented order"
    best = "" if ranking is None else f"the first in {tuning.hint} of those measured here on {ranking.date}"
    found = [Choice(backend, where, best) for backend, where in measured]
    found += [Choice(backend, where, why) for backend, where in ORDER if not _is_among(backend, where, measured)]
    if provider is None:
        return found
    return [one for one in found if one.provider in (None, provider)]


def _is_among(backend: str, provider: str | None, measured: tuple[tuple[str, str | None], ...]) -> bool:
    return any(backend == one and provider in (None, where) for one, where in measured)
