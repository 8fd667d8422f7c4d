"""What the handlers share: the model, its tokenizer and templates, the scheduler, the limits, and how it computes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from qdeploy.chat import FILES
from qdeploy.native import Runtime
from qdeploy.serve.generation import Ended, Event, Failed, Generation
from qdeploy.serve.limits import Limits
from qdeploy.serve.metrics import Metrics, budget_of
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.scheduler import Scheduler

_CONTEXT = 4096
"""Tokens of a sequence where the model does not say how many it was made for."""


class Service:
    """A model that is served.

    Args:
        model: In the runtime; a decoder's without a session of its own.
        name: By which clients call it; "" takes the file's.
        limits: What clients may ask for.
        context: Tokens of a prompt and its answer together; 0: the model's own.
    """

    def __init__(self, model: Runtime, name: str = "", limits: Limits | None = None, context: int = 0) -> None:
        self.model, self.limits = model, limits or Limits()
        self.name = name or Path(model.path).stem
        self.started = int(time.time())
        own = int(model.meta.get("context") or _CONTEXT)
        self.context = min(context or own, own)
        self.metrics = Metrics(model)
        self.encoding = asyncio.Lock()  # an encoder runs one text at a time
        self.files = {name: data for name in FILES if (data := model.metadata(name)) is not None}
        self._rungs = model.rungs()
        ends = model.meta.get("eos_token_id")
        self.ends = frozenset(map(int, ends if isinstance(ends, list) else [] if ends is None else [ends]))
        self.scheduler = None if model.encoder else self._scheduler()

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            self.model,
            sequences=self.limits.sequences,
            metrics=self.metrics,
            ends=self.ends,
            context=self.context,
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @cached_property
    def grammar_tokenizer(self) -> Any:
        """The vocabulary as llguidance reads it."""
        from llguidance import LLTokenizer

        return LLTokenizer(self.tokenizer.to_str(), n_vocab=self.model.vocab, eos_token=sorted(self.ends) or None)

    @cached_property
    def template(self) -> str:
        """All that the model has of chat templates, as text: the forms of its tool calls are seen in it."""
        return "\n".join(data.decode(errors="replace") for data in self.files.values())

    def start(self) -> None:
        """Begins to answer."""
        if self.scheduler is not None:
            self.scheduler.start()

    def close(self) -> None:
        """Ends what runs."""
        if self.scheduler is not None:
            self.scheduler.close()

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.scheduler is None or self.scheduler.alive

    def check_name(self, name: str) -> None:
        """Refuses a model that is not served."""
        if name and name != self.name:
            raise Refusal(404, f"no such model; there is: {self.name}", param="model", code="model_not_found")

    def computed(self, rung: int = 0) -> dict[str, Any]:
        """How an answer was computed, under the key "qdeploy" of each.

        Args:
            rung: Of its last step; 0: the one of now.
        """
        stats = self.model.stats
        rung = rung or stats["rung"]
        return {
            "bits": round(self.bits(rung), 4),
            "rung": rung,
            "rungs": stats["rungs"],
            "memory": stats["total"],
            "budget": budget_of(stats),
        }

    def bits(self, rung: int) -> float:
        """Bits per weight of the first blocks of the stack."""
        return 8 * self._rungs[rung - 1][0] / max(1, self.model.parameters) if rung and self._rungs else 0.0

    def planned(self, budget: int) -> dict[str, Any]:
        """What a budget gives beside the sequences that are open now: bytes, bits, predicted loss, measured speed."""
        stats = self.model.stats
        beside = stats["floor"] - (self._rungs[0][0] if self._rungs else 0)
        rung = sum(beside + size <= budget for size, _ in self._rungs) if budget else len(self._rungs)
        plan: dict[str, Any] = {
            "budget": budget,
            "floor": stats["floor"],
            "ceiling": stats["ceiling"],
            "fits": rung > 0,
        }
        if not rung:
            return plan
        size, loss = self._rungs[rung - 1]
        tokens, nanoseconds = self.metrics.rates.get(rung, (0, 0))
        speed = tokens / nanoseconds * 1e9 if nanoseconds else None
        plan |= {"rung": rung, "rungs": len(self._rungs), "bytes": beside + size, "bits": round(self.bits(rung), 4)}
        return plan | {"predicted_loss": loss, "measured_tokens_per_second": speed}

    async def run(self, make: Callable[[Callable[[Event], None]], Generation]) -> AsyncGenerator[Event, None]:
        """Carries out a generation; ends with its last answer.

        Args:
            make: Makes the generation around the function that is told of events.

        Raises:
            Refusal: Or the error with which it ended.
        """
        if self.scheduler is None:
            raise Refusal(400, "this model gives vectors, and no text", param="model")
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop is closed: nobody waits
                work.cancel()

        work = make(tell)
        left = work.choices
        self.scheduler.submit(work)
        try:
            while left:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Ended)
                yield event
        finally:
            work.cancel()
