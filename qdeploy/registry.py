"""Formats and backends by name: the built-in ones from a plain table, other people's from entry points.

Nothing is imported before it is needed, and entry points are only looked for when a path is to be read or the formats
are to be listed: `import qdeploy` and `--help` never scan the installed distributions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from qdeploy.errors import AmbiguousError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.store.folder import Folder


@dataclass(frozen=True)
class Registered:
    """A format or a backend that can be loaded.

    Attributes:
        name: As in `--format` or `--to`.
        origin: "built-in", or the distribution that brings it.
        target: Where its module is.
    """

    name: str
    origin: str
    target: str

    def load(self) -> Any:
        """Imports its module; UnsupportedError, with the missing package's name, where that fails."""
        module, _, attribute = self.target.partition(":")
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("qdeploy"):
                raise
            raise UnsupportedError(
                f"{self.name} needs a package that is not installed: {error.name}",
                where=module,
                todo="pip install 'qdeploy[onnx]'",
            ) from error
        return getattr(found, attribute) if attribute else found


def registered(group: str) -> dict[str, Registered]:
    """Everything of a group ("formats" or "backends") by name; a plug-in never shadows what is built in."""
    from importlib.metadata import entry_points

    package = import_module(f"qdeploy.{group}")
    found = {name: Registered(name, "built-in", target) for name, target in package.BUILT_IN.items()}
    for point in entry_points(group=f"qdeploy.{group}"):
        brought_by = point.dist.name if point.dist else "a plug-in"
        found.setdefault(point.name, Registered(point.name, brought_by, point.value))
    return found


def backend(name: str) -> Any:
    """The backend of a target name."""
    found = registered("backends")
    if name not in found:
        raise UnsupportedError("no such target", found=name, allowed=", ".join([*found, "ir", "source"]))
    return found[name].load()


def artifact_backend(path: str | os.PathLike[str]) -> Any:
    """The backend whose output this is, or None: a folder's report names it, a file begins with its `MAGIC`."""
    if os.path.isfile(path):
        return _by_magic(path)
    if not os.path.isfile(os.path.join(path, "report.json")):
        return None
    report = Folder(path).json("report.json")
    name = report.get("target", "") if isinstance(report, dict) else ""
    found = registered("backends")
    return found[name].load() if name in found else None


def _by_magic(path: str | os.PathLike[str]) -> Any:
    folder = Folder(path, trust_links=True)
    file = folder.open(folder.only)
    try:
        head = file.read(0, min(file.size, 64))
    finally:
        file.close()
    for entry in registered("backends").values():
        try:
            module = entry.load()
        except UnsupportedError:  # a plug-in that cannot be loaded has written nothing here
            continue
        magic = getattr(module, "MAGIC", b"")
        if magic and head.startswith(magic):
            return module
    return None


def format_module(name: str) -> Any:
    """The format of a name."""
    found = registered("formats")
    if name not in found:
        raise UnsupportedError("no such format", found=name, allowed=", ".join(found))
    return found[name].load()


def open_model(path: str | os.PathLike[str], format: str = "", trust_links: bool = False) -> Model:
    """Reads a checkpoint or package of any known format; nothing large is read yet.

    Raises:
        UnsupportedError: No format takes it.
        AmbiguousError: Two formats claim it equally; name one with `format`.
    """
    folder = Folder(path, trust_links)
    if format:
        model: Model = format_module(format).read(folder)
        return model
    loaded = {name: entry.load() for name, entry in registered("formats").items()}
    scores = {name: module.sniff(folder) for name, module in loaded.items()}
    ranked = sorted((s.score, name) for name, s in scores.items() if s.score > 0)
    if not ranked:
        _refuse_output(path)
        raise UnsupportedError(
            "no reader knows this checkpoint",
            where=str(path),
            found=_describe(folder),
            allowed=", ".join(loaded),
            todo="qdeploy formats lists what can be read.",
        )
    best = [name for score, name in ranked if score == ranked[-1][0]]
    if len(best) > 1:
        raise AmbiguousError(
            "several formats claim this checkpoint",
            where=str(path),
            found="; ".join(f"{n}: {scores[n].reason}" for n in best),
            todo="Name one with --format.",
        )
    model = loaded[best[0]].read(folder)
    return model


def _refuse_output(path: str | os.PathLike[str]) -> None:
    made = artifact_backend(path)
    if made is not None:
        raise UnsupportedError(
            "this is an output, not a source",
            where=str(path),
            found=made.TITLE,
            todo="Give the checkpoint or package that it was made from.",
        )


def _describe(folder: Folder) -> str:
    from itertools import islice

    names = list(islice(folder.names(), 6))
    method = ""
    if not folder.only and folder.has("config.json"):
        config = folder.json("config.json")
        section = config.get("quantization_config") if isinstance(config, dict) else None
        method = f"quant_method {section.get('quant_method')!r}, " if isinstance(section, dict) else ""
    return method + (", ".join(names) or "an empty folder")
