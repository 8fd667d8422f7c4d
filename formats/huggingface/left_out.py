"""Which linear layers a configuration leaves as they are, where the tensors do not show it (`modules_to_not_convert`).

transformers leaves a layer out that the list names: its name, up to the end of one of its parts, matches an entry as a
regular expression, or ends with it. Without a list the output layer is left out. Embeddings are no linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface.words import EMBEDDINGS, Settings, pattern
from qdeploy.patterns import Pattern

_HEADS = ("lm_head", "output", "embed_out", "score", "classifier")


@dataclass(frozen=True)
class LeftOut:
    """The list.

    Attributes:
        names: As they stand in the configuration; None: there is no list.
        patterns: The same as expressions.
    """

    names: tuple[str, ...] | None
    patterns: tuple[Pattern, ...]

    @classmethod
    def of(cls, settings: Settings, field: str) -> LeftOut:
        """Reads the list; BadFileError where it is none."""
        value, where = settings.values.get(field), f"{settings.where}.{field}"
        if value is None:
            return cls(None, ())
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise BadFileError("names of modules are no list of texts", where=where, found=repr(value)[:100])
        expressions = (pattern(rf"(?:{name})(?:(?<=\.)|(?=\.|$))", where) for name in value)
        return cls(tuple(value), tuple(p for p in expressions if p is not None))

    def holds(self, module: str) -> bool:
        """Whether a module stays as it is."""
        last = module.rpartition(".")[2]
        if last in EMBEDDINGS:
            return True
        if self.names is None:
            return last in _HEADS
        return any(p.match(module) for p in self.patterns) or module.endswith(self.names)
