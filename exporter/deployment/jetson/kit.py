"""Pack a kit: one tar file with bundles, this package's wheel, a script that installs it, and what to do then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.deployment.jetson.archive import Content, content_of, write_archive
from exporter.deployment.jetson.base_wheels import WheelPlatform, collect_wheels
from exporter.deployment.jetson.own_wheel import own_wheel
from exporter.deployment.jetson.readme import CUDA_OF_PYTHON, readme
from exporter.engines.build import newest_opset
from runtimes.board.jetpack import JETPACKS, JetPack
from runtimes.bundle import MANIFEST, ONNX, Bundle
from runtimes.errors import BundleError, PlanError, UnknownName
from runtimes.manifest import FileFacts, Manifest, json_from_manifest, without_reference
from runtimes.nvidia.engine_file import facts_of, read_sidecar
from runtimes.nvidia.plan_files import FOLDER, finished, sidecar_of
from runtimes.printable import is_utf8
from runtimes.progress import Progress

ROOT = "resnet-kit"
"""The folder that a kit unpacks to."""
SCRIPT = Path(__file__).with_name("install.sh")
BOARDS = "linux-aarch64"


@dataclass(frozen=True)
class KitPlan:
    """What to pack.

    Attributes:
        wheels: collect the base install's wheels for this platform; None leaves them to the board's network.
        jetpack: the board's JetPack, for example `6.2`; None is any that can build the bundles.
        engines: pack the engines that were built for such boards, too.

    Raises:
        PlanError: two bundles have one name, a bundle has one that is no text, or no board builds it; options
            contradict each other.
        BundleError: a bundle was rejected by its export, or holds engines of another.
        UnknownName: there is no such JetPack.
    """

    bundles: tuple[Bundle, ...]
    output: Path
    wheels: WheelPlatform | None = None
    jetpack: str | None = None
    engines: bool = False

    def __post_init__(self) -> None:
        names: dict[str, Path] = {}
        for bundle in self.bundles:
            name = name_of(bundle)
            if not name.isprintable() or not is_utf8(bundle.folder):
                raise PlanError(f"expected a printable name of {bundle.folder!r}, got {name!r}; rename the folder")
            if name in names:
                raise PlanError(
                    f"two bundles are named {name}: {names[name]} and {bundle.folder}; rename the folder of one"
                )
            names[name] = bundle.folder
            bundle.check_accepted()
            bundle.file(ONNX)
            if odd := [file for file in bundle.manifest.files if not file.isprintable()]:
                raise PlanError(f"expected printable names of files in {bundle.folder}, got {odd[0]!r}; rename it")
            _check_engines(bundle)
            if bundle.manifest.kernels is not None:
                raise PlanError(
                    f"{bundle.folder} is for {bundle.manifest.target}, and a board's TensorRT refuses its unsigned "
                    "numbers; export it again with --target tensorrt"
                )
        if self.jetpack is not None and self.jetpack not in {one.name for one in JETPACKS}:
            raise UnknownName(
                "JetPack",
                self.jetpack,
                [one.name for one in JETPACKS if one.takes_our_graphs],
                more=f"what is newer than {JETPACKS[-1].name} brings is not known; leave out --jetpack for it",
            )
        if self.jetpack is not None and self.wheels is not None and self.wheels.machine != "aarch64":
            raise PlanError(f"expected wheels for aarch64 with --jetpack, got {self.wheels}; leave one of them out")
        if self.is_for_a_jetson and not self.boards:
            raise PlanError(self._reason_for_none)

    @property
    def is_for_a_jetson(self) -> bool:
        """Or is it for another machine: the wheels are for no Jetson's architecture, or for no JetPack's Python?"""
        if self.jetpack is not None or self.wheels is None:
            return True
        return self.wheels.machine == "aarch64" and self.wheels.python in {one.python for one in JETPACKS}

    @property
    def boards(self) -> tuple[JetPack, ...]:
        """The releases that the kit is for: each can build every bundle, and has the Python of the wheels."""
        if not self.is_for_a_jetson:
            return ()
        return tuple(
            one
            for one in JETPACKS
            if one.takes_our_graphs
            and self.jetpack in (None, one.name)
            and (self.wheels is None or self.wheels.python == one.python)
            and all(_reads(one, bundle.manifest) for bundle in self.bundles)
        )

    @property
    def _reason_for_none(self) -> str:
        chosen = [one for one in JETPACKS if self.jetpack in (None, one.name) and one.takes_our_graphs]
        if not chosen:
            old = next(one for one in JETPACKS if one.name == self.jetpack)
            return (
                f"JetPack {old.name} brings TensorRT {old.tensorrt}, and bundles need 10.3 or newer; "
                "install JetPack 6.1 or newer"
            )
        if self.wheels is not None and not any(one.python == self.wheels.python for one in chosen):
            return (
                f"expected --wheels for Python {chosen[0].python} of JetPack {self.jetpack}, got {self.wheels}; its "
                "TensorRT is for that Python alone"
            )
        newer = next(bundle for bundle in self.bundles for one in chosen if not _reads(one, bundle.manifest))
        manifest = newer.manifest
        return (
            f"{newer.folder} needs opset {manifest.opset} ({manifest.precision}), which TensorRT 10.3 of JetPack 6 does"
            " not read; take JetPack 7, or export with --fp16 or --int8"
        )


@dataclass(frozen=True)
class Kit:
    """A kit that was written.

    Attributes:
        sha256, bytes: of the tar file.
        bundles: their names in it.
        wheels: the files in its `wheels/`; none where the board takes them from its network.
        jetpacks: the releases that it is for.
    """

    path: Path
    sha256: str
    bytes: int
    bundles: tuple[str, ...]
    engines: tuple[str, ...]
    wheels: tuple[str, ...]
    jetpacks: tuple[str, ...]


def name_of(bundle: Bundle) -> str:
    """The name of a bundle's folder, which is its name in a kit."""
    return bundle.folder.resolve().name


def write_kit(plan: KitPlan, on_step: Progress) -> Kit:
    """Write a kit, whole or not at all. The same bundles, package and wheels give the same bytes.

    Raises:
        BackendUnavailable: the package is not installed, or wheels cannot be had.
        BundleError: an engine or a bundle's file cannot be read, or the kit cannot be written.
        PlanError: engines were asked for, and there is none for a board.
    """
    on_step("wheel")
    own = own_wheel()
    files = {own.name: content_of(own.data), "install.sh": content_of(SCRIPT.read_bytes())}
    wheels: Mapping[str, bytes] = {}
    if plan.wheels is not None:
        on_step(f"wheels for {plan.wheels}")
        wheels = collect_wheels(plan.wheels, [*own.requires, CUDA_OF_PYTHON.get(plan.wheels.minor, CUDA_OF_PYTHON[12])])
        files["wheels/PLATFORM"] = content_of(f"{plan.wheels}\n".encode())
        files |= {f"wheels/{name}": content_of(data) for name, data in wheels.items()}
    manifests = {name_of(bundle): without_reference(bundle.manifest) for bundle in plan.bundles}
    engines: list[str] = []
    for bundle in plan.bundles:
        name, manifest = name_of(bundle), manifests[name_of(bundle)]
        files[f"bundles/{name}/{MANIFEST}"] = content_of(_manifest_bytes(bundle, manifest))
        for file, facts in manifest.files.items():
            files[f"bundles/{name}/{file}"] = Content(bundle.folder / file, facts)
        if plan.engines:
            built = _engines_for_boards(bundle)
            engines += [f"{name}/{file}" for file in built if not file.endswith(".json")]
            files |= {f"bundles/{name}/{file}": content for file, content in built.items()}
    files["README.md"] = content_of(readme(manifests, plan.boards, plan.wheels, own.name).encode())
    sums = "".join(f"{content.facts.sha256}  {name}\n" for name, content in sorted(files.items()))
    files["SHA256SUMS"] = content_of(sums.encode())
    on_step("pack")
    packed = write_archive(plan.output, ROOT, dict(sorted(files.items())))
    jetpacks = tuple(one.name for one in plan.boards)
    return Kit(plan.output, packed.sha256, packed.bytes, tuple(manifests), tuple(engines), tuple(wheels), jetpacks)


def _reads(jetpack: JetPack, manifest: Manifest) -> bool:
    """Does its TensorRT read the bundle's opset?"""
    newest = newest_opset("tensorrt", jetpack.tensorrt)
    return newest is None or manifest.opset <= newest


def _check_engines(bundle: Bundle) -> None:
    """Refuse engines of another bundle, packed or not: the folder is not what it seems.

    Raises:
        BundleError: names the engine.
    """
    for path in finished(bundle.folder, "*.json"):
        try:
            found = read_sidecar(path).onnx_sha256
        except BundleError:  # one of another version; it is not packed, or refused there
            continue
        if found != bundle.manifest.files[ONNX].sha256:
            raise BundleError(
                f"{path.with_suffix('.engine')} was built from another {ONNX} than the bundle's, so the folder is a "
                "mixture; remove it, or build it again with --force"
            )


def _engines_for_boards(bundle: Bundle) -> dict[str, Content]:
    """The engines that were built and proven on aarch64, and their sidecars.

    Raises:
        BundleError, BadInput: one is not what its sidecar says.
        PlanError: there is none.
    """
    found: dict[str, Content] = {}
    for path in finished(bundle.folder, "*.engine"):
        facts = facts_of(path)
        if facts.platform == BOARDS and facts.checked:
            found[f"{FOLDER}/{path.name}"] = Content(path, FileFacts(facts.engine_sha256, facts.engine_bytes))
            found[f"{FOLDER}/{sidecar_of(path).name}"] = content_of(sidecar_of(path).read_bytes())
    if not found:
        raise PlanError(
            f"expected an engine that was built on a board in {bundle.folder / FOLDER}, got none; build it there, or "
            "leave out --engines"
        )
    return found


def _manifest_bytes(bundle: Bundle, manifest: Manifest) -> bytes:
    """A bundle without a reference keeps its manifest as it is, byte for byte."""
    if manifest.files == bundle.manifest.files:
        return bundle.manifest_bytes()
    return json_from_manifest(manifest)
