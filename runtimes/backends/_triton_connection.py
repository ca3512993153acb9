"""How a Triton server is reached: how long to wait for an answer, and the files of a connection with TLS.

They are read from the environment, so that no key is on a command line, and processes that a command starts have them,
too:

    RESNET_EXPORT_TRITON_TIMEOUT    seconds that each request may take; 60 without it
    RESNET_EXPORT_TRITON_CA         PEM file of the certificates to trust; gRPC's own without it
    RESNET_EXPORT_TRITON_CERT       PEM file of this client's certificate, where the server asks for one
    RESNET_EXPORT_TRITON_KEY        PEM file of the key to it
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import BadInput, PlanError

PREFIX = "RESNET_EXPORT_TRITON_"
TIMEOUT, CA, CERTIFICATE, KEY = (PREFIX + name for name in ("TIMEOUT", "CA", "CERT", "KEY"))
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Connection:
    """How a server is reached.

    Attributes:
        timeout_s: seconds that each request may take.
        roots, certificate, key: PEM files; None where there is none.
    """

    timeout_s: float = TIMEOUT_S
    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def connection_from_environment(variables: Mapping[str, str] = os.environ) -> Connection:
    """The connection that the variables describe.

    Raises:
        BadInput: the timeout is no number above 0, or a file cannot be read (names the variable).
        PlanError: a certificate comes without its key, or a key without its certificate.
    """
    roots, certificate, key = (_file(variables, name) for name in (CA, CERTIFICATE, KEY))
    if (certificate is None) != (key is None):
        raise PlanError(f"expected {CERTIFICATE} and {KEY}, got one of them; set both, or neither")
    return Connection(_seconds(variables.get(TIMEOUT, "")), roots, certificate, key)


def _seconds(text: str) -> float:
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:  # nan neither
        raise BadInput(f"expected {TIMEOUT} as seconds above 0, got '{text}'; {TIMEOUT_S:g} hold without it")
    return seconds


def _file(variables: Mapping[str, str], name: str) -> Path | None:
    if not variables.get(name):
        return None
    path = Path(variables[name])
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadInput(f"{name}: cannot read {path}: {error.strerror}; name a PEM file") from error
    return path
