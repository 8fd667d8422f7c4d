"""Alternating updates (AltUp, NeurIPS 2023): several streams of hidden states, of which a layer computes one.

    predicted_i = stream_i + sum_j stream_j * prediction_coefs(modalities(active stream))[i, j]
    ... the layer turns the active prediction into `activated` ...
    corrected_i = predicted_i + (activated - predicted_active) * (correction_coefs(modalities(activated))[i] + 1)
    modalities(x) = tanh(modality_router(norm(x) / hidden))

The other streams begin as projections of the embeddings, and end as projections whose mean with the active one counts;
each projection is brought to the magnitude of the stream that it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.arch.builder import Builder
from qdeploy.arch.stack import Norm

_LEAST = 1e-5
"""What a mean of squares counts as at least."""


@dataclass(frozen=True)
class Streams:
    """The streams of a decoder.

    Attributes:
        count: How many there are.
        active: Which of them a layer computes.
        hidden: Extent of the hidden axis.
        norm: Of the router.
    """

    count: int
    active: int
    hidden: int
    norm: Norm

    def opened(self, builder: Builder, x: str) -> list[str]:
        """The streams that embeddings begin with."""
        return [x, *(self._projected(builder, "altup_projections", i, x, x) for i in range(self.count - 1))]

    def closed(self, builder: Builder, streams: Sequence[str]) -> str:
        """Their mean, behind the projections."""
        total = streams[0]
        for i, stream in enumerate(streams[1:]):
            back = self._projected(builder, "altup_unembed_projections", i, stream, streams[0])
            total = builder.node("Add", total, back, name=f"streams.sum.{i}")
        return builder.scaled(total, 1 / self.count, "streams.mean")

    def _projected(self, builder: Builder, module: str, i: int, x: str, like: str) -> str:
        shape = (self.hidden, self.hidden)
        name = f"streams.{module}.{i}"
        out = builder.linear(x, f"model.{module}.{i}", shape, "hidden_size", f"{name}.raw", bias=False)
        return builder.node("Magnitude", out, like, name=name, least=_LEAST)

    def predicted(self, builder: Builder, layer: int, streams: Sequence[str]) -> list[str]:
        """What the streams are before a layer."""
        label, count = f"layers.{layer}.predicted", self.count
        coefficients = self._coefficients(builder, layer, streams[self.active], "prediction", count * count, label)
        predicted = []
        for i, stream in enumerate(streams):
            total = stream
            for j, other in enumerate(streams):
                part = self._times(builder, other, coefficients, i * count + j, f"{label}.{i}.{j}")
                total = builder.node("Add", total, part, name=f"{label}.{i}.sum.{j}")
            predicted.append(total)
        return predicted

    def corrected(self, builder: Builder, layer: int, predicted: Sequence[str], activated: str) -> list[str]:
        """What the streams are behind it."""
        label = f"layers.{layer}.corrected"
        raw = self._coefficients(builder, layer, activated, "correction", self.count, label)
        one = builder.constant(f"{label}.one", np.ones(1, np.float32))
        coefficients = builder.node("Add", raw, one, name=f"{label}.coefficients.moved")
        before = builder.scaled(predicted[self.active], -1.0, f"{label}.before")
        change = builder.node("Add", activated, before, name=f"{label}.change")
        parts = [self._times(builder, change, coefficients, i, f"{label}.{i}") for i in range(self.count)]
        return [
            builder.node("Add", part, stream, name=f"{label}.{i}.sum")
            for i, (part, stream) in enumerate(zip(parts, predicted, strict=True))
        ]

    def _coefficients(self, builder: Builder, layer: int, x: str, kind: str, count: int, label: str) -> str:
        """[B, T, count]."""
        source = f"model.layers.{layer}.altup"
        parameters = self.norm.parameters(builder, f"{source}.router_norm", self.hidden)
        seen = self.norm.add(builder, x, parameters, f"{label}.norm")
        small = builder.scaled(seen, 1 / self.hidden, f"{label}.scaled")
        shape = (self.count, self.hidden)
        fields = "altup_num_inputs, hidden_size"
        routed = builder.linear(small, f"{source}.modality_router", shape, fields, f"{label}.routed", bias=False)
        modalities = builder.node("Tanh", routed, name=f"{label}.modalities")
        return builder.linear(
            modalities, f"{source}.{kind}_coefs", (count, self.count), fields, f"{label}.coefficients", bias=False
        )

    def _times(self, builder: Builder, x: str, coefficients: str, place: int, name: str) -> str:
        """X times one of the coefficients of its token."""
        one = builder.node("Slice", coefficients, name=f"{name}.c", starts=[place], ends=[place + 1], axes=[2])
        return builder.node("Mul", x, one, name=name)
