"""The library of the runtime in Python: its functions, its errors as those of this project, its constants by name."""

from __future__ import annotations

import math
from typing import Any, SupportsInt

from qdeploy.errors import BadArgumentError, BadFileError, OutputError, QdeployError, UnsupportedError
from qdeploy.sizes import human, parse_size


class NoMemoryError(BadArgumentError):
    """The machine has no memory for what is asked for."""


class UnderFloorError(BadArgumentError):
    """A budget is below the least that works, which is `floor` bytes."""

    floor = 0


_ERRORS: dict[str, type[QdeployError]] = {
    "QD_BAD_FILE": BadFileError,
    "QD_CHECKSUM": BadFileError,
    "QD_UNSUPPORTED": UnsupportedError,
    "QD_IO": OutputError,
    "QD_NO_MEMORY": NoMemoryError,
}


def library() -> tuple[Any, Any]:
    """Cffi's interface and the functions; UnsupportedError where they are not built."""
    try:
        from qdeploy._native import ffi, lib
    except ImportError as error:
        raise UnsupportedError(
            "the native runtime is not built",
            found=str(error),
            todo="Install a C++ compiler (g++ or clang++), then: pip install --force-reinstall --no-deps qdeploy",
        ) from None
    return ffi, lib


def isas() -> tuple[str, ...]:
    """Instruction sets whose kernels run on this machine, best first."""
    ffi, lib = library()
    names = ffi.new("const char *[16]")
    return tuple(ffi.string(names[i]).decode() for i in range(lib.qd_isas(names, 16)))


def status_name(status: int) -> str:
    """The name of a status ("QD_OK")."""
    return str(library()[0].typeof("qd_status").elements[status])


def call(function: Any, *arguments: Any, where: str) -> None:
    """Calls a function whose last parameter is an error, and raises what it says of the file `where`."""
    ffi, _ = library()
    error = ffi.new("qd_error *", [ffi.sizeof("qd_error")])
    try:
        status = status_name(function(*arguments, error))
    except OverflowError as overflow:
        raise BadArgumentError("a number that C does not hold", where=where, found=overflow) from overflow
    if status in ("QD_OK", "QD_PENDING"):
        return
    text = ffi.string(error.text).decode(errors="replace") or status
    if status == "QD_BUDGET_UNDER_FLOOR":
        todo = f"Give at least {error.floor_bytes} bytes ({human(error.floor_bytes)})."
        refused = UnderFloorError(text, where=where, todo=todo)
        refused.floor = int(error.floor_bytes)
        raise refused
    raise _ERRORS.get(status, BadArgumentError)(text, where=where)


def byte_count(size: int | str) -> int:
    """A size as a number of bytes: 350 MB may be "350MB"."""
    if not isinstance(size, str) and not (isinstance(size, SupportsInt) and 0 <= float(size) < math.inf):
        raise BadArgumentError("a number of bytes that cannot be", found=size, allowed="0 (no limit) to 2^63 - 1")
    count = parse_size(size) if isinstance(size, str) else int(size)
    if not 0 <= count < 1 << 63:
        raise BadArgumentError("a number of bytes that cannot be", found=size, allowed="0 (no limit) to 2^63 - 1")
    return count


def choice(value: str, *names: str) -> int:
    """The place of a value among its names, which is its number in C."""
    if value not in names:
        raise BadArgumentError("no such choice", found=value, allowed=", ".join(names))
    return names.index(value)
