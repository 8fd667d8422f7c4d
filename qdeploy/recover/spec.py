"""What a user asks of grid recovery, as text: auto, or FAMILY[:group=N|row|tensor], each with skip=REGEX, only=REGEX.

auto      int4,group=32      ternary,group=tensor,only=mlp      bitmod4,group=128
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qdeploy.errors import BadArgumentError
from qdeploy.recover.families import Family, family

GROUPS = (0, -1, 256, 128, 64, 32, 16)
"""Groups that are looked for: 0 the whole matrix, -1 a row, else so many columns."""
_ALLOWED = "auto or FAMILY, then [,group=N|row|tensor][,skip=REGEX][,only=REGEX]"


@dataclass(frozen=True)
class RecoverySpec:
    """A parsed request.

    Attributes:
        family: The levels; None: whichever fit.
        groups: Columns that share a scale, -1 for a row and 0 for the whole matrix, in the order in which they are
            tried.
        skip: Regular expression of tensors that are left as they are; empty: none.
        only: Regular expression of the tensors that are looked at; empty: all float matrices.
    """

    family: Family | None = None
    groups: tuple[int, ...] = GROUPS
    skip: str = ""
    only: str = ""

    def take(self, name: str) -> bool:
        """Whether a tensor is looked at."""
        return not (self.skip and re.search(self.skip, name)) and bool(re.search(self.only, name))


def parse(text: str) -> RecoverySpec:
    """Parses `auto`, `int4,group=32`, `ternary,group=tensor,only=mlp`.

    Raises:
        BadArgumentError: No such family, group or option; the error lists what is allowed.
    """
    name, *parts = text.replace(":", ",", 1).split(",")
    values = {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign or key not in ("group", "skip", "only") or key in values:
            raise BadArgumentError("no such option of grid recovery", found=part, allowed=_ALLOWED)
        values[key] = value
    for key in ("skip", "only"):
        try:
            re.compile(values.get(key, ""))
        except re.error as error:
            raise BadArgumentError(
                f"{key} does not parse: {error}", found=values[key], allowed="a regular expression"
            ) from error
    row = None if name == "auto" else family(name)
    groups = _groups(values["group"]) if "group" in values else GROUPS
    if "group" not in values and row is not None and row.group:
        groups = (row.group,)
    return RecoverySpec(row, groups, values.get("skip", ""), values.get("only", ""))


def _groups(text: str) -> tuple[int, ...]:
    if text in ("row", "tensor"):
        return (-1,) if text == "row" else (0,)
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise BadArgumentError("not a group", found=text, allowed="row, tensor, or a number of columns")
    return (int(text),)
