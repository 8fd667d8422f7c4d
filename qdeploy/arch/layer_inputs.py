"""Per-layer embeddings: every layer takes a vector of each token besides what flows through the layers (Gemma 3n, 4).

    inputs = (norm(project(x) * hidden ^ -1/2) + table[ids] * extent ^ 1/2) * 2 ^ -1/2      [B, T, layers * extent]
    of a layer:  down(act(gate(x)) * inputs of the layer)

x are the embeddings. The table has `layers * extent` columns; ids beyond its rows take the first row.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import Builder
from qdeploy.arch.stack import Norm

_INPUTS, _FIELDS = "layer_inputs", "num_hidden_layers, hidden_size_per_layer_input"


@dataclass(frozen=True)
class EmbeddedInputs:
    """See `stack.LayerInputs`.

    Attributes:
        hidden: Extent of the hidden axis.
        layers: How many there are.
        extent: Of a layer's vector.
        rows: Of the table.
        norm: Of what the embeddings are projected to.
        vocab: Of the tokens, where it may be more than the table's rows; 0: it is not.
    """

    hidden: int
    layers: int
    extent: int
    rows: int
    norm: Norm
    vocab: int = 0

    def add(self, builder: Builder, x: str) -> None:
        """Adds the vectors of all layers."""
        width, name = self.layers * self.extent, _INPUTS
        table = builder.weight("model.embed_tokens_per_layer.weight", (self.rows, width), _FIELDS)
        rows = builder.node("Gather", table, self._ids(builder), name=f"{name}.table", axis=0)
        rows = builder.scaled(rows, self.extent**0.5, f"{name}.of_ids")
        module = "model.per_layer_model_projection"
        projected = builder.linear(x, module, (width, self.hidden), _FIELDS, f"{name}.projected", bias=False)
        scaled = builder.scaled(projected, self.hidden**-0.5, f"{name}.scaled")
        split = builder.node("Reshape", scaled, name=f"{name}.split", shape=[0, 0, self.layers, self.extent])
        parameters = self.norm.parameters(builder, "model.per_layer_projection_norm", self.extent)
        normed = self.norm.add(builder, split, parameters, f"{name}.norm")
        joined = builder.node("Reshape", normed, name=f"{name}.joined", shape=[0, 0, width])
        builder.scaled(builder.node("Add", joined, rows, name=f"{name}.sum"), 2.0**-0.5, name)

    def _ids(self, builder: Builder) -> str:
        if self.vocab <= self.rows:
            return "input_ids"
        return builder.node("IdsWithin", "input_ids", name="layer_inputs.ids", rows=self.rows)


@dataclass(frozen=True)
class LayerInputGate:
    """A block of a decoder's branch; see `stack.Block`.

    Attributes:
        hidden: Extent of the hidden axis.
        extent: Of a layer's vector.
        activation: One of `builder.ACTIVATIONS`'s values.
        layers: The module that holds the layers.
    """

    hidden: int
    extent: int
    activation: str
    layers: str = "model.layers"

    def add(self, builder: Builder, layer: int, x: str) -> str:
        """Adds the gate, the product with the layer's vector, and the projection back."""
        source, name, extent = f"{self.layers}.{layer}", f"layers.{layer}.input", self.extent
        down, up = (extent, self.hidden), (self.hidden, extent)
        gate = builder.linear(x, f"{source}.per_layer_input_gate", down, _FIELDS, f"{name}.gate", bias=False)
        active = builder.activation(self.activation, gate, f"{name}.act")
        ends = layer * extent, (layer + 1) * extent
        own = builder.node("Slice", _INPUTS, name=f"{name}.own", starts=[ends[0]], ends=[ends[1]], axes=[2])
        gated = builder.node("Mul", active, own, name=f"{name}.gated")
        return builder.linear(gated, f"{source}.per_layer_projection", up, _FIELDS, name, bias=False)
