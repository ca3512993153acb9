"""A machine as the user names it: `user@board:22`. No part of it can be an option of ssh, or a command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtimes.errors import BadInput

ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])"
    r"(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)
"""No part begins with a hyphen. A host may be an alias of ssh's configuration, or an IPv6 address in brackets."""
HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """Where ssh is to connect to; what is None is ssh's own choice.

    Attributes:
        text: as the user wrote it, for messages.
        host: a name or an address; IPv6 without its brackets.
    """

    text: str
    host: str
    user: str | None = None
    port: int | None = None


def address_from_text(text: str) -> Address:
    """Read `[user@]board[:port]`.

    Raises:
        BadInput: it is something else.
    """
    found = ADDRESS.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port <= HIGHEST_PORT):
        raise BadInput(
            f"expected --on as user@board or user@board:port, got {text!r}; give a host's name, its address (IPv6 in "
            "brackets), or a Host of ssh's configuration"
        )
    return Address(text, found["host"].strip("[]"), found["user"], port)
