"""What every backend gives back: its choice per weight, what it checked, and how an output compares with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qdeploy.errors import BadArgumentError

Row = tuple[str, bool, float, float | None, str]
"""Of a comparison: name, equal, greatest error, signal-to-noise ratio in dB or None, a note."""


@dataclass(frozen=True)
class Choice:
    """What became of a weight.

    Attributes:
        tensor: Its name.
        form: Short name of the form ("int4 block 128 + zeros").
        reason: Why this form, in a sentence; says "slow" where no fast kernel exists.
        lossless: Whether every stored number is carried unrounded.
        bytes: Its size in the output.
    """

    tensor: str
    form: str
    reason: str
    lossless: bool
    bytes: int


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: The weight, or "model".
        kind: The form that was run or read back ("linear: int4 block 128"), or "model".
        error: Greatest relative error.
        limit: What is allowed.
        unrun: Why this could not be run, in a few words; empty: it was.
    """

    name: str
    kind: str
    error: float
    limit: float
    unrun: str = ""


@dataclass(frozen=True)
class Timing:
    """What quantizing has done to a network's time.

    Attributes:
        floats: Seconds of a run of the network in floats, the median.
        output: Seconds of a run of what was written.
    """

    floats: float
    output: float

    @property
    def ratio(self) -> float:
        """Time of the output in units of that of the floats."""
        return self.output / self.floats


@dataclass(frozen=True)
class Lowered:
    """What a backend wrote; a backend that needs more for its check derives from this.

    Attributes:
        files: Written files, relative to the target folder.
        choices: One per weight, in order of first use.
        notes: Remarks for the report.
    """

    files: tuple[str, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, lowered: Lowered) -> Self:
        """The result as one of this backend; BadArgumentError where another backend wrote it."""
        if not isinstance(lowered, cls):
            raise BadArgumentError("another backend wrote this", found=type(lowered).__module__, allowed=cls.__module__)
        return lowered
