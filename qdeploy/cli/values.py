"""Values of options that more than one verb takes."""

from __future__ import annotations

import click


def axis_sizes(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> dict[str, int] | None:
    """`NAME=EXTENT`, repeated, as a mapping; None where there is none."""
    axes: dict[str, int] = {}
    for text in value:
        name, _, extent = text.partition("=")
        if not name or not extent.isdecimal() or int(extent) < 1:
            raise click.BadParameter(f"{text!r} is not a name and a positive integer, as in batch=1.", context, option)
        if axes.setdefault(name, int(extent)) != int(extent):
            raise click.BadParameter(f"{name} has two extents, {axes[name]} and {extent}.", context, option)
    return axes or None
