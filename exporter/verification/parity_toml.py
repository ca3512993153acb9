"""Read `resnet-parity.toml`: the bundles that a repository checks, and with which settings.

    backends = ["onnxruntime"]          # this and what follows is optional, and holds for bundles that do not set it
    data = "images/"                    # images in place of the golden inputs
    images = 512                        # at most that many of them
    timeout_s = 600                     # seconds that a backend may take
    # url = "grpc://host:8001/model"    # with backends = ["triton"]: the bundle's model on a server

    [budget]                            # limits in place of the bundle's own
    min_agreement = 0.99

    [[bundles]]
    path = "resnet50-int8"
    against = "released/resnet50-int8"
    budget = { min_sqnr_db = 25.0 }

Paths are relative to the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from calibration.storage import is_url
from exporter.verification.plan import CheckPlan
from runtimes._open import backend_names, local_backend_names
from runtimes.bundle import Bundle
from runtimes.errors import BadInput, PlanError, ResnetExportError, UnknownName
from runtimes.parity.budget_options import changed_budget
from runtimes.private import read_regular
from runtimes.server_url import check_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALL, CONFIG = "all", "resnet-parity.toml"
LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Settings for one bundle, as in `exporter.verification.check.CheckPlan`; None is not set.

    Attributes:
        backends: names, or `all` alone.
        budget: limits in place of the bundle's own, by name.
        against: the folder of the bundle that is the reference.
    """

    backends: tuple[str, ...] | None = None
    data: str | None = None
    images: Annotated[int, msgspec.Meta(ge=1)] | None = None
    budget: dict[str, float] = field(default_factory=dict)
    against: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    url: str | None = None

    def with_defaults(self, defaults: Settings) -> Settings:
        """These settings, and `defaults` for what is not set; budgets are merged limit by limit."""
        known = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}
        return replace(defaults, **{**known, "budget": {**defaults.budget, **self.budget}})


EXPECTED = {  # in messages, by key
    "backends": 'a list of names, as ["onnxruntime"]',
    "data": "the name of a source in quotes",
    "images": "a whole number, 1 or more",
    "budget": "limits with numbers, as { min_agreement = 0.99 }",
    "against": "the folder of a bundle in quotes",
    "timeout_s": "seconds, more than 0",
    "url": "the URL of the bundle's model on a server in quotes",
}


@dataclass(frozen=True)
class Entry:
    """One bundle to check, with its settings.

    Attributes:
        named_by: the file that names the bundle, for messages; None where the command line does.
    """

    path: Path
    settings: Settings
    named_by: Path | None = None


def entries_from_toml(path: Path) -> tuple[Entry, ...]:
    """The bundles that a file names, in its order; paths in it are relative to its folder.

    Raises:
        BadInput: the file cannot be read, is not TOML, or a value is of the wrong kind; names it.
        UnknownName: a key that there is not; lists the nearest.
        PlanError: it names no bundle.
    """
    try:
        document = tomllib.loads(read_regular(path, LARGEST_FILE).decode())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; write one, or give a BUNDLE") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and of numbers that are too long for Python
        raise BadInput(f"{path} is no TOML: {error}") from error
    tables = document.pop("bundles", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadInput(f"{path}: expected bundles as tables, [[bundles]], got something else")
    common = _settings(document, str(path), path.parent, "bundles")
    entries = []
    for number, table in enumerate(tables, start=1):
        where = f"{path}, bundle {number}"
        place = table.pop("path", None)
        if not isinstance(place, str):
            raise BadInput(f'{where}: expected a path, got {place!r}; write path = "FOLDER"')
        settings = _settings(table, where, path.parent, "path")
        entries.append(Entry(path.parent / place, settings.with_defaults(common), path))
    if not entries:
        raise PlanError(f'{path} names no bundle; add one: [[bundles]] and under it path = "FOLDER"')
    return tuple(entries)


def _settings(table: Mapping[str, Any], where: str, folder: Path, other_key: str) -> Settings:
    """Settings from a table; `where` and `other_key`, which may stand there too, are for messages."""
    known = [one.name for one in fields(Settings)]
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"key in {where}", key, (*known, other_key))
        try:
            msgspec.convert({key: value}, Settings)
        except msgspec.ValidationError as error:
            raise BadInput(f"{where}: expected {EXPECTED[key]} for {key}, got {value!r}") from error
    settings = msgspec.convert(dict(table), Settings)
    return replace(settings, data=_path_in(folder, settings.data), against=_path_in(folder, settings.against))


def _path_in(folder: Path, name: str | None) -> str | None:
    return name if name is None or name == "built-in" or is_url(name) else str(folder / name)


def entries_to_check(bundles: Sequence[Path], config: Path | None, given: Settings) -> list[Entry]:
    """What to check: the bundles that are named, or those of the file, over whose settings `given` goes.

    Args:
        config: the file; None takes `resnet-parity.toml` in the current folder where no bundle is named.

    Raises:
        PlanError: bundles and a file, or neither; the file names none.
        BadInput, UnknownName: the file is not what it should be.
    """
    if bundles:
        if config is not None:
            raise PlanError("expected bundles or --config, got both; the file names its bundles itself")
        return [Entry(path, given) for path in bundles]
    if config is None and not Path(CONFIG).exists():
        raise PlanError(
            f"expected a BUNDLE, got none, and there is no {CONFIG} here; give the folder that resnet-export wrote"
        )
    entries = entries_from_toml(config or Path(CONFIG))
    return [replace(entry, settings=given.with_defaults(entry.settings)) for entry in entries]


def plan_from_entry(entry: Entry) -> CheckPlan:
    """Open the bundles of an entry and check its settings, before anything runs.

    Raises:
        BundleError: a bundle cannot be read.
        UnknownName: a backend or limit that there is not; lists the nearest.
        PlanError: settings contradict each other.
        BadInput: an empty name is given.
        All name the file that names the bundle.
    """
    try:
        return _plan(entry)
    except ResnetExportError as error:
        if entry.named_by is not None:
            error.args = (f"{entry.named_by}: {error}",)
        raise


def _plan(entry: Entry) -> CheckPlan:
    settings, known, url = entry.settings, backend_names(), entry.settings.url
    given = tuple(dict.fromkeys(settings.backends if settings.backends is not None else (ALL,)))
    for name in given:
        if name not in (*known, ALL):
            raise UnknownName("backend", name, (*known, ALL))
    if ALL in given and len(given) > 1:
        raise PlanError(f"expected backends by name or {ALL}, got both; leave one of them out")
    asked = ALL not in given
    names = given if asked else local_backend_names()
    check_url(given, url)
    if not names:
        raise PlanError(f"expected a backend for {entry.path}, got none; name one, or {ALL}")
    for option, value in (("--data", settings.data), ("--against", settings.against)):
        if value is not None and not value.strip():
            raise BadInput(f"expected something for {option}, got nothing; leave it out, or name what is meant")
    bundle = Bundle.open(entry.path)
    changed_budget(bundle.manifest.budget, settings.budget)
    against = Bundle.open(settings.against) if settings.against is not None else None
    images = CheckPlan.images if settings.images is None else settings.images
    if settings.images is not None and settings.data is None:
        raise PlanError("a number of images needs --data: golden inputs are all run; give both or neither")
    return CheckPlan(bundle, names, asked, settings.budget, settings.data, images, against, settings.timeout_s, url=url)
