"""What callers and files hand to the runtime, judged before C sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.native.library import library
from qdeploy.store.folder import parse_json

_MOST_THREADS, _LONGEST, _LEAST = 4096, 1_000_000, 1 << 31
_MAGIC = b"qdeploy\n"


def model_path(path: str | os.PathLike[str]) -> str:
    """The path of a model file; BadFileError for a folder, and for a file that begins otherwise."""
    name = os.fspath(path)
    kind = "a folder" if os.path.isdir(name) else ""
    if os.path.isfile(name) and os.path.getsize(name) >= len(_MAGIC):
        with open(name, "rb") as file:
            kind = "" if file.read(len(_MAGIC)) == _MAGIC else "a file of another format"
    if kind:
        raise BadFileError(
            "not a model file of the native runtime",
            where=name,
            found=kind,
            todo=f"If it is a checkpoint: qdeploy convert {name} model.qd --to native",
        )
    return name


def token_ids(ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """A row of token ids, int32 [tokens]; BadArgumentError for what is none. Which ids there are, the file knows."""
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise BadArgumentError("token ids are no row of integers", found=error) from error
    whole = array.ndim == 1 and (array.dtype.kind in "iu" or not array.size)
    if not whole or (array.size and not -_LEAST <= int(array.min()) <= int(array.max()) < _LEAST):
        raise BadArgumentError("token ids are no row of integers", found=repr(ids)[:100], allowed="integers of 32 bits")
    return np.ascontiguousarray(array, np.int32)


def sampling_of(options: Mapping[str, float]) -> Any:
    """The struct of sampling in C; BadArgumentError for an option that it does not have, or that does not fit."""
    ffi, lib = library()
    settings = ffi.new("qd_sampling *")
    lib.qd_sampling_init(settings)
    known = [name for name, _ in ffi.typeof("qd_sampling").fields if name != "size"]
    for name, value in options.items():
        if name not in known:
            raise BadArgumentError("no such option of sampling", found=name, allowed=", ".join(known))
        try:
            setattr(settings, name, value)
        except (TypeError, OverflowError) as error:
            raise BadArgumentError("an option of sampling of another type", where=name, found=repr(value)) from error
    return settings


def thread_count(threads: int) -> int:
    """How many threads there are to be; BadArgumentError for a number that cannot be."""
    if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
        raise BadArgumentError("a number of threads that cannot be", found=threads, allowed=f"0..{_MOST_THREADS}")
    return threads


def milliseconds(seconds: float) -> int:
    """A time in C; BadArgumentError for one that cannot be."""
    if not 0 <= seconds < _LONGEST:
        raise BadArgumentError("a time that cannot be waited for", found=seconds, allowed=f"0 to {_LONGEST} seconds")
    return int(seconds * 1000)


def check_logits(logits: object, vocab: int) -> None:
    """BadArgumentError for an array that C would read beyond its end, or take for other numbers."""
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != (vocab,):
        facts = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else type(logits).__name__
        raise BadArgumentError("not the logits of this model", found=facts, allowed=f"float32 [{vocab}]")


def check_text(text: object) -> None:
    """BadArgumentError for what is no text, or has characters that no encoding has (half surrogate pairs)."""
    if not isinstance(text, str):
        raise BadArgumentError("a prompt is no text", found=repr(text)[:100])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadArgumentError("a prompt with characters that are none", found=text) from error


def meta_of(text: bytes | None, where: str) -> dict[str, Any]:
    """What the graph of a file says of itself; BadFileError where it is no object, or ids and sizes are none."""
    meta = parse_json(text, f"{where}: meta") if text else {}
    if not isinstance(meta, dict):
        raise BadFileError("the metadata of a model file is no object", where=f"{where}: meta", found=repr(meta)[:100])
    ends = meta.get("eos_token_id")
    numbers = [meta.get("context"), *(ends if isinstance(ends, list) else [ends])]
    if not all(number is None or type(number) is int for number in numbers):
        raise BadFileError("numbers in the metadata of a model file are none", where=f"{where}: meta", found=numbers)
    return meta
