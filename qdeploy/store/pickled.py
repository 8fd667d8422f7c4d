"""Checkpoints that torch.save wrote, read without running anything that they say.

    since torch 1.6    a zip of stored entries: NAME/data.pkl, the storages as NAME/data/KEY, NAME/byteorder
    before             five pickles one after the other (a magic number, 1001, the machine, the object, the list of
                       storage keys), then for each key: i64 count, elements

A pickle is a program. Here a small machine runs it, that has opcodes for numbers, strings, tuples, lists and dicts; a
global can only be one of those that make up a tensor, and calling it gives a description: element type, where the
storage lies, offset, shape and strides. Anything else is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.store.archives import Stream, open_zip
from qdeploy.store.folder import File, Folder
from qdeploy.store.storage import storage_dtype

_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE_LIMIT, _PARTS_LIMIT = 64 << 20, 1 << 20
_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "BoolStorage": "BOOL",
}
_DICT, _TENSOR, _PARAMETER = (
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
)
_ERRORS = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    UnicodeError,
    RuntimeError,
)
"""What a damaged pickle or zip makes the standard library say."""


@dataclass(frozen=True)
class PickledTensor:
    """A tensor, contiguous and row-major: its storage type, shape, and where its elements begin in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


_MARK = object()


def is_torch_file(file: File) -> bool:
    """Whether a file begins like one of the two forms."""
    head = file.read(0, min(file.size, 16))
    return head[:4] == b"PK\x03\x04" or head[:14] == b"\x80\x02\x8a\n" + _MAGIC.to_bytes(10, "little")


def read_torch(folder: Folder, name: str) -> Any:
    """Reads a checkpoint: dicts, lists and numbers as such, tensors as `PickledTensor`.

    Raises:
        BadFileError: The file is damaged, or a tensor leaves its storage.
        UnsupportedError: The pickle asks for something that no tensor needs, or a tensor is not contiguous.
    """
    file = folder.open(name)
    try:
        places: dict[str, tuple[int, int]]
        if file.read(0, min(4, file.size)) == b"PK\x03\x04":
            value, places = _zipped(file)
        else:
            value, places = _sequence(file)
        return _Placer(places, name).placed(value)
    except _ERRORS as error:
        raise BadFileError(
            f"not a checkpoint of torch.save: {error}",
            where=name,
            todo="The file is damaged or truncated; fetch it again.",
        ) from error
    finally:
        file.close()


# ---- the two forms


def _zipped(file: File) -> tuple[Any, dict[str, tuple[int, int]]]:
    entries = open_zip(file).infolist()
    heads = [e for e in entries if e.filename.endswith("/data.pkl") and e.filename.count("/") == 1]
    if len(heads) != 1 or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ValueError("no single pickle in it, or compressed entries")
    root = heads[0].filename.removesuffix("data.pkl")
    places = {e.filename.removeprefix(root): (_begin(file, e), e.file_size) for e in entries}
    if "byteorder" in places and file.read(*places["byteorder"]) != b"little":
        raise UnsupportedError("a checkpoint of a big-endian machine", where=file.name)
    begin, size = places["data.pkl"]
    if size > _PICKLE_LIMIT:
        raise ValueError("its pickle is too large")
    value = _run(io.BytesIO(file.read(begin, size)), file.name)
    return value, {key.removeprefix("data/"): place for key, place in places.items() if key.startswith("data/")}


def _begin(file: File, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its local header, whose name and extra field have lengths of their own."""
    head = file.read(entry.header_offset, 30)
    name, extra = struct.unpack_from("<HH", head, 26)
    begin = entry.header_offset + 30 + int(name) + int(extra)
    if head[:4] != b"PK\x03\x04" or begin + entry.file_size > file.size:
        raise ValueError("an entry lies outside of the file")
    return begin


def _sequence(file: File) -> tuple[Any, dict[str, tuple[int, int]]]:
    stream = Stream(file)
    if _run(stream, file.name) != _MAGIC or _run(stream, file.name) != 1001:
        raise ValueError("its first bytes are not those of a pickle")
    _run(stream, file.name)
    machine = _Machine(file.name)
    value, keys = machine.run(stream), _run(stream, file.name)
    sizes = {s.key: storage_dtype(s.dtype).itemsize for s in machine.storages}
    at, places = stream.tell(), {}
    for key in keys:
        count = struct.unpack("<q", file.read(at, 8))[0]
        size = count * sizes.get(key, 4)
        if count < 0 or at + 8 + size > file.size:
            raise ValueError("a storage lies outside of the file")
        places[str(key)] = (at + 8, size)
        at += 8 + size
    return value, places


class _Placer:
    """Puts places in the file where a value has views of storages."""

    def __init__(self, places: dict[str, tuple[int, int]], name: str) -> None:
        self._places, self._name, self._left = places, name, _PARTS_LIMIT

    def placed(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("its parts hold each other again and again")
        if isinstance(value, dict):
            return {key: self.placed(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.placed(part) for part in value]
        if isinstance(value, (_Global, _Storage)):
            raise UnsupportedError("a checkpoint with something else than tensors", where=self._name, found=value)
        return self._tensor(value) if isinstance(value, _View) else value

    def _tensor(self, view: _View) -> PickledTensor:
        size, count = storage_dtype(view.storage.dtype).itemsize, math.prod(view.shape)
        begin, nbytes = self._places[view.storage.key]
        if min((view.offset, *view.shape)) < 0 or len(view.shape) > 8 or (view.offset + count) * size > nbytes:
            raise BadFileError(
                "a tensor leaves its storage", where=self._name, found=view.shape[:8], allowed=f"{nbytes} bytes"
            )
        step = 1
        for n, stride in reversed(list(zip(view.shape, view.strides, strict=True))):
            if n > 1 and stride != step:
                raise UnsupportedError("a tensor that is not contiguous", where=self._name, found=view.strides)
            step *= n
        return PickledTensor(view.storage.dtype, view.shape, begin + view.offset * size)


# ---- the machine


def _find(names: Sequence[str], where: str) -> _Global:
    module, name = names
    legal = (module, name) in (_DICT, _TENSOR, _PARAMETER) or (module == "torch" and name in _STORAGES)
    if not legal:
        raise UnsupportedError(
            "a checkpoint that asks for something else than tensors",
            where=where,
            found=f"{module}.{name}",
            todo="It is not run. Save its tensors alone.",
        )
    return _Global(module, name)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    callee = (function.module, function.name)
    if callee == _DICT:
        return dict(*arguments)
    if callee == _PARAMETER:
        return arguments[0]
    if callee != _TENSOR or not isinstance(arguments[0], _Storage):
        raise ValueError("a call of what is not a function")
    storage, offset, shape, strides = arguments[:4]
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _Machine:
    """The stack, the memo, every storage that was named, and what opcodes do with them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: list[_Storage] = []

    def run(self, stream: Any) -> Any:
        """Runs one pickle of a stream, up to its STOP."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # escapes of text that a later Python will refuse
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return self.popped(1)[0]
                if opcode.name not in _OPCODES:
                    raise UnsupportedError(
                        "a pickle with an opcode that no tensor needs", where=self.where, found=opcode.name
                    )
                _OPCODES[opcode.name](self, argument)
        raise ValueError("a pickle without an end")

    def persistent(self, reference: Any) -> None:
        """A reference to what lies outside of the pickle: a storage."""
        kind, storage, key, _, count = reference[:5]
        if kind != "storage" or not isinstance(storage, _Global) or storage.name not in _STORAGES:
            raise ValueError("a reference to something else than a storage")
        self.storages.append(_Storage(_STORAGES[storage.name], str(key), int(count)))
        self.stack.append(self.storages[-1])

    def drop(self) -> None:
        """BUILD: state of an object, which no tensor needs."""
        self.popped(1)

    def to_mark(self) -> list[Any]:
        place = max(i for i, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def popped(self, count: int) -> tuple[Any, ...]:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise ValueError("an empty stack")
        del self.stack[-count:]
        return items

    def set_items(self, items: list[Any] | tuple[Any, ...]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("items of what is not a dict")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any] | tuple[Any, ...]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items of what is not a list")
        self.stack[-1].extend(items)


_PUSHES = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
    }
)
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHES, lambda m, arg: m.stack.append(arg)),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, arg: m.memo.__setitem__(arg, m.stack[-1])),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, arg: m.stack.append(m.memo[arg])),
    "MEMOIZE": lambda m, arg: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "NONE": lambda m, arg: m.stack.append(None),
    "NEWTRUE": lambda m, arg: m.stack.append(True),
    "NEWFALSE": lambda m, arg: m.stack.append(False),
    "MARK": lambda m, arg: m.stack.append(_MARK),
    "EMPTY_DICT": lambda m, arg: m.stack.append({}),
    "EMPTY_LIST": lambda m, arg: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, arg: m.stack.append(()),
    "TUPLE": lambda m, arg: m.stack.append(tuple(m.to_mark())),
    "TUPLE1": lambda m, arg: m.stack.append(m.popped(1)),
    "TUPLE2": lambda m, arg: m.stack.append(m.popped(2)),
    "TUPLE3": lambda m, arg: m.stack.append(m.popped(3)),
    "SETITEM": lambda m, arg: m.set_items(m.popped(2)),
    "SETITEMS": lambda m, arg: m.set_items(m.to_mark()),
    "APPEND": lambda m, arg: m.append(m.popped(1)),
    "APPENDS": lambda m, arg: m.append(m.to_mark()),
    "BUILD": lambda m, arg: m.drop(),
    "GLOBAL": lambda m, arg: m.stack.append(_find(arg.split(" ", 1), m.where)),
    "STACK_GLOBAL": lambda m, arg: m.stack.append(_find(m.popped(2), m.where)),
    "BINPERSID": lambda m, arg: m.persistent(*m.popped(1)),
    "REDUCE": lambda m, arg: m.stack.append(_call(*m.popped(2))),
}
"""What each opcode does."""


def _run(stream: Any, where: str) -> Any:
    return _Machine(where).run(stream)
