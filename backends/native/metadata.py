"""What a file holds besides numbers: names, the tokenizer's files, the configuration. Keys are sorted.

uint32 n, n entries {uint32 key_at, key_bytes, uint64 value_at, value_bytes}, then the bytes; positions are from the
start of the section. Names of matrices and values are strings that end with 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np

from qdeploy.backends.native.layout import META_ENTRY
from qdeploy.ir.model import Model

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
"""Files of the source that are carried under their names."""


def entries(model: Model) -> dict[str, bytes]:
    """The metadata of a model by key."""
    found = {"meta": _json(dict(model.graph.meta)), "config": _json(dict(model.config)), "losses": _json(model.losses)}
    for file in model.files:
        if file.path in FILES and file.role in ("side", "derived"):
            found[file.path] = file.data.read().tobytes()
    return found


def source_digest(model: Model) -> bytes:
    """SHA-256 over the configuration and every source tensor's file, name, type and shape."""
    digest = hashlib.sha256(_json(dict(model.config)))
    for origin in model.origins:
        digest.update(_json([origin.file, origin.name, origin.kind, list(origin.shape), origin.begin]))
    for file in model.files:
        digest.update(_json([file.path, file.role, file.data.nbytes]))
    return digest.digest()


def pack(found: Mapping[str, bytes], names: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    """The section, and where each name stands in it."""
    keys = sorted(found)
    table, body = np.zeros(len(keys), META_ENTRY), bytearray()
    head = 4 + table.nbytes
    for row, key in zip(table, keys, strict=True):
        row["key_at"], row["key_bytes"] = head + len(body), len(key.encode())
        body += key.encode()
        row["value_at"], row["value_bytes"] = head + len(body), len(found[key])
        body += found[key]
    places = {}
    for name in dict.fromkeys(names):
        places[name] = head + len(body)
        body += name.encode() + b"\0"
    return len(keys).to_bytes(4, "little") + table.tobytes() + bytes(body), places


def unpack(section: bytes) -> dict[str, bytes]:
    """The inverse of `pack`, without the names."""
    table = np.frombuffer(section, META_ENTRY, int.from_bytes(section[:4], "little"), 4)
    return {
        section[r["key_at"] :][: r["key_bytes"]].decode(): section[int(r["value_at"]) :][: int(r["value_bytes"])]
        for r in table
    }


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
