"""ViT, DeiT and DINOv2: vision transformers that give hidden states or scores of classes.

    vit, deit   (arXiv 2010.11929, 2012.12877) scores from the class token; DeiT has a distillation token besides
    dinov2      (arXiv 2304.07193) a factor per channel behind each branch, and a plain or a gated MLP

Definitions and defaults are those of transformers' models of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qdeploy.arch.builder import ACTIVATIONS, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.layers import Placement
from qdeploy.arch.mlp import Mlp, MlpParts
from qdeploy.arch.names import Names
from qdeploy.arch.self_attention import Parts, cacheless
from qdeploy.arch.stack import Decoder, Modules, Norm
from qdeploy.arch.task_heads import label_count
from qdeploy.arch.vision import Patches, VisionStack, grid_of, token_at
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.model import Model

_PARTS = Parts(q="attention.query", k="attention.key", v="attention.value", o="output.dense")
_REFUSED: dict[str, tuple[object, ...]] = {
    "pooler_act": ("tanh",),
    "num_experts": (0,),
    "use_rotary": (False,),
    "num_register_tokens": (0,),
    "apply_layernorm": (True,),
}


@dataclass(frozen=True)
class _Kind:
    """What tells the three from each other."""

    prefixes: tuple[str, ...]
    epsilon: float
    tokens: tuple[str, ...] = ("embeddings.cls_token",)
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after")
    scales: tuple[str, str] = ("", "")


_KINDS: Mapping[str, _Kind] = {
    "vit": _Kind(("", "vit."), 1e-12),
    "deit": _Kind(("", "deit."), 1e-12, ("embeddings.cls_token", "embeddings.distillation_token")),
    "dinov2": _Kind(
        ("", "dinov2."),
        1e-6,
        norms=("norm1", "norm2"),
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
}


def build(model: Model) -> Graph:
    """Builds the graph of a bare model or of one that classifies images."""
    config = Config(model.config)
    config.refuse(_REFUSED)
    kind = config.text("model_type")
    grid, side = grid_of(config)
    patches = Patches(
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        grid,
        side,
        config.size("num_channels", 3),
        tokens=_KINDS[kind].tokens,
    )
    stack = VisionStack(model, config, _layers(model, config, _KINDS[kind], patches.length), patches)
    x = stack.hidden_states(stack.embedded())
    outputs = _outputs(stack, config, x)
    return stack.builder.graph((stack.input(),), tuple(outputs), {"kind": "vision", "model_type": kind})


def _layers(model: Model, config: Config, kind: _Kind, length: int) -> Decoder:
    hidden, (size, heads) = config.size("hidden_size"), heads_of(config)
    attention = cacheless(
        hidden,
        heads,
        size,
        qkv_bias=config.flag("qkv_bias", True),
        o_bias=True,
        bidirectional=True,
        parts=_PARTS,
        module="attention",
        layers="encoder.layer",
    )
    placement = Placement(before_mixer=kind.norms[0], before_mlp=kind.norms[1])
    plain = placement.layers([attention] * layer_count(model, config), _mlp(config, hidden))
    layers = tuple(
        replace(layer, branches=tuple(replace(b, scale=s) for b, s in zip(layer.branches, kind.scales, strict=True)))
        for layer in plain
    )
    norm = Norm("layer", config.positive("layer_norm_eps", kind.epsilon), bias=True)
    modules = Modules("", "encoder.layer", "layernorm", "")
    return Decoder(config.text("model_type"), Names((), kind.prefixes), layers, length, norm, modules=modules)


def _mlp(config: Config, hidden: int) -> Mlp:
    activation = config.choose("hidden_act", ACTIVATIONS, "gelu")
    if config.text("model_type") != "dinov2":
        parts, inner = MlpParts(up="intermediate.dense", down="output.dense"), config.size("intermediate_size")
        return Mlp(hidden, inner, activation, True, False, parts=parts, module="", layers="encoder.layer")
    inner = int(hidden * config.positive("mlp_ratio", 4))
    if config.flag("use_swiglu_ffn", False):
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        parts = MlpParts(fused="weights_in", down="weights_out")
        return Mlp(hidden, inner, "silu", True, parts=parts, layers="encoder.layer")
    return Mlp(hidden, inner, activation, True, False, parts=MlpParts(up="fc1", down="fc2"), layers="encoder.layer")


# ---- what the graph gives


def _outputs(stack: VisionStack, config: Config, x: str) -> list[Value]:
    name = config.class_name
    if "ForImageClassification" in name:
        return _scores(stack, config, x, name)
    add = stack.builder
    add.node("Identity", x, name="last_hidden_state")
    outputs = [Value("last_hidden_state", "F32", ("batch", stack.patches.length, stack.hidden))]
    if config.text("model_type") == "dinov2":
        token_at(stack, x, 0, "pooler_output")
    elif add.has("pooler.dense.weight"):
        add.node(
            "Tanh", _linear(stack, token_at(stack, x, 0, "pooled"), "pooler.dense", "pooler"), name="pooler_output"
        )
    else:
        return outputs
    return [*outputs, Value("pooler_output", "F32", ("batch", stack.hidden))]


def _scores(stack: VisionStack, config: Config, x: str, name: str) -> list[Value]:
    add, first = stack.builder, token_at(stack, x, 0, "pooled")
    labels = label_count(config)
    if config.text("model_type") == "dinov2":
        rest = add.node("Slice", x, name="patches", starts=[1], ends=[1 << 31], axes=[1])
        mean = add.node("ReduceMean", rest, name="patches.mean", axes=[1], keepdims=0)
        first = add.node("Concat", first, mean, name="pooled.both", axis=1)
    if not name.endswith("WithTeacher"):
        _linear(stack, first, "classifier", "logits", labels, 2 if "dinov2" in config.text("model_type") else 1)
        return [Value("logits", "F32", ("batch", labels))]
    _linear(stack, first, "cls_classifier", "cls_logits", labels)
    _linear(stack, token_at(stack, x, 1, "distilled"), "distillation_classifier", "distillation_logits", labels)
    add.scaled(add.node("Add", "cls_logits", "distillation_logits", name="logits.sum"), 0.5, "logits")
    return [Value(n, "F32", ("batch", labels)) for n in ("logits", "cls_logits", "distillation_logits")]


def _linear(stack: VisionStack, x: str, module: str, name: str, rows: int = 0, times: int = 1) -> str:
    shape = (rows or stack.hidden, times * stack.hidden)
    return stack.builder.linear(x, module, shape, "id2label, hidden_size", name)


FAMILY = Family(
    name="vit",
    heads={
        "vit": ("ViTModel", "ViTForImageClassification"),
        "deit": ("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
        "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    },
    names=Names((), ("", "vit.", "deit.", "dinov2.")),
    build=build,
)
