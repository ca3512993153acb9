"""What a server needs for a whole repository: for the models that are written now, and for those that it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.deployment.triton.models import CONFIG, TritonModel
from runtimes.errors import BundleError

DECODER = re.compile(r'name: "[^"\n]+-decoder"\nbackend: "python"\n')
OURS = re.compile(
    r'name: "[^"\n]+"\nbackend: "(tensorrt|onnxruntime|openvino)"\ndefault_model_filename: '
    r'|name: "[^"\n]+-ensemble"\nplatform: "ensemble"\n|' + DECODER.pattern
)
"""How a configuration begins that this package wrote."""
ON_GPU = re.compile(r"""\bkind\s*:\s*KIND_GPU\b|\b(backend|platform)\s*:\s*["']tensorrt""")
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


@dataclass(frozen=True)
class ServerNeeds:
    """What the server of a repository needs.

    Attributes:
        gpu: a model says that it runs on one.
        pillow: a decoder of pictures is among the models.
        shared_memory: a model passes tensors through /dev/shm, as the Python backend does, or may.
        others: the models that this package did not write, of which more than that is not known.
    """

    gpu: bool = False
    pillow: bool = False
    shared_memory: bool = False
    others: tuple[str, ...] = ()


def server_needs(repository: Path, models: Iterable[TritonModel]) -> ServerNeeds:
    """What the server needs once the models are in the repository, which may not be there yet.

    Raises:
        BundleError: a configuration in it cannot be read.
    """
    written = {model.name: model.beside[CONFIG].decode() for model in models}
    return _needs({**_configs_there(repository), **written})


def _configs_there(repository: Path) -> dict[str, str]:
    try:
        return {
            path.parent.name: path.read_text("utf-8", errors="replace")
            for path in sorted(repository.glob(f"*/{CONFIG}"))
            if not path.parent.name.startswith(".")
        }
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}; choose another --output") from error


def _needs(configs: Mapping[str, str]) -> ServerNeeds:
    others = tuple(sorted(name for name, text in configs.items() if not OURS.match(text)))
    pillow = any(DECODER.match(text) for text in configs.values())
    return ServerNeeds(
        gpu=any(ON_GPU.search(COMMENT.sub("", text)) for text in configs.values()),
        pillow=pillow,
        shared_memory=pillow or bool(others),
        others=others,
    )
