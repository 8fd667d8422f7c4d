"""tokenizer.model, the file of SentencePiece, as a tokenizer.json: for folders that have nothing else.

A protobuf message (sentencepiece_model.proto), of which this is read:

    1  pieces, repeated     1 text   2 score, float   3 type: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte
    2  trainer              3 model type: 1 unigram, 2 BPE   40 unknown, 41 bos, 42 eos, 43 pad: ids
    3  normalizer           3 whether a space is put before a text

BPE models become byte-fallback BPE, as `qdeploy.formats.vocabulary` makes it of the same pieces in a GGUF file;
unigram models are not converted.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, QdeployError
from qdeploy.formats.protobuf import fields, signed
from qdeploy.store.folder import Folder

FILE = "tokenizer.model"
_LIMIT = 64 << 20
_BPE = 2
_WHAT = "not a SentencePiece model"
_IDS = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}


def tokenizer_files(folder: Folder) -> tuple[dict[str, bytes], list[str]]:
    """What a folder's tokenizer.model gives: path -> content, and notes; empty where it is not needed."""
    if folder.only or not folder.has(FILE) or folder.has("tokenizer.json"):
        return {}, []
    from qdeploy.formats.vocabulary import derive

    try:
        file = folder.open(FILE)
        try:
            metadata, kind = _metadata(file.read(0, min(file.size, _LIMIT)), FILE)
        finally:
            file.close()
    except QdeployError as error:
        return {}, [f"no tokenizer.json: {FILE}: {error.what}"]
    if kind != _BPE:
        return {}, [f"no tokenizer.json: {FILE} is a model of the kind {kind}, and only BPE (2) is converted; add one"]
    return derive(metadata, {"tokenizer_config.json"} if folder.has("tokenizer_config.json") else ())


def _metadata(data: bytes, where: str) -> tuple[dict[str, Any], int]:
    """The vocabulary in the terms of GGUF metadata, and the type of the model."""
    pieces: list[tuple[str, float, int]] = []
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "llama"}
    ids, kind = {"unknown": 0, "bos": 1, "eos": 2, "padding": -1}, 1
    for number, value in fields(data, where, _WHAT):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value, where))
        elif number == 2 and isinstance(value, bytes):
            trainer = {n: v for n, v in fields(value, where, _WHAT) if isinstance(v, int)}
            kind = trainer.get(3, kind)
            ids |= {name: signed(trainer[n]) for n, name in _IDS.items() if n in trainer}
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(fields(value, where, _WHAT))
            metadata["tokenizer.ggml.add_space_prefix"] = bool(normalizer.get(3, 1))
    if not pieces:
        raise BadFileError("no pieces in a SentencePiece model", where=where)
    metadata |= {f"tokenizer.ggml.{name}_token_id": n for name, n in ids.items() if n >= 0}
    metadata["tokenizer.ggml.tokens"] = [text for text, *_ in pieces]
    metadata["tokenizer.ggml.scores"] = np.array([score for _, score, _ in pieces], np.float32)
    metadata["tokenizer.ggml.token_type"] = np.array([kind for *_, kind in pieces], np.int32)
    return metadata, kind


def _piece(data: bytes, where: str) -> tuple[str, float, int]:
    row = dict(fields(data, where, _WHAT))
    text, score, kind = row.get(1, b""), row.get(2, 0), row.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, int) or not isinstance(kind, int):
        raise BadFileError("a piece of another form", where=where)
    return text.decode("utf-8", "replace"), float(struct.unpack("<f", struct.pack("<I", score & 0xFFFFFFFF))[0]), kind
