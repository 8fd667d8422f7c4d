"""Writes checkpoints in the two forms of torch.save, with pickles that torch would have written."""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"float32": "FloatStorage", "int8": "CharStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


def _modules() -> dict[str, types.ModuleType]:
    """Stand-ins under the names that torch's pickles hold."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))

    def rebuild(*_: Any) -> None:
        raise NotImplementedError

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    torch._utils = inner  # type: ignore[attr-defined]
    return {"torch": torch, "torch._utils": inner}


class _Pickler(pickle.Pickler):
    def __init__(self, out: Any, modules: dict[str, types.ModuleType], legacy: bool) -> None:
        super().__init__(out, protocol=2)
        self.modules, self.legacy, self.storages = modules, legacy, []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        rebuild = self.modules["torch._utils"]._rebuild_tensor_v2
        strides = tuple(s // value.itemsize for s in value.strides)
        return rebuild, (_Storage(value), 0, value.shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        key, kind = str(len(self.storages)), getattr(self.modules["torch"], STORAGES[value.array.dtype.name])
        self.storages.append(value.array)
        return ("storage", kind, key, "cuda:0", value.array.size, *([None] if self.legacy else []))


def _pickled(value: Any, legacy: bool = False) -> tuple[bytes, list[np.ndarray]]:
    out, modules = io.BytesIO(), _modules()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        pickler = _Pickler(out, modules, legacy)
        pickler.dump(value)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return out.getvalue(), pickler.storages


def save_zip(path: Path, value: Any) -> None:
    """As torch writes since 1.6: stored entries, each beginning at a multiple of 64."""
    data, storages = _pickled(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as output:
        output.writestr("archive/data.pkl", data)
        output.writestr("archive/byteorder", "little")
        for key, array in enumerate(storages):
            output.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
        output.writestr("archive/version", "3\n")


def save_legacy(path: Path, value: Any) -> None:
    """As torch wrote before 1.6."""
    data, storages = _pickled(value, legacy=True)
    heads = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    keys = pickle.dumps([str(i) for i in range(len(storages))], protocol=2)
    parts = [struct.pack("<q", a.size) + np.ascontiguousarray(a).tobytes() for a in storages]
    path.write_bytes(b"".join([*heads, data, keys, *parts]))
