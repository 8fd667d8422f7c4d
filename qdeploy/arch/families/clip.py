"""CLIP and SigLIP: a text and a vision tower, each on its own or both with their similarities.

    clip     (arXiv 2103.00020) causal text, pooled at the end token; images pooled at the class token; projections
    siglip   (arXiv 2303.15343) text in both directions, pooled at the last place; images pooled by attention of a probe

    logits_per_text = text_embeds @ image_embeds.T * exp(logit_scale) + logit_bias        embeddings have length 1

Definitions and defaults are those of transformers' models of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdeploy.arch.builder import ACTIVATIONS, tower_layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.self_attention import Parts, cacheless
from qdeploy.arch.stack import Decoder, Modules, Norm, Stack, TokenStack
from qdeploy.arch.vision import Patches, VisionStack, grid_of, token_at
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.model import Model

_PLACEMENT = Placement(before_mixer="layer_norm1", before_mlp="layer_norm2")
_PARTS = Parts(o="out_proj")
_OLD_END = 2
"""An `eos_token_id` that older configurations of CLIP have by mistake: the end is the greatest id then."""


@dataclass(frozen=True)
class _Defaults:
    """Where the two families differ."""

    act: str
    epsilon: float
    context: int
    causal: bool


_CLIP = _Defaults("quick_gelu", 1e-5, 77, True)
_SIGLIP = _Defaults("gelu_pytorch_tanh", 1e-6, 64, False)


def build(model: Model) -> Graph:
    """Builds the graph of one tower or of both."""
    kind = Config(model.config).text("model_type")
    if kind.endswith("text_model"):
        return _text_alone(model)
    return _vision_alone(model) if kind.endswith("vision_model") else _both(model)


def _text_alone(model: Model) -> Graph:
    tower = _TextTower(model, Config(model.config), "text_model.")
    x, pooled = tower.run()
    add = tower.builder
    add.node("Identity", x, name="last_hidden_state")
    outputs = [Value("last_hidden_state", "F32", ("batch", "sequence", tower.hidden))]
    outputs.append(_pooled_output(tower, pooled, "text_projection", "text_embeds"))
    return add.graph(tower.inputs(), tuple(outputs), tower.meta())


def _vision_alone(model: Model) -> Graph:
    tower = _VisionTower(model, Config(model.config), "vision_model.")
    x, pooled = tower.run()
    add = tower.builder
    add.node("Identity", x, name="last_hidden_state")
    outputs = [Value("last_hidden_state", "F32", ("batch", tower.patches.length, tower.hidden))]
    if pooled:
        outputs.append(_pooled_output(tower, pooled, "visual_projection", "image_embeds"))
    return add.graph((tower.input(),), tuple(outputs), {"kind": "vision", "model_type": tower.decoder.model_type})


def _pooled_output(tower: _TextTower | _VisionTower, pooled: str, projection: str, output: str) -> Value:
    """The pooled vector, or its projection where the model has one."""
    add = tower.builder
    if not add.has(f"{projection}.weight"):
        add.node("Identity", pooled, name="pooler_output")
        return Value("pooler_output", "F32", ("batch", tower.pooled_size))
    size = tower.config.size("projection_dim", 512)
    _project(tower, pooled, projection, size, output)
    return Value(output, "F32", ("batch", size))


def _both(model: Model) -> Graph:
    config = Config(model.config)
    text = _TextTower(model, _tower_config(config, "text_config"), "text_model.")
    vision = _VisionTower(model, _tower_config(config, "vision_config"), "vision_model.", text)
    add, clip = text.builder, config.text("model_type") == "clip"
    embeddings = []
    for tower, scope, part, output in ((text, "text.", "text", "text"), (vision, "image.", "visual", "image")):
        add.scope = scope
        _, pooled = tower.run()
        if clip:
            pooled = _project(tower, pooled, f"{part}_projection", config.size("projection_dim", 512), "projected")
        add.scope = ""
        embeddings.append(add.node("LpNormalization", pooled, name=f"{output}_embeds", p=2, axis=-1))
    width = config.size("projection_dim", 512) if clip else vision.hidden
    logits = _similarities(text, embeddings, clip)
    inputs = (*text.inputs("texts"), vision.input("images"))
    outputs = (
        Value("logits_per_image", "F32", ("images", "texts")),
        Value("logits_per_text", "F32", ("texts", "images")),
        Value("text_embeds", "F32", ("texts", width)),
        Value("image_embeds", "F32", ("images", width)),
    )
    add.node("Transpose", logits, name="logits_per_image", perm=[1, 0])
    return add.graph(inputs, outputs, {**text.meta(), "model_type": config.text("model_type")})


def _similarities(tower: _TextTower, embeddings: list[str], clip: bool) -> str:
    add, (text, image) = tower.builder, embeddings
    columns = add.node("Transpose", image, name="image_columns", perm=[1, 0])
    products = add.node("MatMul", text, columns, name="similarities")
    shape: tuple[int, ...] = () if clip else (1,)
    scale = add.node("Exp", add.weight("logit_scale", shape, "model_type"), name="scale")
    if clip:
        return add.node("Mul", products, scale, name="logits_per_text")
    scaled = add.node("Mul", products, scale, name="similarities.scaled")
    return add.node("Add", scaled, add.weight("logit_bias", (1,), "model_type"), name="logits_per_text")


def _project(tower: Stack, pooled: str, module: str, size: int, name: str) -> str:
    weight = tower.builder.weight(f"{module}.weight", (size, tower.hidden), "projection_dim, hidden_size")
    return tower.builder.node("Linear", pooled, weight, name=name)


def _tower_config(config: Config, field: str) -> Config:
    fields = config.fields.get(field)
    return Config(fields if isinstance(fields, dict) else {}, f"{config.where}: {field}")


def _defaults(config: Config) -> _Defaults:
    return _CLIP if config.text("model_type", "").startswith("clip") else _SIGLIP


def _layers(model: Model, config: Config, root: str, length: int, norm: str, causal: bool) -> Decoder:
    """The layers of a tower; `model_type` of its configuration says which family's."""
    defaults, layers = _defaults(config), f"{root}encoder.layers"
    hidden, (size, heads) = config.size("hidden_size"), heads_of(config)
    attention = cacheless(
        hidden,
        heads,
        size,
        qkv_bias=True,
        o_bias=True,
        bidirectional=not causal,
        mask="attention_mask" if "text" in root else "",
        parts=_PARTS,
        layers=layers,
    )
    mlp = _mlp(config, layers)
    return Decoder(
        config.text("model_type"),
        Names((), ("", "clip.", "siglip.")),
        _PLACEMENT.layers([attention] * tower_layer_count(model, config, default=12), mlp),
        length,
        Norm("layer", config.positive("layer_norm_eps", defaults.epsilon), bias=True),
        modules=Modules(f"{root}embeddings.token_embedding", layers, f"{root}{norm}" if norm else "", ""),
    )


def _mlp(config: Config, layers: str) -> Mlp:
    activation = config.choose("hidden_act", ACTIVATIONS, _defaults(config).act)
    inner, parts = config.size("intermediate_size", 3072), MlpParts(up="fc1", down="fc2")
    return Mlp(config.size("hidden_size"), inner, activation, True, False, parts=parts, layers=layers)


class _TextTower(TokenStack):
    """Tokens with learned positions."""

    def __init__(self, model: Model, config: Config, root: str) -> None:
        self.root, self.defaults = _root(model, root), _defaults(config)
        length = config.size("max_position_embeddings", self.defaults.context)
        decoder = _layers(model, config, self.root, length, "final_layer_norm", self.defaults.causal)
        super().__init__(model, config, decoder)
        self.pooled_size = self.hidden if self.defaults.causal else config.size("projection_size", self.hidden)

    def inputs(self, batch: str = "batch") -> tuple[Value, ...]:
        """Ids and mask."""
        return tuple(Value(name, "I64", (batch, "sequence")) for name in ("input_ids", "attention_mask"))

    def meta(self) -> dict[str, Any]:
        """What a backend needs to know."""
        context = self.decoder.context
        return {"kind": "vision", "model_type": self.decoder.model_type, "context": context, "vocab": self.vocab}

    def run(self) -> tuple[str, str]:
        """Adds the tower; returns its hidden states and the pooled vector."""
        add, root = self.builder, self.root
        shape = (self.decoder.context, self.hidden)
        table = add.weight(f"{root}embeddings.position_embedding.weight", shape, "max_position_embeddings, hidden_size")
        places = add.node("Positions", "input_ids", name="positions")
        rows = add.node("Gather", table, places, name="embed_positions", axis=0)
        x = self.hidden_states(add.node("Add", self.tokens(), rows, name="embed"))
        if self.defaults.causal:
            return x, self._at_end(x, places)
        shape = (self.pooled_size, self.hidden)
        return x, add.linear(
            token_at(self, x, -1, "last"), f"{root}head", shape, "projection_size, hidden_size", "pooled"
        )

    def _at_end(self, x: str, places: str) -> str:
        """The vector of the first end token, [B, hidden]."""
        add, end = self.builder, self.config.fields.get("eos_token_id", 49407)
        scores = "input_ids"
        if end != _OLD_END:
            token = add.integer("end", int(end) if isinstance(end, int) else -1)
            scores = add.node("Cast", add.node("Equal", "input_ids", token, name="ends"), name="ends.ones", to="I32")
        place = add.node("ArgMax", scores, name="ends.first", axis=1, keepdims=1)  # I64 [B, 1]
        chosen = add.node("Equal", place, places, name="ends.chosen")  # [B, T]
        share = add.node("Cast", chosen, name="ends.share", to="F32")
        row = add.node("Unsqueeze", share, name="ends.row", axes=[1])
        return add.node("Squeeze", add.node("MatMul", row, x, name="ends.picked"), name="pooled", axes=[1])


class _VisionTower(VisionStack):
    """Patches with learned positions; `beside`: a tower whose graph it joins."""

    def __init__(self, model: Model, config: Config, root: str, beside: Stack | None = None) -> None:
        self.root, self.defaults = _root(model, root), _defaults(config)
        grid, side = grid_of(config)
        clip = self.defaults.causal
        self.has_head = clip or config.flag("vision_use_head", True)
        patches = Patches(
            f"{self.root}embeddings.patch_embedding",
            f"{self.root}embeddings.position_embedding.weight",
            grid,
            side,
            config.size("num_channels", 3),
            tokens=(f"{self.root}embeddings.class_embedding",) if clip else (),
            axes=(0, 0),
            biased=not clip,
            norm=f"{self.root}pre_layrnorm" if clip else "",
        )
        norm = "" if clip else "post_layernorm"
        super().__init__(model, config, _layers(model, config, self.root, patches.length, norm, False), patches)
        self.pooled_size = self.hidden
        if beside is not None:
            self.builder = beside.builder

    def run(self) -> tuple[str, str]:
        """Adds the tower; returns its hidden states and the pooled vector, "" for none."""
        x = self.hidden_states(self.embedded())
        if not self.has_head:
            return x, ""
        if not self.defaults.causal:
            return x, self._at_probe(x)
        norm, first = self.decoder.norm, token_at(self, x, 0, "first")
        parameters = norm.parameters(self.builder, f"{self.root}post_layernorm", self.hidden)
        return x, norm.add(self.builder, first, parameters, "pooled")

    def _at_probe(self, x: str) -> str:
        """What a stored query sees of all patches, and an MLP behind it."""
        add, head, hidden = self.builder, f"{self.root}head", self.hidden
        fields = "hidden_size"
        weight = add.weight(f"{head}.attention.in_proj_weight", (3 * hidden, hidden), fields)
        bias = add.weight(f"{head}.attention.in_proj_bias", (3 * hidden,), fields)
        columns = add.node("Transpose", weight, name="probe.columns", perm=[1, 0])
        probe = add.weight(f"{head}.probe", (1, 1, hidden), fields)

        def projected(value: str, name: str) -> Callable[[int], str]:
            product = add.node("MatMul", value, columns, name=f"{name}.product")
            both = add.node("Add", product, bias, name=f"{name}.projected")
            return lambda part: add.node(
                "Slice",
                both,
                name=f"{name}.{'qkv'[part]}",
                starts=[part * hidden],
                ends=[(part + 1) * hidden],
                axes=[2],
            )

        heads = self.config.size("num_attention_heads")
        query = self.for_every_image(projected(probe, "probe")(0), "probe.every")
        seen = projected(x, "probe.patches")
        scale = (hidden // heads) ** -0.5
        attributes = {"heads": heads, "kv_heads": heads, "scale": scale, "causal": False, "window": 0}
        mixed = add.node("Attention", query, seen(1), seen(2), name="probe.attention", **attributes)
        mixed = add.linear(mixed, f"{head}.attention.out_proj", (hidden, hidden), fields, "probe.o")
        norm = self.decoder.norm
        normed = norm.add(add, mixed, norm.parameters(add, f"{head}.layernorm", hidden), "probe.norm")
        raised = self._head_mlp(normed, head)
        return token_at(self, add.node("Add", mixed, raised, name="probe.sum"), 0, "pooled")

    def _head_mlp(self, x: str, head: str) -> str:
        add, hidden, inner = self.builder, self.hidden, self.config.size("intermediate_size", 3072)
        fields = "intermediate_size, hidden_size"
        raised = add.linear(x, f"{head}.mlp.fc1", (inner, hidden), fields, "probe.up")
        activation = self.config.choose("hidden_act", ACTIVATIONS, self.defaults.act)
        active = add.activation(activation, raised, "probe.act")
        return add.linear(active, f"{head}.mlp.fc2", (hidden, inner), fields, "probe.down")


def _root(model: Model, root: str) -> str:
    """The module that holds a tower; newer files of a single tower leave it out."""
    return root if any(name.startswith(root) for name in model.tensors) else ""


FAMILY = Family(
    name="clip",
    heads={
        "clip": ("CLIPModel",),
        "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
        "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        "siglip": ("SiglipModel",),
        "siglip_text_model": ("SiglipTextModel",),
        "siglip_vision_model": ("SiglipVisionModel",),
    },
    names=Names((), ("", "clip.", "siglip.")),
    build=build,
)
