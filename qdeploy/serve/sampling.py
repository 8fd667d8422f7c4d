"""Which token comes next: the settings of a request, and the draw where its logits are moved first.

A request without biases and penalties of counts is sampled by the runtime. Those two need the logits themselves: they
are moved here, and drawn by the runtime's rule in float64, so that a bias of nothing changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """Settings; the defaults are greedy.

    Args:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        frequency_penalty: Taken from a token's logit for each time that the answer has it; 0 is off.
        presence_penalty: Taken from the logit of every token that the answer has; 0 is off.
        bias: Token -> what is added to its logit.
        seed: Of the draws, which depend on it and on the number of tokens alone.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def moves_logits(self) -> bool:
        """Whether logits change in a way that the runtime does not know."""
        return bool(self.bias or self.frequency_penalty or self.presence_penalty)

    def runtime_options(self) -> dict[str, Any]:
        """What `Sequence.sample` takes."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}


def draw(
    logits: Logits, sampling: Sampling, tokens: list[int], answer: Counter[int], mask: npt.NDArray[np.uint32] | None
) -> int:
    """Chooses a token.

    Args:
        logits: float32 [vocab]; is changed.
        sampling: The settings.
        tokens: All tokens of the sequence, for the repetition penalty and the draw.
        answer: How often the answer has each token.
        mask: uint32 words whose bits allow tokens; None allows all.
    """
    for token, value in sampling.bias.items():
        logits[token] += value
    for token, count in answer.items():
        logits[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    if sampling.repetition_penalty != 1:
        seen = np.unique(tokens)
        penalty = np.float32(sampling.repetition_penalty)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=logits.size).astype(bool)
        logits[~allowed] = -np.inf
    logits[np.isnan(logits)] = -np.inf
    best = int(np.argmax(logits))
    if sampling.temperature == 0 or not np.isfinite(logits[best]):
        return best
    return _drawn(logits, sampling, len(tokens))


def _drawn(logits: Logits, sampling: Sampling, count: int) -> int:
    """A draw from what top-k, top-p and min-p leave."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order].astype(np.float64) - float(logits[order[0]])) / np.float32(sampling.temperature))
    before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
    stays = (weights >= np.float32(sampling.min_p)) & (before < np.float32(sampling.top_p) * weights.sum())
    if sampling.top_k:
        stays[sampling.top_k :] = False
    stays[0] = True
    taken = int(np.argmin(stays)) if not stays.all() else stays.size
    sums = np.cumsum(weights[:taken])
    point = (_splitmix(_splitmix(sampling.seed) + count) >> 11) * 2.0**-53 * float(sums[-1])
    return int(order[min(int(np.searchsorted(sums, point, side="right")), taken - 1)])


def _splitmix(x: int) -> int:
    """SplitMix64 (Steele, Lea and Flood 2014), as the runtime draws."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
