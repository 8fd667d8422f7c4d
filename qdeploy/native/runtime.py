"""The native runtime in Python: a decoder or encoder that lives inside a number of bytes, which may change any time.

    with Runtime("model.qd", memory="350MB") as model:
        for piece in model.generate("Once upon a time", tokens=100):
            print(piece, end="")
        model.memory = "250MB"  # takes effect before the next token

Calls into the library release the interpreter's lock. A Runtime is used by one thread at a time, but for `memory`,
`stats` and `cancel`, which any thread may use at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Literal
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from qdeploy.chat import Messages, rendered
from qdeploy.errors import BadArgumentError, QdeployError, UnsupportedError
from qdeploy.native.arguments import (
    check_logits,
    check_text,
    meta_of,
    model_path,
    sampling_of,
    thread_count,
    token_ids,
)
from qdeploy.native.budgeting import Budgeted
from qdeploy.native.encoding import alike, run_encoder
from qdeploy.native.library import NoMemoryError, UnderFloorError, byte_count, call, choice, library, status_name
from qdeploy.stopping import Reason, StopTexts
from qdeploy.streaming import TextStream
from qdeploy.tokenizing import open_tokenizer

Float32 = npt.NDArray[np.float32]

_PER_TOKEN = 3  # axes of an output per token: one sequence, tokens, width
_HUGE_PAGES, _SMALL_PAGES = 1, 8
_POOLS = [
    "rungs",
    "rung",
    "pending",
    "budget",
    "total",
    "weights",
    "kv",
    "scratch",
    "fixed",
    "floor",
    "ceiling",
    "peak",
    "prompt_cache",
]
_MOST_ENDS = 64
_MOST_CONTEXT, _LEAST_CONTEXT = 4096, 64
"""Tokens of a cache that nobody chose: at most, and as few as are worth a session."""


def least_memory(path: str | os.PathLike[str], **options: Any) -> int:
    """The least budget that a model file works with, before a session is opened; none of its weights are read for it.

    Args:
        path: A model file, or only its head: its stack may be a hole.
        options: As for `Runtime`.
    """
    try:
        Runtime(path, **{**options, "memory": 1}).close()
    except UnderFloorError as error:
        return error.floor
    return 0


class Runtime(Budgeted):
    """A model file in the native runtime, with one session.

    Args:
        path: What `qdeploy convert --to native` wrote.
        memory: Everything that may be held for the model, in bytes or as "350MB"; None: all of it is loaded.
        threads: 0: one per core.
        context: Tokens that the key/value cache holds; 0: the model's own, at most 4096, and half of it as often as the
            memory, or the machine, has no room for its cache.
        isa: Kernels by name (see `isas`); None: the best, or the environment variable QDEPLOY_ISA.
        activations: "int8", or "exact" for float32 arithmetic.
        kv: Type of the key/value cache.
        huge_pages: Whether weights lie in pages of 2 MiB, which load and go back faster; None: from 64 MiB on.
        session: Whether it has a cache of its own; an `Engine` needs none.

    Raises:
        BadFileError: The file is damaged.
        BadArgumentError: The memory does not suffice; the error names the least that does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory: int | str | None = None,
        threads: int = 0,
        context: int = 0,
        isa: str | None = None,
        activations: Literal["int8", "exact"] = "int8",
        kv: Literal["f16", "int8", "f32"] = "f16",
        huge_pages: bool | None = None,
        session: bool = True,
    ) -> None:
        self._ffi, self._lib = library()
        self.path = model_path(path)
        self._model = self._session = None
        self.engines: WeakSet[Any] = WeakSet()  # they are closed with it
        self.finish_reason: Reason = ""
        """Why the last generation ended: "stop", "length" or "context"; "" while it runs."""
        options = self._ffi.new("qd_options *")
        self._lib.qd_options_init(options)
        name = self._ffi.new("char[]", isa.encode()) if isa else self._ffi.NULL
        options.threads, options.isa = thread_count(threads), name
        options.budget = 0 if memory is None else byte_count(memory)
        options.activations, options.kv_dtype = choice(activations, "int8", "exact"), choice(kv, "f16", "int8", "f32")
        options.flags = 0 if huge_pages is None else _HUGE_PAGES if huge_pages else _SMALL_PAGES
        self._model = self._make("qd_model *", self._lib.qd_open, os.fsencode(self.path), options)
        self._info = self._ffi.new("qd_info *", [self._ffi.sizeof("qd_info")])
        self._lib.qd_model_info(self._model, self._info)
        try:
            if session:
                self._open_session(context)
            else:
                self._session, self._context = self._ffi.NULL, 0
        except QdeployError:
            self.close()
            raise

    def _open_session(self, context: int) -> None:
        """Opens the session, of the longest context that there is room for where nobody asks for one."""
        self._context = context or min(self._info.context or 512, _MOST_CONTEXT)
        while self._session is None:
            try:
                self._session = self._make("qd_session *", self._lib.qd_session_open, self._model, self._context)
            except (UnderFloorError, NoMemoryError):
                if context or self._context <= _LEAST_CONTEXT:
                    raise
                self._context = max(self._context // 2, _LEAST_CONTEXT)

    # ---- life

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back; the object is of no use afterwards."""
        for engine in list(getattr(self, "engines", ())):
            engine.close()
        if getattr(self, "_session", None) is not None:
            self._lib.qd_session_close(self._session)
            self._session = None
        if getattr(self, "_model", None) is not None:
            self._lib.qd_close(self._model)
            self._model = None

    # ---- what it is

    @property
    def isa(self) -> str:
        """Name of the kernels in use."""
        return str(self._ffi.string(self._lib.qd_isa(self._open())).decode())

    @property
    def context(self) -> int:
        """Tokens that the key/value cache holds."""
        return self._context

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self._info.vocab)

    @property
    def parameters(self) -> int:
        """Weights of the matrices."""
        return int(self._info.parameters)

    @property
    def encoder(self) -> bool:
        """Whether the model gives embeddings, not text."""
        return bool(self._info.encoder)

    def metadata(self, key: str) -> bytes | None:
        """An entry of the file's metadata ("tokenizer.json", "config", ...), or None."""
        needed, name = self._ffi.new("size_t *"), key.encode(errors="replace")
        status = self._lib.qd_metadata(self._open(), name, self._ffi.NULL, 0, needed)
        if status_name(status) == "QD_BAD_ARGUMENT":
            return None
        to = self._ffi.new("char[]", max(1, needed[0]))
        self._lib.qd_metadata(self._open(), name, to, needed[0], needed)
        return bytes(self._ffi.buffer(to, needed[0] - 1))  # a zero ends it

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the graph says of itself: kind, context, token ids."""
        return meta_of(self.metadata("meta"), self.path)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the file carries (package tokenizers)."""
        data = self.metadata("tokenizer.json")
        if data is None:
            raise UnsupportedError("the model carries no tokenizer.json", where=self.path, todo="Give token ids.")
        return open_tokenizer(data, self.path, "text in and out of a model")

    @property
    def stats(self) -> dict[str, int]:
        """Memory now by pools, rung, floor, ceiling and peak (bytes), and tokens and nanoseconds of the last step.

        `unreturned` are bytes of the total that the system did not take back, as the process has locked its memory.
        """
        memory, step = self._memory(), self._ffi.new("qd_step *", [self._ffi.sizeof("qd_step")])
        self._lib.qd_step_info(self._live(), step)
        counters = {name: int(getattr(memory, name)) for name in _POOLS}
        return {**counters, "tokens": int(step.tokens), "nanoseconds": int(step.nanoseconds)}

    # ---- running

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._lib.qd_session_length(self._live()))

    def reset(self, keep: int = 0) -> None:
        """Forgets the tokens from `keep` on."""
        self._call(self._lib.qd_session_trim, self._live(), keep)

    def cancel(self) -> None:
        """Makes the running call stop; from any thread."""
        self._lib.qd_cancel(self._live())

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> Float32:
        """Takes tokens into the cache.

        Args:
            ids: At least one token.

        Returns:
            Logits of the token after the last, float32 [vocab].
        """
        if self.encoder:
            raise UnsupportedError(
                "an encoder gives vectors, and no logits", where=self.path, todo="Use Runtime.embed or hidden_states."
            )
        tokens = token_ids(ids)
        logits = np.empty(self.vocab, np.float32)
        past, out = self._from(tokens, "int32_t[]"), self._from(logits, "float[]")
        self._call(self._lib.qd_decode, self._live(), past, tokens.size, out)
        return logits

    def logits(self, ids: Sequence[int] | npt.NDArray[Any]) -> Float32:
        """Logits after every token of a sequence, from an empty cache on: float32 [tokens, vocab].

        Tokens go in one by one, as in decoding. The cache holds them afterwards.
        """
        if not len(ids):
            raise BadArgumentError("there are no tokens")
        self.reset()
        return np.stack([self.decode([int(token)]) for token in ids])

    def run(self, ids: Sequence[int] | npt.NDArray[Any], types: Sequence[int] | None = None) -> dict[str, Float32]:
        """Every output of an encoder by its name, for one sequence of tokens without padding.

        `types` says of each token which of several texts it belongs to; None: there is one.

        Returns:
            Float32 [tokens, width] of an output per token, [1, width] of one per sequence.
        """
        if not self.encoder:
            raise UnsupportedError("a decoder gives logits", where=self.path, todo="Use Runtime.logits or decode.")
        tokens = [int(token) for token in ids]
        return {name: self._run_encoder(tokens, name, self._room(name, len(tokens)), types) for name in self.outputs}

    def _room(self, name: str, tokens: int) -> Float32:
        """An array that takes an output of an encoder."""
        tensor = self._ffi.new("qd_tensor *")
        for index in range(self._info.outputs):
            self._lib.qd_io(self._open(), 1, index, tensor)
            if self._ffi.string(tensor.name).decode() == name:
                per_token = tensor.rank == _PER_TOKEN
                return np.empty((tokens if per_token else 1, int(tensor.shape[tensor.rank - 1])), np.float32)
        raise UnsupportedError("the model has no such output", where=self.path, found=name)

    def sample(self, logits: Float32, ids: Sequence[int] = (), **sampling: float) -> int:
        """Chooses a token.

        Args:
            logits: float32 [vocab].
            ids: The tokens so far, for the repetition penalty.
            sampling: temperature, top_k, top_p, min_p, repetition_penalty, last_n, seed; greedy without.
        """
        settings, out, tokens = sampling_of(sampling), self._ffi.new("int32_t *"), token_ids(ids)
        check_logits(logits, self.vocab)
        scores, past = self._from(np.ascontiguousarray(logits), "float[]"), self._from(tokens, "int32_t[]")
        self._call(self._lib.qd_sample, self._live(), settings, scores, past, tokens.size, out)
        return int(out[0])

    def generate_ids(
        self, ids: Sequence[int], tokens: int = 128, *, fresh: bool = True, **sampling: float
    ) -> Iterator[int]:
        """Continues a row of token ids, one at a time; arguments are those of `generate`."""
        if fresh:
            self.reset()
        self.finish_reason = ""
        so_far, ends = list(ids), self._ends()
        new = so_far
        for _ in range(tokens):
            if new is not so_far and self.length >= self._context:
                self.finish_reason = "context"
                return
            token = self.sample(self.decode(new), so_far, **sampling)
            if token in ends:
                self.finish_reason = "stop"
                return
            yield token
            so_far.append(token)
            new = [token]
        self.finish_reason = "length"

    def generate(
        self,
        prompt: str = "",
        tokens: int = 128,
        *,
        messages: Messages | None = None,
        stop: str | Sequence[str] = (),
        fresh: bool = True,
        **sampling: float,
    ) -> Iterator[str]:
        """Continues a text or a conversation, piece by piece; `finish_reason` says why it ended.

        Args:
            prompt: Text; the tokenizer adds its special tokens.
            tokens: How many at most.
            messages: A conversation in the place of a prompt, put into words by the model's chat template.
            stop: Texts that end it; they are not given out.
            fresh: Forget what the session holds; else the text goes on from there.
            sampling: As for `sample`.

        Yields:
            Text, as soon as it is whole characters.
        """
        ids = self._prompt_ids(prompt, messages)
        stream = TextStream(self.tokenizer, ids)
        stops = StopTexts([stop] if isinstance(stop, str) else stop)
        for token in self.generate_ids(ids, tokens, fresh=fresh, **sampling):
            if piece := stops.add(stream.add(token)):
                yield piece
            if stops.stopped:
                self.finish_reason = "stop"
                return
        if piece := stops.add(stream.end()) + stops.end():
            yield piece

    def _prompt_ids(self, prompt: str, messages: Messages | None) -> list[int]:
        text = prompt if messages is None else rendered(self.metadata, messages, self.path, prompt)
        check_text(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=messages is None).ids
        if not ids:
            raise BadArgumentError("the prompt has no tokens", found=repr(text))
        return ids

    def embed(self, texts: Sequence[str]) -> Float32:
        """Sentence embeddings of an encoder, float32 [texts, hidden].

        Raises:
            UnsupportedError: The model says nothing of how tokens become one vector; see `hidden_states`.
        """
        if "sentence_embedding" not in self.outputs:
            raise UnsupportedError(
                "the model gives a vector per token, and does not say how they become one",
                where=self.path,
                found=", ".join(self.outputs),
                todo="Use Runtime.hidden_states(text), or convert a sentence model (one with modules.json).",
            )
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self._context)
        ids = [self.tokenizer.encode(text).ids for text in texts]
        out = np.empty((len(ids), self._room("sentence_embedding", 1).shape[1]), np.float32)
        for rows in alike(ids):
            room = np.empty((len(rows), out.shape[1]), np.float32)
            out[rows] = self._run_encoder([ids[row] for row in rows], "sentence_embedding", room)
        return out

    def hidden_states(self, text: str) -> Float32:
        """The vectors of a text's tokens in an encoder, float32 [tokens, hidden]."""
        return self._encoded(text, "last_hidden_state")

    def _encoded(self, text: str, output: str) -> Float32:
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self._context)
        ids = self.tokenizer.encode(text).ids
        return self._run_encoder(ids, output, self._room(output, len(ids)))

    def _run_encoder(
        self, ids: Sequence[Any], output: str, out: Float32, types: Sequence[int] | None = None
    ) -> Float32:
        tokens, parts = (np.atleast_2d(np.array(row, np.int32)) for row in (ids, types or ()))
        run_encoder(self._live(), tokens, output, out, self.path, types=parts if types else None)
        return out

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the model gives."""
        tensor, names = self._ffi.new("qd_tensor *"), []
        for index in range(self._info.outputs):
            self._lib.qd_io(self._open(), 1, index, tensor)
            names.append(self._ffi.string(tensor.name).decode())
        return tuple(names)

    # ---- the C side

    def _ends(self) -> set[int]:
        ids = self._ffi.new("int32_t[]", _MOST_ENDS)
        count = self._lib.qd_stop_tokens(self._open(), ids, _MOST_ENDS)
        return set(ids[0 : min(count, _MOST_ENDS)])

    @property
    def handle(self) -> Any:
        """The model in C."""
        return self._open()

    def _open(self) -> Any:
        if self._model is None:
            raise BadArgumentError("the runtime is closed", where=self.path)
        return self._model

    def _live(self) -> Any:
        """The session; BadArgumentError where the runtime is closed."""
        self._open()
        return self._session

    def _from(self, array: npt.NDArray[Any], kind: str) -> Any:
        return self._ffi.from_buffer(kind, array) if array.size else self._ffi.NULL

    def _make(self, kind: str, function: Any, *arguments: Any) -> Any:
        out = self._ffi.new(f"{kind}*")
        self._call(function, *arguments, out)
        return out[0]

    def _call(self, function: Any, *arguments: Any) -> None:
        call(function, *arguments, where=self.path)
