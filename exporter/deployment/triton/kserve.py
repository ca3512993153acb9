"""KServe: an image of a Triton server with the repository in it, and the InferenceService that runs it
(serving.kserve.io/v1beta1, a predictor with a container of its own)."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.deployment.triton.needs import ServerNeeds
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BundleError, PlanError
from runtimes.printable import printable

DOCKERFILE, MANIFEST = "Dockerfile", "inference_service.yaml"
IMAGE = re.compile(r"[a-z0-9]+([._:-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")
"""A registry with its port, folders, and a tag (distribution.github.io, "reference")."""
HTTP, GRPC, METRICS = 8080, 9000, 8002
"""Ports that KServe's own Triton runtime has."""
STARTUP = {"periodSeconds": 10, "failureThreshold": 60}
"""The server listens once it has loaded its models: it has ten minutes for that before it is started again."""
SHARED, SHARED_MEMORY = "shm", "1Gi"
"""The volume over /dev/shm: the Python backend passes tensors through it, and a container's own has 64 MiB."""


@dataclass(frozen=True)
class KServe:
    """What to write for KServe.

    Attributes:
        folder: where the files go.
        image: the name under which the image is pushed, and pulled by the cluster.
        needs: what the server needs for the repository.
        replaces: files that are there already are replaced.

    Raises:
        PlanError: `image` is no image's name.
    """

    folder: Path
    image: str
    needs: ServerNeeds
    replaces: bool = False

    def __post_init__(self) -> None:
        if not IMAGE.fullmatch(self.image):
            raise PlanError(
                f"expected the name of an image, such as registry.example.com/team/resnet50:1, got '{self.image}'; "
                "give another --image"
            )


def kserve_files(kserve: KServe, repository: Path) -> dict[str, str]:
    """The files' texts by their names."""
    return {DOCKERFILE: _dockerfile(kserve, repository), MANIFEST: _inference_service(kserve)}


def check_kserve(kserve: KServe, repository: Path, bundles: Iterable[Path]) -> None:
    """Refuse, before anything is written, a folder for the files that lies in the repository or a bundle, has other
    ones, or cannot be written.

    Raises:
        PlanError: it is.
        BundleError: it cannot be read or written.
    """
    folder = kserve.folder.resolve()
    for other in (repository, *bundles):
        if folder.is_relative_to(other.resolve()):
            raise PlanError(f"{kserve.folder} lies in {other}, which holds nothing else; give another --kserve")
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir():
        raise PlanError(f"{nearest} is not a folder; give another --kserve")
    if not os.access(nearest, os.W_OK):
        raise BundleError(f"cannot write {kserve.folder}: {os.strerror(errno.EACCES)}; give another --kserve")
    for name, text in kserve_files(kserve, repository).items():
        path = folder / name
        if path.exists() and not path.is_file():
            raise PlanError(f"{path} is not a file; move it away, or give another --kserve")
        if path.exists() and not kserve.replaces and path.read_bytes() != text.encode():
            raise PlanError(f"{path} exists, and is another; give --force to replace it, or another --kserve")


def write_kserve(kserve: KServe, repository: Path) -> list[Path]:
    """Write both files; returns their paths.

    Raises:
        BundleError: they cannot be written.
    """
    try:
        kserve.folder.mkdir(parents=True, exist_ok=True)
        for name, text in kserve_files(kserve, repository).items():
            write_in_one_step(kserve.folder / name, text.encode())
    except OSError as error:
        raise BundleError(f"cannot write {kserve.folder}: {error.strerror}; give another --kserve") from error
    return [kserve.folder / DOCKERFILE, kserve.folder / MANIFEST]


def _dockerfile(kserve: KServe, repository: Path) -> str:
    pillow = ["RUN python3 -m pip install --no-cache-dir pillow"] if kserve.needs.pillow else []
    file, context = (shlex.quote(printable(str(path))) for path in (kserve.folder / DOCKERFILE, repository))
    ports = [f"--http-port={HTTP}", f"--grpc-port={GRPC}", f"--metrics-port={METRICS}"]
    lines = [
        "# Triton with the models in it. SERVER_IMAGE is Triton's; plans need one with the TensorRT that built them:",
        "#   docker build --build-arg SERVER_IMAGE=nvcr.io/nvidia/tritonserver:YY.MM-py3 \\",
        f"#     --tag {kserve.image} --file {file} {context}",
        *_about_others(kserve.needs.others),
        "ARG SERVER_IMAGE",
        "FROM ${SERVER_IMAGE}",
        *pillow,
        "COPY . /models/",
        f"EXPOSE {HTTP} {GRPC} {METRICS}",
        f"CMD {json.dumps(['tritonserver', '--model-repository=/models', *ports])}",
    ]
    return "\n".join(lines) + "\n"


def _about_others(names: Sequence[str]) -> list[str]:
    """A comment that says for which models the image may lack something."""
    if not names:
        return []
    return [
        "# resnet-deploy did not write these models; put in what else they need, such as Python packages:",
        *(f"#   {shlex.quote(printable(name))}" for name in names),
    ]


def _inference_service(kserve: KServe) -> str:
    live = {"path": "/v2/health/live", "port": HTTP}
    container: dict[str, object] = {
        "name": "kserve-container",
        "image": kserve.image,
        "ports": [{"containerPort": HTTP, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": HTTP}},
        "livenessProbe": {"httpGet": live},
        "startupProbe": {"httpGet": live, **STARTUP},
        **({"resources": {"limits": {"nvidia.com/gpu": 1}}} if kserve.needs.gpu else {}),
        **({"volumeMounts": [{"name": SHARED, "mountPath": "/dev/shm"}]} if kserve.needs.shared_memory else {}),
    }
    memory = {"medium": "Memory", "sizeLimit": SHARED_MEMORY}
    volumes = {"volumes": [{"name": SHARED, "emptyDir": memory}]} if kserve.needs.shared_memory else {}
    manifest: dict[str, object] = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _service_name(kserve.image)},
        "spec": {"predictor": {"containers": [container], **volumes}},
    }
    return "\n".join(_yaml_lines(manifest)) + "\n"


def _service_name(image: str) -> str:
    """A DNS label out of the image's name: letters, digits and hyphens, a letter first, at most 63."""
    name = re.sub(r"[^a-z0-9]+", "-", image.split("/")[-1].split(":")[0])
    return (name if name[0].isalpha() else f"model-{name}")[:63].rstrip("-")


def _yaml_lines(value: Mapping[str, object], indent: str = "") -> list[str]:
    """A mapping of texts, numbers, mappings and lists of mappings as block YAML; texts are quoted as in JSON."""
    lines: list[str] = []
    for key, one in value.items():
        name = key if re.fullmatch(r"[A-Za-z]+", key) else json.dumps(key)
        if isinstance(one, Mapping):
            lines += [f"{indent}{name}:", *_yaml_lines(one, indent + "  ")]
        elif isinstance(one, list):
            lines.append(f"{indent}{name}:")
            for entry in one:
                first, *rest = _yaml_lines(entry, indent + "    ")
                lines += [f"{indent}  - {first.strip()}", *rest]
        else:
            lines.append(f"{indent}{name}: {json.dumps(one)}")
    return lines
