"""Plots of budgets: `qdeploy plan --plot`, predicted loss over megabytes; `qdeploy eval --plot`, what was measured."""

from __future__ import annotations

import os
from typing import Any

from qdeploy.errors import BadArgumentError, OutputError
from qdeploy.extras import require
from qdeploy.sizes import human

_FORMATS = (".png", ".svg")
_MEASURED = ("perplexity", "divergence", "cosine")
"""What is drawn of an evaluation: the first of these that it has."""


def check(path: str) -> None:
    """Whether the plot can be drawn at all, before anything is measured.

    Raises:
        BadArgumentError: The file's name is of no known format.
        UnsupportedError: matplotlib is not installed.
    """
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise BadArgumentError("a plot is a .png or an .svg", found=path, allowed=", ".join(_FORMATS))
    require("matplotlib", purpose="plotting")


def draw(report: dict[str, Any], path: str) -> None:
    """Draws what `qdeploy.planning.plan` found.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = [rung["total"] / 1e6 for rung in report["rungs"]]
    losses = [rung["error"] for rung in report["rungs"]]
    axes.step(sizes, losses, where="post", color="#1f5fa8", linewidth=1.8)
    axes.fill_between(sizes, losses, step="post", color="#1f5fa8", alpha=0.12)
    marks = [("floor", report["floor"], "#a8321f"), ("ceiling", report["ceiling"], "#2f7d32")]
    marks += [("budget", report["budget"], "#8a5a00")] if report["budget"] else []
    for name, size, colour in marks:
        axes.axvline(size / 1e6, color=colour, linewidth=1.2, linestyle="--", label=f"{name} {human(size)}")
    if report["budget"]:
        chosen = next(rung for rung in report["rungs"] if rung["rung"] == report["rung"])
        at = chosen["total"] / 1e6, chosen["error"]
        axes.plot(*at, "o", color="#8a5a00", label=f"rung {chosen['rung']}, {chosen['bits']:.2f} bits per weight")
    axes.set_xlabel("memory, everything counted (MB)")
    axes.set_ylabel("predicted loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _save(figure, axes, report, path)


def draw_measured(report: dict[str, Any], path: str) -> None:
    """Draws what `qdeploy.evaluation.evaluate` measured of a native file, over the bytes of its weights.

    Raises:
        BadArgumentError: The model has no budgets.
        OutputError: The file cannot be written.
    """
    points = report["points"]
    name = next((name for name in _MEASURED if name in points[0]), "")
    if len(points) < 2 or "bytes" not in points[0] or not name:
        raise BadArgumentError(
            "one point is no curve", found=report["path"], allowed="a native file", todo="Pass --budgets 8."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = [point["bytes"] / 1e6 for point in points]
    axes.plot(sizes, [point[name] for point in points], "o-", color="#1f5fa8", linewidth=1.8)
    if name == "perplexity":
        axes.set_yscale("log")
    axes.set_xlabel("weights (MB)")
    axes.set_ylabel(name)
    _save(figure, axes, report, path)


def _save(figure: Any, axes: Any, report: dict[str, Any], path: str) -> None:
    axes.set_title(os.path.basename(report["path"].rstrip("/")))
    axes.grid(alpha=0.25)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"cannot write the plot: {error.strerror}", where=path) from error
