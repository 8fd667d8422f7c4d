"""Forms of JSON values: what a file of this program must look like, declared in one place and checked before use.

int, float, str, bool, None   a value of that type (an int is also a float; a bool is no int)
Any                           anything
Either(a, b)                  one of several
[form]                        a list of any length
(form, form)                  a list of exactly these
{str: form}                   an object with any keys
{"key": form, "other?": form} an object with these keys and no others; with `...: Any` others are left alone
AtLeast(0)                    an integer that is at least that
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError

_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", None: "null"}


@dataclass(frozen=True)
class AtLeast:
    """An integer, `least` or more."""

    least: int


class Either:
    """One of several forms."""

    def __init__(self, *forms: Any) -> None:
        self.forms = forms


def check(value: Any, form: Any, where: str) -> None:
    """Compares a value with a form.

    Raises:
        BadFileError: It has another one; the error names the place ("qdeploy.json: stored[3][4]").
    """
    if form is Any:
        return
    if isinstance(form, Either):
        _either(value, form, where)
    elif isinstance(form, AtLeast):
        if not _is(value, int) or value < form.least:
            raise _wrong(value, f"an integer, at least {form.least}", where)
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _wrong(value, "a list", where)
        for i, item in enumerate(value):
            check(item, form[0], f"{where}[{i}]")
    elif isinstance(form, tuple):
        if not isinstance(value, list) or len(value) != len(form):
            raise _wrong(value, f"a list of {len(form)}", where)
        for i, (item, part) in enumerate(zip(value, form, strict=True)):
            check(item, part, f"{where}[{i}]")
    elif isinstance(form, dict):
        _object(value, form, where)
    elif not _is(value, form):
        raise _wrong(value, _NAMES[form], where)


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _either(value: Any, form: Either, where: str) -> None:
    last: BadFileError | None = None
    for part in form.forms:
        try:
            return check(value, part, where)
        except BadFileError as error:
            last = error
    if last is not None:
        raise last


def _object(value: Any, form: dict[Any, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", where)
    if str in form:
        for key, item in value.items():
            check(item, form[str], f"{where}: {key}")
        return
    names = {str(key).removesuffix("?"): (part, str(key).endswith("?")) for key, part in form.items() if key is not ...}
    missing = sorted(name for name, (_, optional) in names.items() if not optional and name not in value)
    unknown = [] if ... in form else sorted(set(value) - set(names))
    if missing or unknown:
        raise BadFileError(
            "keys are missing" if missing else "keys that are not known",
            where=where,
            found=", ".join(missing or unknown),
            allowed=", ".join(sorted(names)),
        )
    for name, (part, _) in names.items():
        if name in value:
            check(value[name], part, f"{where}: {name}")


def _wrong(value: Any, allowed: str, where: str) -> BadFileError:
    return BadFileError("a value of another form", where=where, found=repr(value)[:200], allowed=allowed)
