"""The plot of `qdeploy plan --plot`: predicted loss against megabytes, with floor, ceiling and budget."""

from __future__ import annotations

import os
from typing import Any

from qdeploy.errors import BadArgumentError, OutputError
from qdeploy.extras import require
from qdeploy.sizes import human

_FORMATS = (".png", ".svg")


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
    axes.set_title(os.path.basename(report["path"].rstrip("/")))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"cannot write the plot: {error.strerror}", where=path) from error
