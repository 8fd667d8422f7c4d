"""What a checkpoint says of activations and is not carried out: counted, and named in the notes of the model."""

from __future__ import annotations

from collections import Counter


class Unapplied:
    """Quantization of activations that stays unapplied: outputs compute with weights alone."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count: Counter[str] = Counter()

    def add(self, what: str, layer: str) -> None:
        """Notes what is said of one layer; "" is nothing."""
        if what:
            self._first.setdefault(what, layer)
            self._count[what] += 1

    def notes(self) -> list[str]:
        """One sentence for each kind."""
        return [
            f"not applied: the checkpoint quantizes {what}, too ({count} layers, the first {self._first[what]})"
            for what, count in self._count.items()
        ]
