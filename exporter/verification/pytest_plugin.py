"""A plugin for pytest: a test for each limit of a bundle's parity budget on each backend; fixtures `bundle`, `runtime`.

    pytest --resnet-bundle build/resnet50-int8

pytest loads this in every project (the entry point `resnet-export` of `pytest11`), so nothing but pytest is imported
until a bundle is named. Bundles are opened before anything is collected; a backend runs, in a process of its own, when
the first of its tests does. Under pytest-xdist each worker that gets one of a backend's tests runs that backend;
`--dist loadscope` gives them all to one worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from exporter.verification.inputs import CheckInputs
    from exporter.verification.plan import CheckPlan
    from exporter.verification.verdicts import BundleCheck
    from runtimes.base import Runtime
    from runtimes.bundle import Bundle
    from runtimes.errors import ResnetExportError

PLANS: pytest.StashKey[tuple[CheckPlan, ...]] = pytest.StashKey()
NO_BUNDLE = "no bundle is named; give --resnet-bundle DIR"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("resnet-export", "parity of bundles")
    group.addoption(
        "--resnet-bundle",
        action="append",
        default=[],
        metavar="DIR",
        help="Bundle to test against its parity budget; repeatable.",
    )
    group.addoption(
        "--resnet-config", metavar="FILE", help="Test the bundles that a resnet-parity.toml names, with its settings."
    )
    group.addoption(
        "--resnet-backend",
        action="append",
        default=[],
        metavar="NAME|all",
        help="Backend to run; repeatable.  [default: all that are installed]",
    )
    group.addoption(
        "--resnet-budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Limit in place of the bundle's own; repeatable.",
    )
    group.addoption(
        "--resnet-trust-engine",
        action="append",
        default=[],
        metavar="SHA256",
        help="Engine to load though another machine built it; repeatable.",
    )
    group.addoption("--resnet-data", metavar="SOURCE", help="Images to run in place of the bundle's golden inputs.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PLANS] = _plans(config)
    config.pluginmanager.register(_fixtures(config.stash[PLANS]), "resnet-export-fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the bundles to what the session collects, beside the test files."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        plans = collector.config.stash[PLANS]
        report.result = [
            *report.result,
            *(_bundle_tests(collector, plan, name) for plan, name in zip(plans, _names(plans), strict=True)),
        ]
    return report


class BundleTests(pytest.Collector):
    """The tests of a bundle: a collector for each backend."""

    plan: CheckPlan

    @cached_property
    def inputs(self) -> CheckInputs | ResnetExportError:
        """What all its backends are fed; gathered once, so that a reference program runs once."""
        from exporter.verification.inputs import gather_inputs
        from runtimes.errors import ResnetExportError

        try:
            return gather_inputs(self.plan)
        except ResnetExportError as error:
            return error

    @cached_property
    def backends(self) -> list[BackendTests]:
        return [_backend_tests(self, backend) for backend in self.plan.backends]

    def collect(self) -> list[BackendTests]:
        return self.backends


class BackendTests(pytest.Collector):
    """The tests of a bundle on a backend: one for each limit of the budget, all measured in one run."""

    bundle: BundleTests

    @cached_property
    def plan(self) -> CheckPlan:
        return replace(self.bundle.plan, backends=(self.name,))

    @cached_property
    def result(self) -> BundleCheck | ResnetExportError:
        """The verdict on this backend; the backend runs when it is first asked for."""
        from exporter.verification.check import check_bundle
        from exporter.verification.inputs import CheckInputs
        from runtimes.errors import ResnetExportError

        inputs = self.bundle.inputs
        if not isinstance(inputs, CheckInputs):
            return inputs
        try:
            return check_bundle(self.plan, inputs=inputs).check
        except ResnetExportError as error:
            return error

    @property
    def is_here(self) -> bool:
        from exporter.verification.verdicts import BundleCheck

        return not isinstance(self.result, BundleCheck) or self.result.backends[0].verdict != "not here"

    @property
    def may_be_missing(self) -> bool:
        """Is the backend skipped where it is missing? It was not named, and another one is here."""
        return not self.plan.asked and any(one.is_here for one in self.bundle.backends)

    def collect(self) -> list[LimitTest]:
        from runtimes.parity.budget_options import changed_budget

        budget = changed_budget(self.plan.bundle.manifest.budget, self.plan.budget)
        return [_limit_test(self, limit) for limit in budget.limit_names]


class LimitTest(pytest.Item):
    """One limit of the budget."""

    backend: BackendTests

    def runtest(self) -> None:
        from exporter.verification.report.lines import parity_lines
        from exporter.verification.verdicts import BundleCheck, why_not_judged

        check = self.backend.result
        if not isinstance(check, BundleCheck):
            pytest.fail(str(check), pytrace=False)
        for problem in check.left_out:
            warnings.warn(pytest.PytestWarning(f"left out: {problem}"), stacklevel=1)
        (one,) = check.backends
        if one.answer is None:
            why = f"{one.backend}: {one.verdict}: {one.reason}"
            if one.verdict == "not here" and self.backend.may_be_missing:
                pytest.skip(why)
            pytest.fail(why, pytrace=False)
        limit = next((limit for limit in one.answer.limits if limit.name == self.name), None)
        if limit is None:
            pytest.skip(why_not_judged(self.name, one.answer, check.no_accuracy))
        self.user_properties.append(("measured", limit.text))
        if limit in one.answer.failing:
            pytest.fail("\n".join([limit.text, "", *parity_lines(one.answer.report)]), pytrace=False)
        if limit.verdict == "undecided":
            pytest.skip(limit.text)

    def reportinfo(self) -> tuple[Path, None, str]:
        return (
            self.backend.plan.bundle.folder.absolute(),
            None,
            f"{self.backend.bundle.name} on {self.backend.name}: {self.name}",
        )


def _bundle_tests(session: pytest.Session, plan: CheckPlan, name: str) -> BundleTests:
    node: BundleTests = BundleTests.from_parent(session, name=name, nodeid=name)
    node.plan = plan
    return node


def _backend_tests(bundle: BundleTests, backend: str) -> BackendTests:
    node: BackendTests = BackendTests.from_parent(bundle, name=backend)
    node.bundle = bundle
    return node


def _limit_test(backend: BackendTests, limit: str) -> LimitTest:
    node: LimitTest = LimitTest.from_parent(backend, name=limit)
    node.backend = backend
    return node


def _names(plans: Sequence[CheckPlan]) -> list[str]:
    """The names in the manifests, numbered where several are the same."""
    if not plans:
        return []
    from exporter.verification.verdicts import distinct_names

    return distinct_names([plan.bundle.manifest.name for plan in plans])


def _plans(config: pytest.Config) -> tuple[CheckPlan, ...]:
    """The bundles that the command line names, opened, with their settings.

    Raises:
        pytest.UsageError: a bundle cannot be read, or an option is wrong.
    """
    bundles, file = config.getoption("resnet_bundle"), config.getoption("resnet_config")
    backends, budget, data = (config.getoption(f"resnet_{name}") for name in ("backend", "budget", "data"))
    engines = config.getoption("resnet_trust_engine")
    if not bundles and file is None:
        if backends or budget or data is not None:
            raise pytest.UsageError(
                f"--resnet-backend, --resnet-budget and --resnet-data are about a bundle, and {NO_BUNDLE}"
            )
        if engines:
            raise pytest.UsageError(f"--resnet-trust-engine is about a bundle's engine, and {NO_BUNDLE}")
        return ()
    from exporter.verification.parity_toml import Settings, entries_to_check, plan_from_entry
    from runtimes.errors import ResnetExportError
    from runtimes.nvidia.trust import trusted_engines
    from runtimes.parity.budget_options import budget_from_text

    try:
        trusted = tuple(sorted(trusted_engines(engines)))
        given = Settings(backends=tuple(backends) or None, data=data, budget=budget_from_text(tuple(budget)))
        named = entries_to_check([Path(one) for one in bundles], Path(file) if file else None, given)
        return tuple(replace(plan_from_entry(entry), trust_engines=trusted) for entry in named)
    except ResnetExportError as error:
        raise pytest.UsageError(str(error)) from error


def _fixtures(plans: tuple[CheckPlan, ...]) -> ModuleType:
    """A plugin with the fixtures; made at run time, since the command line says what they are parametrised over."""

    @pytest.fixture(scope="session", params=[plan.bundle for plan in plans] or None, ids=_names(plans) or None)
    def bundle(request: pytest.FixtureRequest) -> Bundle:
        """Each bundle of --resnet-bundle, opened."""
        if not plans:
            pytest.skip(NO_BUNDLE)
        opened: Bundle = request.param
        return opened

    @pytest.fixture(scope="session", params=sorted({name for plan in plans for name in plan.backends}) or None)
    def runtime(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Runtime]:
        """The bundle on each of --resnet-backend, opened; closed after the tests."""
        if not plans:  # the bundle is of a fixture of the user's
            pytest.skip(NO_BUNDLE)
        with _open_runtime(bundle, request.param, plans) as model:
            yield model

    holder = ModuleType("exporter.verification.pytest_plugin.fixtures")
    vars(holder).update(bundle=bundle, runtime=runtime)
    return holder


def _open_runtime(bundle: Bundle, backend: str, plans: tuple[CheckPlan, ...]) -> Runtime:
    """The bundle on a backend; skips or fails the test where that cannot be opened."""
    from runtimes._open import open_runtime
    from runtimes.errors import BackendUnavailable, ResnetExportError

    # The bundle may be of a fixture of the user's.
    plan = next((one for one in plans if one.bundle is bundle), plans[0])
    if backend not in plan.backends:
        pytest.skip(f"{backend} is not among the backends that were asked for {plan.bundle.folder}")
    try:
        where, trusted = plan.provider_of(backend), plan.trust_engines
        return open_runtime(bundle, backend, provider=where, trust_engine=trusted, tuning=plan.tuning)
    except BackendUnavailable as error:
        if not plan.asked:
            pytest.skip(f"{backend}: not here: {error}")
        pytest.fail(f"{backend}: not here: {error}", pytrace=False)
    except ResnetExportError as error:
        pytest.fail(f"{backend}: failed: {error}", pytrace=False)
