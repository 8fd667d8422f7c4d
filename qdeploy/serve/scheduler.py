"""One thread that owns the engine: it lets answers in, steps all of them together, and tells what came of it.

Handlers hand over a `Generation` and are told of events; nothing else crosses the two. An answer joins and leaves
between two steps. Whose memory is promised runs to its end; who does not fit yet waits, first come, first served, and
is refused only where nothing runs whose end would make room.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque

from qdeploy.errors import QdeployError
from qdeploy.native import Engine, NoMemoryError, Runtime, UnderFloorError
from qdeploy.native.engine import Sequence
from qdeploy.serve.generation import Answer, Failed, Generation
from qdeploy.serve.metrics import Metrics, budget_of
from qdeploy.serve.refusal import Refusal

_BLOCK = 64
"""Tokens of a block of keys and values."""


class Scheduler:
    """Continuous batching over one engine.

    Args:
        model: A decoder in the runtime.
        sequences: Answers that run at once.
        metrics: Is told of times and counts.
        ends: Tokens that end an answer.
        context: Tokens that a sequence can have.
    """

    def __init__(self, model: Runtime, *, sequences: int, metrics: Metrics, ends: frozenset[int], context: int) -> None:
        self._model, self._metrics, self._ends, self._context = model, metrics, ends, context
        self.engine = _engine(model, sequences, context)
        self._sequences = sequences
        self._inbox: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._waiting: deque[Answer] = deque()
        self._running: dict[Sequence, Answer] = {}
        self._thread = threading.Thread(target=self._run, name="qdeploy-scheduler", daemon=True)
        self._closing = False
        metrics.watch(self._waits, self._runs)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, work: Generation) -> None:
        """Hands over a generation; from any thread."""
        work.arrived = time.monotonic()
        self._inbox.put(work)

    def close(self) -> None:
        """Ends what runs with an error, then the thread and the engine."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self.engine.close()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def _waits(self) -> int:
        return len(self._waiting) + self._inbox.qsize()

    def _runs(self) -> int:
        return len(self._running)

    def _run(self) -> None:
        while not self._closing:
            self._receive()
            self._drop()
            self._admit()
            if self._running and not self._closing:
                self._step()
        refusal = Refusal(503, "the server is shutting down", code="shutdown")
        for answer in [*self._running.values(), *self._waiting]:
            self._fail(answer.work, refusal)

    def _receive(self) -> None:
        """Takes in what came; waits for it where there is nothing else to do."""
        while not self._closing:
            idle = not self._running and not self._waiting
            try:
                work = self._inbox.get(block=idle)
            except queue.Empty:
                return
            if work is None:
                self._closing = True
                return
            try:
                self._waiting.append(Answer(work, 0, self._model.tokenizer, self._ends))
            except Exception as error:  # whatever one request causes, the others go on
                work.tell(Failed(error))

    def _drop(self) -> None:
        """Frees the places of whom nobody waits for, and of whom time is up."""
        now = time.monotonic()
        for answer in [*self._running.values(), *self._waiting]:
            if answer.work.cancelled:
                self._metrics.cancelled.inc()
                self._remove(answer.work)
            elif now > answer.work.deadline:
                self._fail(answer.work, Refusal(504, "the answer took longer than the server allows", code="deadline"))

    def _admit(self) -> None:
        """Opens sequences for who waits, as far as there is room."""
        while self._waiting and len(self._running) < self._sequences:
            answer = self._waiting[0]
            room = min(self._context, len(answer.work.ids) + max(1, answer.work.most))
            try:
                sequence = self.engine.open(answer.first_ids, room)
            except (UnderFloorError, NoMemoryError) as error:
                if self._running:
                    return
                self._fail(answer.work, error)
                continue
            except Exception as error:  # whatever one request causes, the others go on
                self._fail(answer.work, error)
                continue
            self._waiting.popleft()
            answer.sequence, answer.reused = sequence, sequence.reused
            self._running[sequence] = answer
            self._metrics.admitted(time.monotonic() - answer.work.arrived, len(answer.work.ids), sequence.reused)

    def _step(self) -> None:
        try:
            ready = self.engine.step()
        except QdeployError as error:
            for answer in list(self._running.values()):
                self._fail(answer.work, error)
            return
        stats = self.engine.stats
        self._metrics.stepped(stats["rung"], stats["tokens"], stats["nanoseconds"])
        for answer in self._running.values():
            answer.stepped(stats["rung"])
        for sequence in ready:
            ready_answer = self._running.get(sequence)
            if ready_answer is not None:
                self._advance(ready_answer, sequence)

    def _advance(self, answer: Answer, sequence: Sequence) -> None:
        try:
            more = answer.advance(sequence, self._fork)
            self._measure(answer)
            if more:
                sequence.push(more)
                return
            self._close(answer)
            answer.end()
        except Exception as error:  # whatever one request causes, the others go on
            self._fail(answer.work, error)

    def _fork(self, first: Answer) -> None:
        """The other answers share the prompt of the first; who has no room yet waits, and opens it anew."""
        if first.index > 0:
            return
        for index in range(1, first.work.choices):
            answer = Answer(first.work, index, self._model.tokenizer, self._ends)
            answer.reused = len(first.work.ids)
            try:
                if len(self._running) >= self._sequences or first.sequence is None:
                    raise NoMemoryError("no place is free")
                answer.sequence = first.sequence.fork()
            except (UnderFloorError, NoMemoryError):
                self._waiting.appendleft(answer)
                continue
            answer.stepped(first.rung)
            self._running[answer.sequence] = answer
            self._advance(answer, answer.sequence)

    def _measure(self, answer: Answer) -> None:
        now = time.monotonic()
        if answer.tokens == 1:
            self._metrics.first_token.observe(now - answer.work.arrived)
        elif answer.tokens > 1:
            self._metrics.between_tokens.observe(now - answer.last_token_at)
        answer.last_token_at = now
        self._metrics.generated.inc()

    def _close(self, answer: Answer) -> None:
        if answer.sequence is not None:
            self._running.pop(answer.sequence, None)
            answer.sequence.close()
            answer.sequence = None

    def _remove(self, work: Generation) -> None:
        for answer in [a for a in self._running.values() if a.work is work]:
            self._close(answer)
        self._waiting = deque(a for a in self._waiting if a.work is not work)

    def _fail(self, work: Generation, error: Exception) -> None:
        self._remove(work)
        work.cancel()
        work.tell(Failed(error))


def _engine(model: Runtime, sequences: int, context: int) -> Engine:
    """The engine; without a budget, the prompt cache may take as much again as all sequences that are full."""
    if budget_of(model.stats):
        return Engine(model, sequences=sequences)
    with Engine(model, sequences=sequences) as trial:
        block = trial.stats["block_bytes"]
    return Engine(model, sequences=sequences, kv=2 * sequences * -(-context // _BLOCK) * block)
