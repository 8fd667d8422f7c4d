"""ConvNeXt: stages of depthwise convolutions and MLPs over channels (arXiv 2201.03545).

    layer   x + scale * down(act(up(norm(depthwise 7x7 of x))))       norm and MLP over the channels
    stage   norm over the channels and a convolution whose stride is its kernel, then layers

Scores come from the mean over the image, behind a last norm. Definitions and defaults are those of transformers'
ConvNextModel and ConvNextForImageClassification.
"""

from __future__ import annotations

from qdeploy.arch.builder import ACTIVATIONS, Builder
from qdeploy.arch.config import Config
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.task_heads import label_count
from qdeploy.arch.vision import PIXELS, grid_of
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.model import Model

_EPSILON = 1e-6
_USUAL = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}
_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Orders of axes: channels last, and channels behind the batch."""


def build(model: Model) -> Graph:
    """Builds the graph of a bare model or of one that classifies images."""
    config, add = Config(model.config), Builder(model, NAMES)
    stages = config.size("num_stages", 4)
    widths, depths = (
        config.sizes(field, stages) if config.has(field) else usual[:stages] for field, usual in _USUAL.items()
    )
    (rows, columns), side = grid_of(config)
    channels = config.size("num_channels", 3)
    x = _convolved(add, PIXELS, "embeddings.patch_embeddings", (widths[0], channels, *side), "embed.patches")
    x = _normed(add, x, "embeddings.layernorm", widths[0], "embed")
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        root = f"encoder.stages.{stage}"
        if stage:
            x = _normed(add, x, f"{root}.downsampling_layer.0", widths[stage - 1], f"stage.{stage}.norm")
            shape = (width, widths[stage - 1], 2, 2)
            x = _convolved(add, x, f"{root}.downsampling_layer.1", shape, f"stage.{stage}.merged")
        for layer in range(min(depth, len(model.tensors) + 1)):
            x = _layer(add, config, x, f"{root}.layers.{layer}", width, f"stage.{stage}.{layer}")
    image = Value(PIXELS, "F32", ("batch", channels, rows * side[0], columns * side[1]))
    last = config.positive("layer_norm_eps", 1e-12)
    outputs = _outputs(add, config, x, widths[-1], last, (rows >> stages - 1, columns >> stages - 1))
    return add.graph((image,), outputs, {"kind": "vision", "model_type": "convnext"})


def _convolved(add: Builder, x: str, module: str, shape: tuple[int, ...], name: str) -> str:
    weight = add.weight(f"{module}.weight", shape, "hidden_sizes, patch_size")
    bias = add.weight(f"{module}.bias", shape[:1], "hidden_sizes")
    return add.node("Conv", x, weight, bias, name=name, strides=list(shape[2:]))


def _normed(add: Builder, x: str, module: str, width: int, name: str) -> str:
    """A norm over the channels of [B, C, H, W]."""
    channels_last = add.node("Transpose", x, name=f"{name}.channels", perm=_LAST)
    norm = [add.weight(f"{module}.{part}", (width,), "hidden_sizes") for part in ("weight", "bias")]
    normed = add.node("LayerNormalization", channels_last, *norm, name=f"{name}.normed", epsilon=_EPSILON)
    return add.node("Transpose", normed, name=name, perm=_FIRST)


def _layer(add: Builder, config: Config, x: str, module: str, width: int, name: str) -> str:
    shape = (width, 1, 7, 7)
    weight = add.weight(f"{module}.dwconv.weight", shape, "hidden_sizes")
    bias = add.weight(f"{module}.dwconv.bias", (width,), "hidden_sizes")
    mixed = add.node("Conv", x, weight, bias, name=f"{name}.depthwise", pads=[3, 3, 3, 3], group=width)
    mixed = add.node("Transpose", mixed, name=f"{name}.channels", perm=_LAST)
    norm = [add.weight(f"{module}.layernorm.{part}", (width,), "hidden_sizes") for part in ("weight", "bias")]
    mixed = add.node("LayerNormalization", mixed, *norm, name=f"{name}.norm", epsilon=_EPSILON)
    raised = add.linear(mixed, f"{module}.pwconv1", (4 * width, width), "hidden_sizes", f"{name}.up")
    active = add.activation(config.choose("hidden_act", ACTIVATIONS, "gelu"), raised, f"{name}.act")
    lowered = add.linear(active, f"{module}.pwconv2", (width, 4 * width), "hidden_sizes", f"{name}.down")
    if config.number("layer_scale_init_value", 1e-6) > 0:
        scale = add.weight(f"{module}.layer_scale_parameter", (width,), "hidden_sizes")
        lowered = add.node("Mul", lowered, scale, name=f"{name}.scaled")
    back = add.node("Transpose", lowered, name=f"{name}.back", perm=_FIRST)
    return add.node("Add", x, back, name=name)


def _outputs(
    add: Builder, config: Config, x: str, width: int, epsilon: float, grid: tuple[int, int]
) -> tuple[Value, ...]:
    mean = add.node("ReduceMean", x, name="mean", axes=[2, 3], keepdims=0)
    norm = [add.weight(f"layernorm.{part}", (width,), "hidden_sizes") for part in ("weight", "bias")]
    if config.class_name.endswith("ForImageClassification"):
        pooled = add.node("LayerNormalization", mean, *norm, name="pooled", epsilon=epsilon)
        labels = label_count(config)
        add.linear(pooled, "classifier", (labels, width), "hidden_sizes", "logits")
        return (Value("logits", "F32", ("batch", labels)),)
    add.node("LayerNormalization", mean, *norm, name="pooler_output", epsilon=epsilon)
    add.node("Identity", x, name="last_hidden_state")
    states = Value("last_hidden_state", "F32", ("batch", width, *grid))
    return states, Value("pooler_output", "F32", ("batch", width))


NAMES = Names((), ("", "convnext."))
FAMILY = Family(
    name="convnext",
    heads={"convnext": ("ConvNextModel", "ConvNextForImageClassification")},
    names=NAMES,
    build=build,
)
