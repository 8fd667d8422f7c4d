"""Which formats may be meant by a checkpoint, and how surely each of them claims it."""

from __future__ import annotations

from collections.abc import Mapping

from qdeploy.catalog.table import is_built_in
from qdeploy.contracts.clues import PACKAGE, Clues
from qdeploy.contracts.formats import FormatRow, Sniff
from qdeploy.errors import QdeployError
from qdeploy.store.folder import Folder

_SUBFOLDERS = 64
"""That are looked into."""


class Candidates:
    """The formats that a checkpoint may be of, asked one after the other.

    Attributes:
        notes: What went wrong with formats of other distributions, which were passed over.
        reasons: By name, why a format claims the checkpoint.
    """

    def __init__(self, rows: Mapping[str, FormatRow], folder: Folder) -> None:
        self._folder, self.notes, self.reasons = folder, list[str](), dict[str, str]()
        clues = Clues(folder)
        if not folder.only and clues.has(PACKAGE):
            self._rows = [row for row in rows.values() if any(PACKAGE in looks.files for looks in row.looks)]
        else:
            self._rows = [row for row in map(_resolved, rows.values()) if row.may_be(clues)]

    def best(self) -> list[FormatRow]:
        """The formats with the highest score above 0."""
        scores = {row.name: self._score(row) for row in self._rows}
        highest = max(scores.values(), default=0)
        return [row for row in self._rows if highest and scores[row.name] == highest]

    def _score(self, row: FormatRow) -> int:
        try:
            answer: object = row.load().sniff(self._folder)
        except (Exception, SystemExit) as error:
            if is_built_in(row):
                raise
            reason = error.what if isinstance(error, QdeployError) else f"{type(error).__name__}: {error}"
            return self._pass_over(row, reason)
        if not isinstance(answer, Sniff) or type(answer.score) is not int or not 0 <= answer.score <= 100:
            return self._pass_over(row, f"sniff gave {answer!r:.80}, not a Sniff with a score from 0 to 100")
        self.reasons[row.name] = answer.reason
        return answer.score

    def _pass_over(self, row: FormatRow, what: str) -> int:
        self.notes.append(f"the format {row.name} of {row.origin} was passed over: {what}")
        return 0


def below(rows: Mapping[str, FormatRow], folder: Folder) -> list[str]:
    """The folders right inside of one that hold a model, each with its format: "onnx (onnx)"."""
    inside = dict.fromkeys(name.partition("/")[0] for name in folder.names() if "/" in name)
    models = []
    for name in list(inside)[:_SUBFOLDERS]:
        try:
            best = Candidates(rows, folder.inside(name)).best()
        except QdeployError:  # what is wrong there is said when it is named
            continue
        models += [f"{name} ({', '.join(row.name for row in best)})"] if best else []
    return models


def _resolved(row: FormatRow) -> FormatRow:
    return row if row.looks else row.resolved()


def describe(folder: Folder) -> str:
    """A folder in a few words: its quantization method, and the names of a few files."""
    from itertools import islice

    names = list(islice(folder.names(), 6))
    section = Clues(folder).config.get("quantization_config")
    method = f"quant_method {section.get('quant_method')!r}, " if isinstance(section, dict) else ""
    return method + (", ".join(names) or "an empty folder")
