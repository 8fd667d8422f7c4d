"""What backends answer, judged before anything is done with it: a target of a plug-in may give anything back.

An exception and an answer of a wrong type become one error that names the plug-in; backends of this project pass their
own errors on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qdeploy.contracts.results import CheckResult, Choice, Lowered
from qdeploy.errors import UnsupportedError

if TYPE_CHECKING:
    from qdeploy.contracts.backends import BackendRow, Level
    from qdeploy.contracts.results import Row
    from qdeploy.ir.model import Model
    from qdeploy.options import TargetOptions
    from qdeploy.progress import Progress


def lower(row: BackendRow, model: Model, folder: Path, options: TargetOptions, progress: Progress) -> Lowered:
    """`Backend.lower`; UnsupportedError where it fails, answers nonsense, or did not write the files that it names."""
    with row.blamed("while it wrote the output"):
        answer: object = row.load().lower(model, folder, options, progress)
    if not isinstance(answer, Lowered):
        raise _refused(row, "lower", answer, "qdeploy.contracts.results.Lowered")
    if wrong := [choice for choice in answer.choices if not isinstance(choice, Choice)]:
        raise _refused(row, "lower", wrong[0], "choices of qdeploy.contracts.results.Choice")
    if wrong_notes := [note for note in answer.notes if not isinstance(note, str)]:
        raise _refused(row, "lower", wrong_notes[0], "notes that are texts")
    absent = [str(name) for name in answer.files if not _is_written(folder, str(name))]
    if absent:
        raise UnsupportedError(
            f"the target {row.name} names files that it did not write into the folder of its output",
            where=row.place,
            found=", ".join(absent),
        )
    return answer


def check(row: BackendRow, model: Model, folder: Path, lowered: Lowered, level: Level) -> list[CheckResult]:
    """`Backend.check`; UnsupportedError where it fails or answers nonsense."""
    with row.blamed("while it checked its output"):
        answer: object = row.load().check(model, folder, lowered, level)
    if not isinstance(answer, list) or not all(isinstance(result, CheckResult) for result in answer):
        raise _refused(row, "check", answer, "a list of qdeploy.contracts.results.CheckResult")
    return answer


def compare(row: BackendRow, model: Model, path: str, options: TargetOptions, progress: Progress) -> list[Row]:
    """All rows of `Backend.compare`; UnsupportedError where it fails or answers nonsense, or compares nothing."""
    with row.blamed("while it compared its output with the source"):
        answer: object = row.load().compare(model, path, options, progress)
        rows = list(answer) if isinstance(answer, Iterable) else None
    if rows is None or not all(_is_row(entry) for entry in rows):
        wrong = answer if rows is None else next(entry for entry in rows if not _is_row(entry))
        raise _refused(row, "compare", wrong, "name, equal, greatest error, signal-to-noise ratio or None, a note")
    if not rows and len(model.tensors):
        raise _refused(row, "compare", rows, "a row for every tensor of the output: nothing was compared")
    return rows


def refuse_file_name(row: BackendRow, name: object) -> None:
    """Raises UnsupportedError for a file of an output that would lie outside of the folder where it is made."""
    if not isinstance(name, str) or Path(name).name != name or not name:
        raise _refused(row, "file.name", name, "the name of a file, without a folder")


def _is_written(folder: Path, name: str) -> bool:
    path = (folder / name).resolve()
    return path.is_relative_to(folder.resolve()) and path.is_file()


def _is_row(entry: object) -> bool:
    if not isinstance(entry, tuple) or len(entry) != 5:
        return False
    name, equal, error, ratio, note = entry
    numbers = isinstance(error, int | float) and (ratio is None or isinstance(ratio, int | float))
    return isinstance(name, str) and isinstance(equal, bool) and numbers and isinstance(note, str)


def _refused(row: BackendRow, part: str, answer: object, allowed: str) -> UnsupportedError:
    return UnsupportedError(
        f"the target {row.name} gave a wrong answer", where=f"{part}, {row.place}", found=repr(answer), allowed=allowed
    )
