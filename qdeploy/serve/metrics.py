"""What the server measures, in Prometheus's text form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qdeploy.native import Runtime

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_PARTS = ("weights", "kv", "prompt_cache", "scratch", "fixed")


class Metrics:
    """Counters and gauges of one server; each has a registry of its own.

    Args:
        model: Whose memory is shown.
    """

    def __init__(self, model: Runtime) -> None:
        self._model = model
        self.registry = CollectorRegistry()
        self._last_rung = 0
        self.rates: dict[int, tuple[int, int]] = {}
        """Rung -> tokens and nanoseconds of its steps so far."""
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("qdeploy_requests", "Answered requests.", ["path", "status"], **named)
        self.refused = Counter(
            "qdeploy_refusals", "Requests refused before they were carried out.", ["status"], **named
        )
        self.cancelled = Counter("qdeploy_cancelled", "Generations whose client went away.", **named)
        self.generated = Counter("qdeploy_generated_tokens", "Tokens of answers.", **named)
        self._prompted = Counter("qdeploy_prompt_tokens", "Tokens of prompts.", **named)
        self._reused = Counter("qdeploy_reused_tokens", "Prompt tokens that came from the prompt cache.", **named)
        self._shrinks = Counter("qdeploy_shrinks", "Steps that had fewer planes than the one before.", **named)
        self._queue = Histogram("qdeploy_queue_seconds", "Wait for a place.", buckets=_SECONDS, **named)
        self.first_token = Histogram("qdeploy_first_token_seconds", "To the first token.", buckets=_SECONDS, **named)
        self.between_tokens = Histogram(
            "qdeploy_between_tokens_seconds", "From one token to the next.", buckets=_STEP_SECONDS, **named
        )
        self._gauge("qdeploy_rung", "Blocks of the stack in use.", lambda: self._stats()["rung"])
        self._gauge("qdeploy_memory_budget_bytes", "What may be held; 0: no limit.", lambda: budget_of(self._stats()))
        self._gauge("qdeploy_kv_cache_usage", "Keys and values of all that has room for them.", self._kv_usage)
        parts = Gauge("qdeploy_memory_bytes", "What is held.", ["part"], **named)
        for part in _PARTS:
            parts.labels(part).set_function(self._part(part))

    def counts(self) -> dict[str, int]:
        """Tokens generated so far, and answers that run and wait now."""
        names = {"generated_tokens": "qdeploy_generated_tokens_total"}
        names |= {"running": "qdeploy_requests_running", "waiting": "qdeploy_requests_waiting"}
        return {key: int(self.registry.get_sample_value(name) or 0) for key, name in names.items()}

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Shows the lengths of the queue and of the batch."""
        self._gauge("qdeploy_requests_waiting", "Answers that wait for a place.", waiting)
        self._gauge("qdeploy_requests_running", "Answers in the batch.", running)

    def admitted(self, waited: float, prompt: int, reused: int) -> None:
        """A sequence was opened."""
        self._queue.observe(waited)
        self._prompted.inc(prompt)
        self._reused.inc(reused)

    def stepped(self, rung: int, tokens: int, nanoseconds: int) -> None:
        """A step was made."""
        if rung < self._last_rung:
            self._shrinks.inc()
        self._last_rung = rung
        known = self.rates.get(rung, (0, 0))
        self.rates[rung] = (known[0] + tokens, known[1] + nanoseconds)

    def page(self) -> bytes:
        """All of it as text."""
        return generate_latest(self.registry)

    def _stats(self) -> dict[str, int]:
        return self._model.stats

    def _part(self, name: str) -> Callable[[], float]:
        return lambda: float(self._stats()[name])

    def _kv_usage(self) -> float:
        stats = self._stats()
        free = max(0, budget_of(stats) - stats["floor"]) or 1
        used = max(0, stats["kv"] - stats["prompt_cache"])
        return used / (used + free)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)


def budget_of(stats: dict[str, int]) -> int:
    """The budget in bytes; 0 where there is no limit."""
    return stats["budget"] if stats["budget"] < 1 << 63 else 0
