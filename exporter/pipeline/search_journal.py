"""The journal of a search: what was tried so far, kept beside the bundle, so that an interrupted search can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimes.block_precision import Tried
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import PlanError
from runtimes.private import read_regular

SUFFIX = ".search.json"
LARGEST_FILE = 8 << 20


@dataclass(frozen=True)
class _Content:
    digest: str
    tried: list[Tried]


class Journal:
    """What was tried, by the blocks returned; kept in a file, which each new entry is written to.

    Attributes:
        path: the file; it is there once something was tried.
        tried: the entries, those of an earlier search included.
    """

    def __init__(self, path: Path, digest: str, say: Callable[[str], None]) -> None:
        """Read the entries of an interrupted search for the same.

        Args:
            digest: of all that an entry depends on (see `digest_of`).
            say: told of a journal that is of something else. It is ignored, and later replaced.

        Raises:
            PlanError: the file is no journal.
        """
        self.path, self.digest = path, digest
        self.tried: dict[tuple[str, ...], Tried] = {}
        try:
            content = msgspec.json.decode(read_regular(path, LARGEST_FILE), type=_Content)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            raise PlanError(f"{path} is no journal of a search; move it away, or choose another --output") from error
        if content.digest != digest:
            say(f"{path.name} is of another network, other images or options; searching from the start")
            return
        self.tried = {one.returned: one for one in content.tried}
        say(f"{path.name}: going on after {len(self.tried)} evaluations")

    def add(self, one: Tried) -> None:
        """Add an entry, and write the file."""
        self.tried[one.returned] = one
        content = _Content(self.digest, list(self.tried.values()))
        write_in_one_step(self.path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def digest_of(*parts: bytes) -> str:
    """The sha256 of several pieces of data, in hex."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()
