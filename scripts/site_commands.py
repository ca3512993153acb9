"""A hook of MkDocs: puts the `--help` of every command into docs/commands.md, in place of `<!-- commands -->`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from exporter.cli import deploy, export

MARK = "<!-- commands -->"
COLUMNS = 92


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return markdown.replace(MARK, "\n".join(sections()))


def sections() -> Iterator[str]:
    """A heading and the help of each command, in Markdown."""
    for name, command in (("resnet-export", export.command), ("resnet-deploy", deploy.command)):
        yield from _section(
            click.Context(command, info_name=name, max_content_width=COLUMNS, terminal_width=COLUMNS), 2
        )


def _section(context: click.Context, level: int) -> Iterator[str]:
    command = context.command
    yield f"\n{'#' * level} {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            yield from _section(click.Context(inner, info_name=name, parent=context), level + 1)
