"""One family of errors, each of which says what, where, what was found, what is allowed and what to do.

The command line prints them in three lines and exits with 2; `--debug` adds the trace.
Nothing in the project raises a bare `ValueError` or asserts on input: whatever a file or a user can cause is one of
these.
"""

_SHORT, _LONG = 400, 2000
"""Characters of a text that are shown: of what was found, and of what is allowed."""


class QdeployError(Exception):
    """The root of the family.

    Args:
        what: One sentence: what went wrong.
        where: File, tensor, field, as far as they are known.
        found: The value that was found.
        allowed: The values that would have been accepted.
        todo: What the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", found: object = "", allowed: str = "", todo: str = "") -> None:
        self.what, self.where, self.found = (printable(text, _SHORT) for text in (what, where, found))
        self.allowed, self.todo = (printable(text, _LONG) for text in (allowed, todo))
        super().__init__(self.what)

    def lines(self) -> list[str]:
        """The error as it is printed: what; where, found and allowed; what to do."""
        facts = (("in", self.where), ("found", self.found), ("allowed", self.allowed))
        middle = "; ".join(f"{label} {text}" for label, text in facts if text)
        return [self.what, *([middle] if middle else []), *([self.todo] if self.todo else [])]

    def __str__(self) -> str:
        return "\n  ".join(self.lines())


def printable(value: object, most: int = _SHORT) -> str:
    """A value as it is shown: cut after `most` characters, and nothing that a terminal would obey.

    Names from files may hold line breaks, terminal codes and half surrogate pairs: they are shown escaped.
    """
    text = str(value)
    cut = f"... ({len(text)} characters)" if len(text) > most else ""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most]) + cut


class DefectError(QdeployError):
    """Something that no input should be able to cause: a defect of this program."""

    exit_code = 3


class BadFileError(QdeployError):
    """A file is damaged, truncated, hostile, or contradicts itself."""


class UnsupportedError(QdeployError):
    """The input is well formed, but names something that is not supported: always by its name."""


class AmbiguousError(QdeployError):
    """More than one reading is possible, and guessing would be silent."""


class BadArgumentError(QdeployError):
    """A caller's argument is outside of what is allowed."""


class OutputError(QdeployError):
    """The output cannot be written: it exists, the disk is full, or it changed under our hands."""


class ProofError(QdeployError):
    """A proof failed: the result does not equal its source. Never ignored, never retried."""
