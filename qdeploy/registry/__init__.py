"""Formats, backends and quantizers by name: those of this project, those of other distributions, and those added.

Nothing is imported before it is needed: rows say what a checkpoint must look like, so that opening one imports no
reader that cannot be meant. What a row of another distribution does wrong costs a note, never the checkpoint.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qdeploy.catalog.table import Table
from qdeploy.contracts.clues import Clues
from qdeploy.contracts.formats import Format, FormatRow
from qdeploy.errors import AmbiguousError, BadArgumentError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.options import SourceOptions
from qdeploy.registry.sniffing import Candidates, below, describe
from qdeploy.store.folder import Folder
from qdeploy.store.report_form import REPORT, is_report, read_report

if TYPE_CHECKING:
    from qdeploy.contracts.backends import Backend, BackendRow


def _backend_row(name: str, target: object, origin: str) -> BackendRow:
    from qdeploy.contracts.backends import BackendRow  # only where a target is meant

    return BackendRow(name, target, origin)


FORMATS: Table[FormatRow] = Table("format", "qdeploy.formats", FormatRow)
_WITHOUT_BACKEND = ("ir", "source")
"""Targets that are no backend's: packages, and the source's own files."""
BACKENDS: Table[BackendRow] = Table("target", "qdeploy.backends", _backend_row, reserved=_WITHOUT_BACKEND)

add_format = FORMATS.add
add_backend = BACKENDS.add


def backend(name: str) -> Backend:
    """The backend of a target name."""
    return BACKENDS.get(name).load()


def format_module(name: str) -> Format:
    """The format of a name."""
    return FORMATS.get(name).load()


def artifact_backend(path: str | os.PathLike[str]) -> Backend | None:
    """The backend whose output this is, or None: a folder's report names it, a file begins with its row's magic.

    Raises:
        UnsupportedError: The report names a target that is not installed.
        BadFileError: The report is damaged.
    """
    if os.path.isfile(path):
        return _by_magic(path)
    if not os.path.isfile(os.path.join(path, "report.json")):
        return None
    report = Folder(path).json(REPORT)
    name = report.get("target") if isinstance(report, dict) else None
    if not isinstance(name, str) or name in _WITHOUT_BACKEND:
        return None
    rows = BACKENDS.rows()
    if name not in rows and not is_report(report):
        return None
    if name not in rows:
        raise UnsupportedError(
            "this is an output of a target that is not installed",
            where=str(path),
            found=name,
            allowed=", ".join(rows),
            todo="Install the plug-in that wrote it, or a newer version of this program.",
        )
    read_report(path)
    return rows[name].load()


def _by_magic(path: str | os.PathLike[str]) -> Backend | None:
    folder = Folder(path, trust_links=True)
    file = folder.open(folder.only)
    try:
        head = file.read(0, min(file.size, 64))
    finally:
        file.close()
    rows = (row if row.magic else row.resolved() for row in BACKENDS.rows().values())
    row = next((row for row in rows if row.magic and head.startswith(row.magic)), None)
    return row.load() if row else None


def open_model(path: str | os.PathLike[str], format: str = "", trust_links: bool = False, **more: Any) -> Model:
    """Reads a checkpoint or package of any known format; nothing large is read yet.

    Args:
        path: The checkpoint.
        format: The reader's name; empty: it is recognised.
        trust_links: Follow links that lead outside.
        more: The other fields of `SourceOptions`.

    Raises:
        UnsupportedError: No format takes it.
        AmbiguousError: Two formats claim it equally; name one with `format`.
    """
    folder = Folder(path, options=SourceOptions(format, trust_links, **more))
    if format:
        return read(FORMATS.get(format), folder)
    candidates = Candidates(FORMATS.rows(), folder)
    best = candidates.best()
    if not best:
        _refuse_output(path)
        _refuse_outer(path, folder)
        raise UnsupportedError(
            "no reader knows this checkpoint",
            where=str(path),
            found="; ".join([describe(folder), *candidates.notes]),
            allowed=", ".join(FORMATS.rows()),
            todo=_nearest(Clues(folder).method),
        )
    if len(best) > 1:
        raise AmbiguousError(
            "several formats claim this checkpoint",
            where=str(path),
            found="; ".join(f"{row.name}: {candidates.reasons[row.name]}" for row in best),
            todo="Name one with --format.",
        )
    model = read(best[0], folder)
    model.notes.extend([*candidates.notes, *_shadowed()])
    return model


def _shadowed() -> list[str]:
    """Notes on formats of distributions that nobody is asked about, because their names are taken."""
    return [f"the format {row.name} of {row.origin} was left out: its name is taken" for row in FORMATS.shadowed()]


def _nearest(method: str) -> str:
    """What to do with a checkpoint of a quantization method that no reader knows."""
    if not method:
        return "qdeploy formats lists what can be read."
    from difflib import get_close_matches

    similar = get_close_matches(method, FORMATS.rows(), 1)
    meant = f" {method!r} resembles {similar[0]}: if it is that, name it with --format." if similar else ""
    return f"Save the model with a method that qdeploy formats lists, or convert its float original.{meant}"


def read(row: FormatRow, folder: Folder) -> Model:
    """Reads a checkpoint by a format's reader; UnsupportedError where the reader gives something else."""
    reader = row.load()
    if folder.options.signature and not getattr(reader, "SIGNATURES", False):
        raise BadArgumentError(
            "files of this format hold one network",
            where=str(folder.path / folder.only),
            found=f"--signature {folder.options.signature}",
            todo="Leave --signature out.",
        )
    with row.blamed(f"while it read {folder.path / folder.only}"):
        model: object = reader.read(folder)
    if not isinstance(model, Model):
        raise UnsupportedError(
            f"the reader {row.name} gave no model",
            where=row.place,
            found=type(model).__name__,
            allowed="qdeploy.ir.model.Model",
        )
    if model.format != row.name:
        raise UnsupportedError(
            f"the reader {row.name} gave a model of another format",
            where=row.place,
            found=model.format,
            allowed=row.name,
        )
    return model


def _refuse_outer(path: str | os.PathLike[str], folder: Folder) -> None:
    """UnsupportedError for a folder whose models lie in folders of its own, as those of exported models often do."""
    models = below(FORMATS.rows(), folder) if not folder.only else []
    if models:
        first = os.path.join(str(path), models[0].partition(" (")[0])
        raise UnsupportedError(
            "no model in the folder itself, but in folders inside of it",
            where=str(path),
            found=", ".join(models),
            todo=f"Name the one that is meant: {first}",
        )


def _refuse_output(path: str | os.PathLike[str]) -> None:
    artifact = artifact_backend(path)
    if artifact is not None:
        raise UnsupportedError(
            "this is an output, not a source",
            where=str(path),
            found=artifact.title,
            todo="Give the checkpoint or package that it was made from.",
        )
