"""`--help` with the options in groups, written by click's own formatter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
OTHER = "Other"
GLUE = "\N{NO-BREAK SPACE}"
"""Keeps a default on the line of its bracket; a plain space again once lines are broken."""
WIDEST_TERM = 30
"""As in click: the help of a longer option begins on the line below it."""


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose `--help` lists its options group by group, in the order in which they are declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its heading, all with their help texts in one column."""
        groups: dict[str, list[tuple[str, str]]] = {}
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        for option in sorted(options, key=lambda one: not isinstance(one, GroupedOption)):  # --version and --help last
            row = option.get_help_record(ctx)
            if row is not None:
                title = option.group if isinstance(option, GroupedOption) else OTHER
                groups.setdefault(title, []).append((row[0], row[1].replace("[default: ", f"[default:{GLUE}")))
        terms = [term for rows in groups.values() for term, _ in rows]
        width = max((len(term) for term in terms if len(term) <= WIDEST_TERM), default=0)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl([(f"{term:<{width}}", text) for term, text in rows], col_max=width)
        formatter.buffer[:] = [text.replace(GLUE, " ") for text in formatter.buffer]


def option_group(title: str) -> Callable[..., Callable[[Command], Command]]:
    """`click.option` for the options of one group of a `GroupedCommand`."""
    return partial(click.option, cls=GroupedOption, group=title)
