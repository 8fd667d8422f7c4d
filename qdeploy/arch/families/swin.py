"""Swin: stages of attention within windows of an image, every second time shifted (arXiv 2103.14030).

    block   x = x + attention(norm(x)) within windows;  x = x + down(act(up(norm(x))))
    stage   blocks; then 2 x 2 neighbours become one place of four times the channels, a norm, a projection to twice
            the channels

A shifted block rolls the image by half a window before its windows are cut, and back behind them; tokens that are no
neighbours in the image do not see each other. An image that windows do not divide is padded with zeros on the right and
at the bottom. The scores have a bias for each distance within a window. Definitions and defaults are those of
transformers' SwinModel and SwinForImageClassification.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import ACTIVATIONS, Builder
from qdeploy.arch.config import Config
from qdeploy.arch.family import Family
from qdeploy.arch.names import Names
from qdeploy.arch.task_heads import label_count
from qdeploy.arch.vision import PIXELS, grid_of, projected_patches
from qdeploy.arch.windowed import Windows
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.model import Model

_STEM_EPSILON = 1e-5
"""Of the norms that the configuration does not describe."""
_USUAL = {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
_FIELDS = "embed_dim, depths, num_heads"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        rows: Of its image, and columns.
        columns: Of its image.
        width: Channels.
        heads: Of attention.
    """

    rows: int
    columns: int
    width: int
    heads: int


class SwinBuilder:
    """The graph of a Swin under construction.

    Args:
        model: Whose graph it is.
        config: Its config.json.
    """

    def __init__(self, model: Model, config: Config) -> None:
        self.config, self.add = config, Builder(model, NAMES)
        self.window = config.size("window_size", 7)
        self.epsilon = config.positive("layer_norm_eps", 1e-5)
        self.activation = config.choose("hidden_act", ACTIVATIONS, "gelu")
        self.ratio = config.positive("mlp_ratio", 4.0)

    def norm(self, x: str, module: str, width: int, name: str, epsilon: float = 0.0) -> str:
        """A norm over the channels."""
        weight, bias = (self.add.weight(f"{module}.{part}", (width,), _FIELDS) for part in ("weight", "bias"))
        return self.add.node("LayerNormalization", x, weight, bias, name=name, epsilon=epsilon or self.epsilon)

    def embedded(self, width: int, grid: tuple[int, int], side: tuple[int, int], channels: int) -> str:
        """Patches [B, rows * columns, width]."""
        add, module, shape = self.add, "embeddings.patch_embeddings.projection", (width, channels, *side)
        x = projected_patches(add, module, shape, "embed_dim, num_channels, patch_size")
        x = self.norm(x, "embeddings.norm", width, "embed.norm", _STEM_EPSILON)
        if not self.config.flag("use_absolute_embeddings", False):
            return x
        places = add.weight("embeddings.position_embeddings", (1, grid[0] * grid[1], width), "image_size")
        return add.node("Add", x, places, name="embed")

    def block(self, x: str, stage: Stage, module: str, name: str, shifted: bool) -> str:
        """One block."""
        add, width = self.add, stage.width
        windows = Windows(stage.rows, stage.columns, self.window, self.window // 2 if shifted else 0)
        normed = self.norm(x, f"{module}.layernorm_before", width, f"{name}.norm")
        cut = windows.cut(add, normed, width, f"{name}.windows")
        mixed = self._attention(cut, stage, windows, module, f"{name}.attention")
        x = add.node("Add", x, windows.joined(add, mixed, width, f"{name}.image"), name=f"{name}.mixed")
        inner = int(self.ratio * width)
        normed = self.norm(x, f"{module}.layernorm_after", width, f"{name}.norm.2")
        up = add.linear(normed, f"{module}.intermediate.dense", (inner, width), _FIELDS, f"{name}.up")
        active = add.activation(self.activation, up, f"{name}.act")
        down = add.linear(active, f"{module}.output.dense", (width, inner), _FIELDS, f"{name}.down")
        return add.node("Add", x, down, name=name)

    def _attention(self, x: str, stage: Stage, windows: Windows, module: str, name: str) -> str:
        """Within windows [B, windows, tokens, width]."""
        add, size = self.add, stage.width // stage.heads
        biased = self.config.flag("qkv_bias", True)
        parts = {}
        for part, perm in (("query", [0, 1, 3, 2, 4]), ("key", [0, 1, 3, 4, 2]), ("value", [0, 1, 3, 2, 4])):
            source, shape = f"{module}.attention.self.{part}", (stage.width, stage.width)
            out = add.linear(x, source, shape, _FIELDS, f"{name}.{part}", bias=biased)
            heads = [0, windows.count, windows.tokens, stage.heads, size]
            split = add.node("Reshape", out, name=f"{name}.{part}.split", shape=heads)
            parts[part] = add.node("Transpose", split, name=f"{name}.{part}.heads", perm=perm)
        scores = add.node("MatMul", parts["query"], parts["key"], name=f"{name}.scores")
        scores = add.scaled(scores, size**-0.5, f"{name}.scaled")
        bias = windows.bias(add, f"{module}.attention.self.relative_position_bias_table", stage.heads, name)
        scores = add.node("Add", scores, bias, name=f"{name}.biased")
        if windows.shift:
            scores = add.node("Add", scores, windows.mask(add, f"{name}.mask"), name=f"{name}.masked")
        shares = add.node("Softmax", scores, name=f"{name}.shares", axis=-1)
        mixed = add.node("MatMul", shares, parts["value"], name=f"{name}.heads")
        back = add.node("Transpose", mixed, name=f"{name}.back", perm=[0, 1, 3, 2, 4])
        joined = add.node("Reshape", back, name=f"{name}.joined", shape=[0, windows.count, windows.tokens, stage.width])
        return add.linear(joined, f"{module}.attention.output.dense", (stage.width, stage.width), _FIELDS, name)

    def merged(self, x: str, stage: Stage, module: str, name: str) -> str:
        """Of 2 x 2 neighbours one place, twice as wide."""
        add, width = self.add, stage.width
        x = add.node("Reshape", x, name=f"{name}.image", shape=[0, stage.rows, stage.columns, width])
        # transformers pads rows by what is odd in columns, and columns by what is odd in rows
        pads = [0, 0, 0, 0, 0, stage.columns % 2, stage.rows % 2, 0]
        if any(pads):
            x = add.node("Pad", x, add.integers(f"{name}.pads", pads), name=f"{name}.padded")
        parts = [
            add.node(
                "Slice",
                x,
                name=f"{name}.{row}{column}",
                starts=[row, column],
                ends=[1 << 31, 1 << 31],
                axes=[1, 2],
                steps=[2, 2],
            )
            for column in (0, 1)
            for row in (0, 1)
        ]
        joined = add.node("Concat", *parts, name=f"{name}.neighbours", axis=3)
        flat = add.node("Reshape", joined, name=f"{name}.flat", shape=[0, -1, 4 * width])
        normed = self.norm(flat, f"{module}.norm", 4 * width, f"{name}.norm", _STEM_EPSILON)
        return add.linear(normed, f"{module}.reduction", (2 * width, 4 * width), _FIELDS, name, bias=False)


def build(model: Model) -> Graph:
    """Builds the graph of a bare model or of one that classifies images."""
    config = Config(model.config)
    grid, side = grid_of(config)
    channels, width = config.size("num_channels", 3), config.size("embed_dim", 96)
    depths, heads = _stages(config)
    image = (grid[0] * side[0], grid[1] * side[1])
    _check_size(config, image)
    swin = SwinBuilder(model, config)
    x = swin.embedded(width, grid, side, channels)
    rows, columns = grid
    for i, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        stage = Stage(rows, columns, width << i, count)
        _check_stage(config, stage, swin.window)
        for block in range(min(depth, len(model.tensors))):
            shifted = block % 2 == 1 and min(rows, columns) > swin.window
            module, name = f"encoder.layers.{i}.blocks.{block}", f"stage.{i}.{block}"
            x = swin.block(x, stage, module, name, shifted)
        if i + 1 < len(depths):
            x = swin.merged(x, stage, f"encoder.layers.{i}.downsample", f"stage.{i}.merged")
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
    last = width << len(depths) - 1
    for field, derived in (("hidden_size", last), ("num_layers", len(depths))):
        if config.size(field, derived) != derived:
            raise config.contradiction(f"{field}, {_FIELDS}", config.fields[field], str(derived))
    outputs = _outputs(swin, config, swin.norm(x, "layernorm", last, "hidden"), last, rows * columns)
    value = Value(PIXELS, "F32", ("batch", channels, *image))
    return swin.add.graph((value,), outputs, {"kind": "vision", "model_type": "swin"})


def _stages(config: Config) -> tuple[list[int], list[int]]:
    """Blocks and heads of every stage."""
    listed = config.fields.get("depths", _USUAL["depths"])
    count = len(listed) if isinstance(listed, list) else 0
    if not 1 <= count <= 8:
        raise config.contradiction("depths", listed, "a list of 1 to 8 entries")
    depths, heads = (config.sizes(f, count) if config.has(f) else usual for f, usual in _USUAL.items())
    if len(heads) != len(depths):
        raise config.contradiction("depths, num_heads", f"{len(depths)}, {len(heads)}", "as many entries")
    return depths, heads


def _check_size(config: Config, image: tuple[int, int]) -> None:
    size = config.fields.get("image_size")
    if size not in (image[0] if image[0] == image[1] else None, list(image)):
        raise config.contradiction("image_size, patch_size", size, "a multiple")


def _check_stage(config: Config, stage: Stage, window: int) -> None:
    if stage.width % stage.heads:
        raise config.contradiction("embed_dim, num_heads", f"{stage.width}, {stage.heads}", "a multiple")
    if min(stage.rows, stage.columns) < window:
        both = f"{stage.rows} x {stage.columns}, {window}"
        raise config.contradiction("image_size, window_size", both, "a window that fits into every stage")


def _outputs(swin: SwinBuilder, config: Config, x: str, width: int, places: int) -> tuple[Value, ...]:
    add, scored = swin.add, config.class_name.endswith("ForImageClassification")
    pooled = add.node("ReduceMean", x, name="pooled" if scored else "pooler_output", axes=[1], keepdims=0)
    if scored:
        labels = label_count(config)
        add.linear(pooled, "classifier", (labels, width), "id2label, embed_dim", "logits")
        return (Value("logits", "F32", ("batch", labels)),)
    add.node("Identity", x, name="last_hidden_state")
    states = Value("last_hidden_state", "F32", ("batch", places, width))
    return states, Value("pooler_output", "F32", ("batch", width))


NAMES = Names((), ("", "swin."))
FAMILY = Family(
    name="swin",
    heads={"swin": ("SwinModel", "SwinForImageClassification")},
    names=NAMES,
    build=build,
)
