"""What a model is run on: a text, token ids or arrays of inputs, as sequences of at most one length.

    text          documents that <|endoftext|> parts, or where nothing does, windows of the text; for encoders its lines
    .npz          an array per input of the graph (input_ids, attention_mask)
    .npy          token ids [sequences, tokens], or [tokens]

Decoders see the token that begins a text before each document, where they have one. Shorter sequences are filled up
behind; what stands there is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.store.archives import read_array, read_arrays
from qdeploy.store.folder import Folder
from qdeploy.tokenizing import open_pieces, open_tokenizer

SEPARATOR = "<|endoftext|>"
LENGTH, TOKENS = 512, 65536
"""Tokens of a sequence, and of all sequences together."""
_TEXT_LIMIT = 64 << 20
_HELD_BACK = 16
_PURPOSE = "running a model on a text"


@dataclass(frozen=True, eq=False)
class Samples:
    """Sequences of tokens.

    Attributes:
        ids: int64 [sequences, tokens].
        lengths: int64 [sequences]: how many of the tokens there are.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return int(self.lengths.sum())

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where there is a token: [sequences, tokens]."""
        there: npt.NDArray[np.bool_] = np.arange(self.ids.shape[1]) < self.lengths[:, None]
        return there

    def batches(self, tokens: int = 4096) -> Iterator[Samples]:
        """Parts of about so many tokens, cut to their longest sequence."""
        step = max(1, tokens // max(1, self.ids.shape[1]))
        for start in range(0, len(self.ids), step):
            lengths = self.lengths[start : start + step]
            yield Samples(self.ids[start : start + step, : lengths.max()], lengths)

    def parted(self) -> tuple[Samples, Samples]:
        """All but every 16th sequence, and those, which nothing is fitted to; all twice where there are too few."""
        held_back = np.arange(len(self.ids)) % _HELD_BACK == _HELD_BACK - 1
        if not held_back.any():
            return self, self
        first, second = (Samples(self.ids[which], self.lengths[which]) for which in (~held_back, held_back))
        return first, second

    def inputs(self, model: Model) -> dict[str, Array]:
        """The inputs of a graph; UnsupportedError where it takes others than ids, a mask and types of tokens."""
        known: dict[str, Array] = {
            "input_ids": self.ids,
            "attention_mask": self.mask.astype(np.int64),
            "token_type_ids": np.zeros_like(self.ids),
        }
        names = [value.name for value in model.graph.inputs]
        if set(names) - set(known):
            raise UnsupportedError("a network that takes other inputs than tokens", found=", ".join(names))
        return {name: known[name] for name in names}


def read_samples(model: Model, path: str, *, tokens: int = TOKENS, length: int = 0) -> Samples:
    """Reads sequences for a model.

    Args:
        model: A decoder or an encoder; a text also needs its tokenizer.
        path: A text file (UTF-8), .npz or .npy.
        tokens: How many are read at most.
        length: Of a sequence at most; 0: the model's context, at most 512.

    Raises:
        BadArgumentError: The file cannot be read, or holds no tokens.
        UnsupportedError: The model is neither, or has no tokenizer that is known.
    """
    meta = model.graph.meta
    if meta.get("kind") not in ("decoder", "encoder"):
        raise UnsupportedError("only decoders and encoders are run on tokens", found=meta.get("kind", "no kind"))
    context = int(meta.get("context", 0) or LENGTH)  # type: ignore[arg-type]
    length = min(length or LENGTH, context)
    if path.endswith((".npz", ".npy")):
        vocab = meta.get("vocab")
        return _limited(_arrays(path, length, vocab if isinstance(vocab, int) else 0), tokens, path)
    return _limited(_from_text(model, path, length), tokens, path)


def _limited(sequences: Iterator[Sequence[int]], tokens: int, path: str) -> Samples:
    chosen: list[Sequence[int]] = []
    left = tokens
    for sequence in sequences:
        if len(sequence) < 2:
            continue
        if left < 2:
            break
        chosen.append(sequence[:left])
        left -= len(chosen[-1])
    if not chosen:
        raise BadArgumentError("there are no tokens to run the model on", where=path)
    lengths = np.array([len(sequence) for sequence in chosen], np.int64)
    ids = np.zeros((len(chosen), lengths.max()), np.int64)
    for row, sequence in zip(ids, chosen, strict=True):
        row[: len(sequence)] = sequence
    return Samples(ids, lengths)


def _arrays(path: str, length: int, vocab: int) -> Iterator[Sequence[int]]:
    arrays = read_arrays(path) if path.endswith(".npz") else {"input_ids": read_array(path)}
    if "input_ids" not in arrays or arrays["input_ids"].dtype.kind not in "iu" or arrays["input_ids"].ndim > 2:
        raise BadArgumentError(
            "no token ids", where=path, found=", ".join(arrays), allowed="input_ids, integers [n, t]"
        )
    ids = np.atleast_2d(arrays["input_ids"])
    mask = np.atleast_2d(arrays["attention_mask"]) if "attention_mask" in arrays else np.ones_like(ids)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < (vocab or 1 << 31):
        outlier = int(ids.min() if int(ids.min()) < 0 else ids.max())
        raise BadArgumentError(
            "a token id lies outside of the vocabulary",
            where=path,
            found=outlier,
            allowed=f"0..{(vocab or 1 << 31) - 1}",
        )
    if mask.shape != ids.shape:
        raise BadArgumentError(
            "ids and mask are of different shapes", where=path, found=mask.shape, allowed=str(list(ids.shape))
        )
    for row, there in zip(ids.astype(np.int64), mask, strict=True):
        sequence = row[there.astype(bool)]
        for start in range(0, len(sequence), length):
            yield sequence[start : start + length].tolist()


def _from_text(model: Model, path: str, length: int) -> Iterator[list[int]]:
    text, encode = read_text(path), tokenizer_of(model)
    if not text.strip():
        return
    if model.graph.meta.get("kind") == "encoder":
        for line in text.splitlines():
            if line.strip():
                yield encode(line.strip(), True)[:length]
        return
    first = model.graph.meta.get("bos_token_id")
    begin = [int(first)] if isinstance(first, int) else []
    documents = [part.strip() for part in text.split(SEPARATOR)]
    if sum(map(bool, documents)) > 1:
        yield from ((begin + encode(part, False))[:length] for part in documents if part)
        return
    ids, step = encode(text, False), length - len(begin)
    for start in range(0, len(ids), step):
        yield begin + ids[start : start + step]


class Encode:
    """A text to ids, by the tokenizer that comes with a model: tokenizer.json, or a SentencePiece model."""

    def __init__(self, model: Model) -> None:
        files = {file.path: file.data for file in model.files}
        self._fast: Any = None
        self._pieces: Any = None
        if "tokenizer.json" in files:
            self._fast = open_tokenizer(bytes(files["tokenizer.json"].read()), model.path, _PURPOSE)
        elif "tokenizer.model" in files:
            self._pieces = open_pieces(bytes(files["tokenizer.model"].read()), model.path, _PURPOSE)
        else:
            raise UnsupportedError(
                "the model has no tokenizer",
                where=model.path,
                allowed="a tokenizer.json or tokenizer.model beside it",
                todo="Give token ids as .npz or .npy.",
            )

    def __call__(self, text: str, special: bool) -> list[int]:
        """The ids of a text, with the special tokens around it or without."""
        if self._fast is not None:
            ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
            return ids
        pieces: list[int] = self._pieces.encode(text)
        return pieces


def tokenizer_of(model: Model) -> Encode:
    """The tokenizer of a model; UnsupportedError where it has none, or its package is missing."""
    return Encode(model)


def read_text(path: str, what: str = "the text") -> str:
    """Reads a text file, at most its first 64 MB; BadArgumentError, which says `what` it is, for a folder."""
    folder = Folder(path, trust_links=True)
    if not folder.only:
        raise BadArgumentError(f"{what} is a folder", where=path, allowed="a text file")
    file = folder.open(folder.only)
    try:
        return file.read(0, min(file.size, _TEXT_LIMIT)).decode("utf-8", "replace")
    finally:
        file.close()
