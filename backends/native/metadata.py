"""What a file holds besides numbers: names, the tokenizer's files, configurations. Keys are sorted.

    meta             what the graph says of itself: kind, context, token ids
    config           the architecture's configuration, as in config.json
    source           format of the checkpoint, and how each matrix was encoded there
    features         what a reader must know, a line "<bit> <name>" for each; absent where there is nothing
    losses           what rungs lost on a text when the file was written (losses.py); absent where nobody measured
    conversion       the options of the conversion, so that the source can be derived again
    tokenizer.json   and other files of the source, under their names

uint32 n, n entries {uint32 key_at, key_bytes, uint64 value_at, value_bytes}, then the bytes; positions are from the
start of the section. Names of matrices and values are strings that end with 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np

from qdeploy.backends.native.layout import META_ENTRY, Feature
from qdeploy.errors import BadFileError
from qdeploy.ir.model import Model
from qdeploy.store.output import finite

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files of the source that are carried under their names."""


def entries(model: Model, conversion: Mapping[str, object], features: Feature) -> dict[str, bytes]:
    """The metadata of a model by key."""
    metadata = {
        "meta": _json(dict(model.graph.meta)),
        "config": _json(finite(dict(model.config))),
        "source": _json({"format": model.format}),
        "conversion": _json(dict(conversion)),
    }
    if features:
        lines = [f"{f.value.bit_length() - 1} {(f.name or '').lower()}\n" for f in Feature if f & features]
        metadata["features"] = "".join(lines).encode()
    for file in model.files:
        if file.path in FILES and file.role in ("side", "derived"):
            metadata[file.path] = file.data.read().tobytes()
    return metadata


def pack(metadata: Mapping[str, bytes], names: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    """The section, and where each name stands in it."""
    keys = sorted(metadata)
    table, body = np.zeros(len(keys), META_ENTRY), bytearray()
    head = 4 + table.nbytes
    for row, key in zip(table, keys, strict=True):
        row["key_at"], row["key_bytes"] = head + len(body), len(key.encode())
        body += key.encode()
        row["value_at"], row["value_bytes"] = head + len(body), len(metadata[key])
        body += metadata[key]
    places = {}
    for name in dict.fromkeys(names):
        places[name] = head + len(body)
        body += name.encode() + b"\0"
    return len(keys).to_bytes(4, "little") + table.tobytes() + bytes(body), places


def unpack(section: bytes) -> dict[str, bytes]:
    """The inverse of `pack`, without the names.

    Raises:
        BadFileError: An entry lies outside of the section.
    """
    count = int.from_bytes(section[:4], "little")
    if len(section) < 4 or (len(section) - 4) // META_ENTRY.itemsize < count:
        raise BadFileError("the metadata is cut short", found=f"{count} entries in {len(section)} bytes")
    rows = np.frombuffer(section, META_ENTRY, count, 4).tolist()
    return {
        _range(section, key_at, key_bytes).decode(errors="replace"): _range(section, value_at, value_bytes)
        for key_at, key_bytes, value_at, value_bytes in rows
    }


def _range(section: bytes, at: int, size: int) -> bytes:
    if at + size > len(section):
        raise BadFileError(
            "an entry of the metadata lies outside of it",
            found=f"bytes {at}..{at + size}",
            allowed=f"0..{len(section)}",
        )
    return section[at : at + size]


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
