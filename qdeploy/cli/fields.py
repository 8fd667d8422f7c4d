"""Options of the command line from dataclass fields (`qdeploy.options`), shown in `--help` by who takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from qdeploy.cli.values import axis_sizes
from qdeploy.options import Option, options_of

Command = TypeVar("Command", bound=click.Command)
Taken = Sequence[tuple[str, type[Any]]]
"""Titles of groups in `--help`, and the dataclasses whose options they list."""


class FieldOption(click.Option):
    """An option that a field declares; None where the user does not pass it.

    Attributes:
        group: Under which title it stands in `--help`.
        declared: The field.
    """

    def __init__(self, declared: Option, group: str) -> None:
        self.declared, self.group = declared, group
        super().__init__(_names(declared), help=_help(declared), default=None, **_kind(declared))


class GroupedCommand(click.Command):
    """A command whose `--help` lists the options by groups."""

    notes: Mapping[str, Callable[[], Sequence[tuple[str, str]]]] = {}
    """By the title of a group, rows that stand below its options; made when they are shown."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section per group, those of no group first."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                title = parameter.group if isinstance(parameter, FieldOption) else "Options"
                groups.setdefault(title, []).append(row)
        for title, rows in groups.items():
            notes = self.notes[title]() if title in self.notes else ()
            with formatter.section(title):
                formatter.write_dl([*rows, *notes])


def fields(groups: Taken, only: Sequence[str] = ()) -> Callable[[Command], Command]:
    """A decorator that gives a command the options of dataclasses.

    Args:
        groups: Titles and dataclasses. An option that several of them have is one option, under all of their titles.
        only: The names that are taken; empty: all.
    """

    def add(command: Command) -> Command:
        command.params.extend(merged(groups, only))
        return command

    return add


def merged(groups: Taken, only: Sequence[str] = ()) -> list[FieldOption]:
    """One command-line option for each name among dataclasses."""
    titles: dict[str, list[str]] = {}
    declared: dict[str, Option] = {}
    for title, settings in groups:
        for known in options_of(settings):
            if not only or known.name in only:
                titles.setdefault(known.name, []).append(title)
                declared.setdefault(known.name, known)
    return [FieldOption(declared[name], ", ".join(dict.fromkeys(titles[name]))) for name in declared]


def passed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user passed."""
    return {name: value for name, value in values.items() if value is not None}


def _names(declared: Option) -> list[str]:
    flag = (declared.flag or declared.name).replace("_", "-")
    return [f"--{flag}/--no-{flag}" if declared.default is True else f"--{flag}", declared.name]


def _help(declared: Option) -> str:
    shown = "" if isinstance(declared.default, bool | tuple | dict) else str(declared.default)
    return f"{declared.help}  [default: {shown}]" if shown else declared.help


def _kind(declared: Option) -> dict[str, Any]:
    """What click is told of an option by the type of its default."""
    choices = "|".join(str(choice) for choice in declared.choices if choice != "")
    metavar = declared.metavar or (f"[{choices}]" if choices else "TEXT")
    default = declared.default
    if isinstance(default, bool):
        return {"is_flag": True}
    if isinstance(default, tuple):
        return {"multiple": True, "metavar": metavar, "callback": _none_if_empty}
    if isinstance(default, dict):
        return {"multiple": True, "metavar": metavar, "callback": axis_sizes}
    if isinstance(default, int):
        return {"type": click.INT, "metavar": f"[{choices}]" if choices else "N"}
    return {"metavar": metavar}


def _none_if_empty(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...] | None:
    return value or None
