"""The address of a model on a Triton server, written as a URL, and which options it goes with."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from runtimes.errors import BadInput, PlanError
from runtimes.printable import printable

BACKEND = "triton"
"""The backend whose provider is such a URL. It is never chosen on its own: its server has to be named."""
PORT = 8001
"""Triton's own for gRPC; 8000 is HTTP's, and 8002 that of its metrics."""
SCHEMES = {"grpc": False, "grpcs": True}
VERSION = re.compile("([1-9][0-9]{0,17})?")
FORM = "grpc://HOST:8001/MODEL[/VERSION], or grpcs:// for TLS"


def is_url(given: object) -> bool:
    """Is it a URL, and no path?"""
    return isinstance(given, str) and "://" in given


@dataclass(frozen=True)
class ModelAddress:
    """A model on a server.

    Attributes:
        host: a name or an address; IPv6 without brackets.
        version: None leaves the choice to the server.
    """

    host: str
    port: int
    model: str
    version: int | None = None
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> ModelAddress:
        """Parse `grpc://HOST:8001/MODEL[/VERSION]`; without a port it is 8001.

        Raises:
            BadInput: it is something else, or has a password in it, which the message does not repeat.
        """
        if "@" in url:
            raise BadInput(
                "expected a URL without a user or password, got one with '@'; leave that out: Triton asks for none"
            )
        shown = printable(url.split("?")[0].split("#")[0])
        try:
            parts = urlsplit(url)
            port = PORT if parts.port is None else parts.port
        except ValueError as error:  # a port that is none, or half an IPv6 address
            raise BadInput(f"expected {FORM}, got '{shown}': {error}") from error
        if parts.scheme not in SCHEMES:
            hint = ": Triton's port for gRPC is not that for HTTP" if parts.scheme in ("http", "https") else ""
            raise BadInput(f"expected {FORM}, got '{shown}'{hint}")
        model, _, version = parts.path.removeprefix("/").partition("/")
        model = unquote(model)
        names = parts.hostname and model and f"{url}{model}".isprintable()
        if not names or not port or parts.query or parts.fragment or not VERSION.fullmatch(version):
            raise BadInput(f"expected {FORM}, got '{shown}'{' and more' if shown != printable(url) else ''}")
        return cls(str(parts.hostname), port, model, int(version) if version else None, SCHEMES[parts.scheme])

    @property
    def target(self) -> str:
        """Host and port, as gRPC takes them."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __str__(self) -> str:
        version = "" if self.version is None else f"/{self.version}"
        return f"{'grpcs' if self.tls else 'grpc'}://{self.target}/{quote(self.model, safe='')}{version}"


def check_url(backends: Collection[str], url: str | None) -> None:
    """Check that a URL and the backend `triton` come together, before anything is opened.

    Raises:
        PlanError: one comes without the other.
        BadInput: it is no address of a model.
    """
    if url is None:
        if BACKEND in backends:
            raise PlanError(f"expected --url with --backend {BACKEND}, got none; give {FORM}")
        return
    ModelAddress.parse(url)
    if BACKEND not in backends:
        raise PlanError(f"expected --backend {BACKEND} with --url, got {_named(backends)}; name it, or leave --url out")


def place_of(backend: str, provider: str | None, url: str | None) -> str | None:
    """Where a backend runs, as `open_runtime` takes it: the server's URL for `triton`, the provider for any other.

    Raises:
        PlanError, BadInput: as `check_url`; or a provider is named beside a URL.
    """
    check_url((backend,), url)
    if url is not None and provider is not None:
        raise PlanError("expected --url or --provider, got both; the server says itself where it runs a model")
    return provider if url is None else url


def _named(backends: Collection[str]) -> str:
    return ", ".join(backends) or "none"
