"""The machine to look at: this one, or a tree of files of another."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MOST_TEXT = 4 << 20
ROOT = Path("/")


@dataclass(frozen=True)
class Host:
    """Where the probes look.

    Attributes:
        root: where `etc`, `proc`, `sys`, `dev` and `usr` are.
        machine: the processor's architecture.
        python: this Python's version; `executable` is its file.
        paths: the folders that Python imports from.
        environment: the environment's variables.
        is_here: is it this machine, so that children may be asked?
    """

    root: Path = ROOT
    machine: str = field(default_factory=platform.machine)
    python: str = field(default_factory=platform.python_version)
    paths: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    is_here: bool = True
    executable: str = field(default_factory=lambda: sys.executable or "")

    def path(self, name: str) -> Path:
        """A path below the root; `name` may begin with a slash."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """A file's text; empty where it cannot be read."""
        with suppress(OSError, ValueError), self.path(name).open("rb") as file:
            return file.read(MOST_TEXT).decode("utf-8", "replace")
        return ""

    def exists(self, name: str) -> bool:
        """Is there something of this name? A broken link is nothing."""
        with suppress(OSError, ValueError):
            return self.path(name).exists()
        return False

    def name_of(self, path: Path) -> str:
        """A path below the root as an absolute name there; any other as it is."""
        return f"/{path.relative_to(self.root)}" if path.is_relative_to(self.root) else str(path)

    def names(self, pattern: str) -> tuple[str, ...]:
        """What matches a pattern below the root, as absolute names there, sorted."""
        with suppress(OSError, ValueError):
            return tuple(sorted(map(self.name_of, self.root.glob(pattern.lstrip("/")))))
        return ()


@dataclass
class Unread:
    """Collects what could not be found out, so that a probe that fails is a line and not the end."""

    lines: list[str] = field(default_factory=list)

    @contextmanager
    def probe(self, what: str) -> Iterator[None]:
        """Note what the block raises, whatever it is."""
        try:
            yield
        except Exception as error:  # the system may be odd in any way
            said = next((line for line in str(error).splitlines() if line.strip()), "")
            self.lines.append(f"{what}: {type(error).__name__}{f' ({said})' if said else ''}")
