"""Many sequences of one model, in one step at a time: what a server runs on.

    with Runtime("model.qd", memory="2GB", session=False) as model, Engine(model, sequences=16) as engine:
        talks = [engine.open(ids, context=512) for ids in prompts]
        while not engine.idle:
            for ready in engine.step():
                ready.push([ready.sample(temperature=0.7, seed=1)])

The bits of a sequence depend on its tokens and on the rungs of its steps: not on the others of the batch, nor on what
the prompt cache had. An engine and its sequences are used by one thread at a time; a step runs without the
interpreter's lock, and the memory of the model may be set from any thread meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError
from qdeploy.native.arguments import sampling_of, token_ids
from qdeploy.native.library import byte_count, call, library
from qdeploy.native.runtime import Runtime

Ids = Items[int] | npt.NDArray[Any]


class Engine:
    """Sequences of a model that step together.

    Args:
        model: Of a decoder; `session=False` opens one without a cache of its own.
        sequences: Open at once, at most 64.
        kv: Most bytes of keys and values, the prompt cache included ("1GB"); None: as the model's memory allows.
        rows: Tokens of a step, of all sequences; 0: 64.

    Raises:
        UnsupportedError: The model is an encoder.
        UnderFloorError: The memory of the model does not suffice.
    """

    def __init__(self, model: Runtime, *, sequences: int = 16, kv: int | str | None = None, rows: int = 0) -> None:
        self._ffi, self._lib = library()
        self.model = model
        self._open_sequences: dict[Any, Sequence] = {}
        size = self._ffi.sizeof("qd_engine_options")
        options = self._ffi.new("qd_engine_options *", [size, sequences, rows, 0, 0 if kv is None else byte_count(kv)])
        out = self._ffi.new("qd_engine **")
        self._engine = None
        call(self._lib.qd_engine_open, model.handle, options, out, where=model.path)
        self._engine = out[0]
        self._ready = self._ffi.new("qd_sequence *[]", sequences or 16)
        model.engines.add(self)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all sequences and gives everything back."""
        for sequence in list(self._open_sequences.values()):
            sequence.close()
        if self._engine is not None:
            self._lib.qd_engine_close(self._engine)
            self._engine = None

    def open(self, ids: Ids, context: int) -> Sequence:
        """A new sequence.

        Args:
            ids: Its prompt, at least one token; what the prompt cache has of it is not computed again.
            context: The most tokens that it will have. Their memory is promised now.

        Raises:
            UnderFloorError: The memory does not suffice; `floor` would.
            NoMemoryError: `kv` or the machine does not suffice.
            BadArgumentError: A token that is none, more tokens than the context, or as many sequences as there may be.
        """
        tokens = token_ids(ids)
        pointer = self._ffi.from_buffer("int32_t[]", tokens)
        return self._new(self._lib.qd_sequence_open, self._handle(), pointer, tokens.size, context)

    def restore(self, path: str | os.PathLike[str], context: int) -> Sequence:
        """A sequence that was saved by `Sequence.save`, of the same model and kind of cache."""
        return self._new(self._lib.qd_sequence_restore, self._handle(), os.fsencode(path), context)

    def step(self) -> list[Sequence]:
        """One step; returns the sequences whose logits are ready since."""
        count = self._ffi.new("size_t *")
        call(
            self._lib.qd_engine_step,
            self._handle(),
            self._ready,
            len(self._ready),
            count,
            where=self.model.path,
        )
        return [self._open_sequences[self._ready[i]] for i in range(count[0])]

    @property
    def stats(self) -> dict[str, int]:
        """The numbers of `qd_engine_stats` (runtime/include/qdeploy.h) by their names."""
        stats = self._ffi.new("qd_engine_stats *", [self._ffi.sizeof("qd_engine_stats")])
        self._lib.qd_engine_info(self._handle(), stats)
        return {name: getattr(stats, name) for name, _ in self._ffi.typeof("qd_engine_stats").fields if name != "size"}

    @property
    def idle(self) -> bool:
        """Whether no sequence has tokens that wait for a step."""
        return self.stats["waiting"] == 0

    def _handle(self) -> Any:
        if self._engine is None:
            raise BadArgumentError("the engine is closed", where=self.model.path)
        return self._engine

    def _new(self, function: Any, *arguments: Any) -> Sequence:
        out = self._ffi.new("qd_sequence **")
        call(function, *arguments, out, where=self.model.path)
        return Sequence(self, out[0])


class Sequence:
    """Tokens of one text, their keys and values, and the logits behind them. Made by `Engine.open`."""

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine = engine
        self._ffi, self._lib = library()
        self._sequence: Any = handle
        engine._open_sequences[handle] = self

    def close(self) -> None:
        """Gives its memory back; full blocks of its tokens stay in the prompt cache as long as there is room."""
        if self._sequence is None:
            return
        del self.engine._open_sequences[self._sequence]
        self._lib.qd_sequence_close(self._sequence)
        self._sequence = None

    def __len__(self) -> int:
        return int(self._lib.qd_sequence_length(self._handle()))

    @property
    def reused(self) -> int:
        """Tokens of its prompt that came from the prompt cache."""
        return int(self._lib.qd_sequence_reused(self._handle()))

    @property
    def logits(self) -> npt.NDArray[np.float32] | None:
        """Float32 [vocab] behind its last token; None while tokens wait."""
        pointer = self._lib.qd_sequence_logits(self._handle())
        if pointer == self._ffi.NULL:
            return None
        return np.frombuffer(self._ffi.buffer(pointer, 4 * self.engine.model.vocab), np.float32).copy()

    def push(self, ids: Ids) -> None:
        """More tokens, which the next steps take."""
        tokens = token_ids(ids)
        self._call(self._lib.qd_sequence_push, self._ffi.from_buffer("int32_t[]", tokens), tokens.size)

    def sample(self, mask: npt.NDArray[np.uint32] | None = None, **sampling: float) -> int:
        """Chooses the next token.

        Args:
            mask: uint32 [ceil(vocab / 32)]; bit t % 32 of word t // 32 allows token t. None: all are.
            sampling: temperature, top_k, top_p, min_p, repetition_penalty, last_n, seed; greedy without.
        """
        words = -(-self.engine.model.vocab // 32)
        if mask is not None and (mask.dtype != np.uint32 or mask.size != words or not mask.flags.c_contiguous):
            raise BadArgumentError("mask", found=f"{mask.dtype} {mask.shape}", allowed=f"uint32 [{words}], contiguous")
        settings, out = sampling_of(sampling), self._ffi.new("int32_t *")
        words_pointer = self._ffi.NULL if mask is None else self._ffi.from_buffer("uint32_t[]", mask)
        self._call(self._lib.qd_sequence_sample, settings, words_pointer, out)
        return int(out[0])

    def fork(self) -> Sequence:
        """Another sequence with the same tokens and logits; full blocks are shared."""
        return self.engine._new(self._lib.qd_sequence_fork, self._handle())

    def trim(self, keep: int) -> None:
        """Forgets all tokens from `keep` on; logits come with the next token."""
        self._call(self._lib.qd_sequence_trim, keep)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tokens, keys and values into a file with a checksum, in place of the one of that name."""
        self._call(self._lib.qd_sequence_save, os.fsencode(path))

    def _handle(self) -> Any:
        if self._sequence is None:
            raise BadArgumentError("the sequence is closed", where=self.engine.model.path)
        return self._sequence

    def _call(self, function: Any, *arguments: Any) -> None:
        call(function, self._handle(), *arguments, where=self.engine.model.path)
