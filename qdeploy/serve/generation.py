"""What the scheduler works on: a generation of one or more answers to a prompt, and the events that tell of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qdeploy.native.engine import Sequence as EngineSequence
from qdeploy.serve.sampling import Sampling, draw
from qdeploy.serve.scores import Score, score
from qdeploy.stopping import Reason, StopTexts
from qdeploy.streaming import TextStream


class Grammar(Protocol):
    """What an answer may be: which tokens may come next."""

    def mask(self) -> npt.NDArray[np.uint32]:
        """uint32 words whose bits allow tokens."""

    def take(self, token: int) -> None:
        """The token that came."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""


@dataclass(frozen=True)
class Piece:
    """More of an answer: text that is certain now, and the scores of the tokens since the last piece."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class PromptScores:
    """The scores of the prompt's own tokens."""

    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Ended:
    """An answer is complete.

    Args:
        index: Which.
        reason: Why it ended.
        tokens: How many it has.
        reused: Tokens of its prompt that came from the prompt cache.
        rung: Of its last step.
        rungs: The lowest and highest of its steps.
    """

    index: int
    reason: Reason
    tokens: int
    reused: int
    rung: int
    rungs: tuple[int, int]


@dataclass(frozen=True)
class Failed:
    """The whole generation ended with an error."""

    error: Exception


Event = Piece | PromptScores | Ended | Failed


@dataclass
class Generation:
    """A request to the scheduler.

    Args:
        ids: The prompt.
        most: Tokens of an answer at most; 0: only the prompt is scored.
        tell: Takes what happens; called in the scheduler's thread.
        deadline: On the monotonic clock, in seconds.
        choices: How many answers.
        sampling: Settings; answer i draws with its seed plus i.
        stops: Texts that end an answer.
        top: Alternatives per token with scores; None: no scores.
        score_prompt: Whether the prompt's tokens are scored as well, one step each.
        grammar: Makes what binds an answer; None: nothing does.
    """

    ids: list[int]
    most: int
    tell: Callable[[Event], None]
    deadline: float
    choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    top: int | None = None
    score_prompt: bool = False
    grammar: Callable[[], Grammar] | None = None
    cancelled: bool = False
    arrived: float = 0.0

    def cancel(self) -> None:
        """Nobody waits for the answers any more; their places are free before the next step. From any thread."""
        self.cancelled = True


class Answer:
    """One of a generation's answers on its way."""

    def __init__(self, work: Generation, index: int, tokenizer: Any, ends: frozenset[int]) -> None:
        self.work, self.index = work, index
        self.sequence: EngineSequence | None = None
        self.reason: Reason = ""
        self.reused = 0
        self.last_token_at = 0.0
        self._ends = ends
        self._stream, self._stops = TextStream(tokenizer, work.ids), StopTexts(work.stops)
        self._grammar = work.grammar() if work.grammar else None
        self._tokens: list[int] = []
        self._counts: Counter[int] = Counter()
        self._untold: list[Score] = []
        self._untold_tokens: list[int] = []
        self._prompt_scores: list[Score] = []
        self._rungs = (0, 0)
        self.rung = 0

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self._tokens)

    @property
    def first_ids(self) -> list[int]:
        """What its sequence is opened with: the prompt, or where that is scored, its first token alone."""
        return self.work.ids[:1] if self.work.score_prompt else self.work.ids

    def stepped(self, rung: int) -> None:
        """A step with this rung took tokens of it."""
        low, high = self._rungs
        self.rung, self._rungs = rung, (min(low or rung, rung), max(high, rung))

    def advance(self, sequence: EngineSequence, siblings: Callable[[Answer], None]) -> list[int]:
        """Takes the logits that are ready.

        Args:
            sequence: Of this answer.
            siblings: Is called when the prompt is complete, before the first token is chosen.

        Returns:
            Tokens to go on with; none where the answer is complete, and `reason` says why.
        """
        length = len(sequence)
        if length < len(self.work.ids):
            return self._score_prompt(sequence, length)
        if not self._tokens:
            self._prompt_complete()
            siblings(self)
        if self.work.most == 0:
            self.reason = "length"
            return []
        token = self._choose(sequence)
        if token in self._ends:
            self.reason = "stop"
            return []
        self._take(token)
        if not self.reason and len(self._tokens) >= self.work.most:
            self.reason = "length"
        return [] if self.reason else [token]

    def end(self) -> None:
        """Tells what was held back, and that it is complete."""
        text = ""
        if not self._stops.stopped:
            text = self._stops.add(self._stream.end()) + self._stops.end()
        self._tell(text)
        ended = Ended(self.index, self.reason, len(self._tokens), self.reused, self.rung, self._rungs)
        self.work.tell(ended)

    def _score_prompt(self, sequence: EngineSequence, length: int) -> list[int]:
        token = self.work.ids[length]
        logits = sequence.logits
        if logits is not None:
            self._prompt_scores.append(score(logits, token, self.work.top or 0))
        return [token]

    def _prompt_complete(self) -> None:
        if self.work.score_prompt and self.index == 0:
            self.work.tell(PromptScores((Score(self.work.ids[0], None), *self._prompt_scores)))

    def _choose(self, sequence: EngineSequence) -> int:
        sampling = self.work.sampling
        mask = self._grammar.mask() if self._grammar else None
        seed = (sampling.seed + self.index) % (1 << 64)
        logits = sequence.logits if sampling.moves_logits or self.work.top is not None else None
        if logits is not None and sampling.moves_logits:
            own = Sampling(**{**vars(sampling), "seed": seed})
            token = draw(logits.copy(), own, [*self.work.ids, *self._tokens], self._counts, mask)
        else:
            token = sequence.sample(mask, **{**sampling.runtime_options(), "seed": seed})
        if logits is not None and self.work.top is not None and token not in self._ends:
            self._untold.append(score(logits, token, self.work.top))
        return token

    def _take(self, token: int) -> None:
        self._tokens.append(token)
        self._counts[token] += 1
        self._untold_tokens.append(token)
        if self._grammar is not None:
            self._grammar.take(token)
        self._tell(self._stops.add(self._stream.add(token)))
        if self._stops.stopped or (self._grammar is not None and self._grammar.complete):
            self.reason = "stop"

    def _tell(self, text: str) -> None:
        if not text and not (self.reason and self._untold_tokens):
            return
        self.work.tell(Piece(self.index, text, tuple(self._untold_tokens), tuple(self._untold)))
        self._untold, self._untold_tokens = [], []
