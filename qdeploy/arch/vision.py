"""Vision transformers: an image as a sequence of patches, then the layers of stack.py (arXiv 2010.11929, section 3.1).

    patches = projection(image) + positions            a convolution whose stride is its kernel
    x = norm([tokens; patches]);  layers;  norm(x)     tokens of no image (class, distillation) stand first

Images have the size that config.json says; positions are not interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.arch.stack import Decoder, Stack
from qdeploy.ir.graph import Value
from qdeploy.ir.model import Model

PIXELS = "pixel_values"


@dataclass(frozen=True)
class Patches:
    """How an image becomes a sequence.

    Attributes:
        projection: The module of the convolution.
        positions: The parameter of positions, one for each token and patch.
        grid: Patches from top to bottom, and from left to right.
        side: Pixels of a patch, likewise.
        channels: Of the image.
        tokens: Parameters of the tokens that stand before the patches.
        axes: Leading axes of one of `positions` and of `tokens`.
        biased: Whether the convolution has a bias.
        norm: The module of a norm behind positions; "" for none.
    """

    projection: str
    positions: str
    grid: tuple[int, int]
    side: tuple[int, int]
    channels: int
    tokens: tuple[str, ...] = ()
    axes: tuple[int, int] = (1, 2)
    biased: bool = True
    norm: str = ""

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image."""
        return self.channels, self.grid[0] * self.side[0], self.grid[1] * self.side[1]

    @property
    def length(self) -> int:
        """Tokens and patches."""
        return len(self.tokens) + self.grid[0] * self.grid[1]


def grid_of(config: Config) -> tuple[tuple[int, int], tuple[int, int]]:
    """Reads `image_size` and `patch_size`, a number each or two: the patches, and the pixels of one."""
    image, side = _pair(config, "image_size"), _pair(config, "patch_size")
    grid = image[0] // side[0], image[1] // side[1]
    if 0 in grid:
        raise config.contradiction("image_size, patch_size", f"{image}, {side}", "a patch at least")
    return grid, side


def _pair(config: Config, field: str) -> tuple[int, int]:
    if isinstance(config.fields.get(field), list):
        height, width = config.sizes(field, 2)
        return height, width
    return (config.size(field),) * 2


class VisionStack(Stack):
    """The layers of a vision transformer under construction.

    Args:
        model: Whose graph it is.
        config: Of the vision model.
        decoder: Its layers.
        patches: How an image becomes a sequence.
    """

    def __init__(self, model: Model, config: Config, decoder: Decoder, patches: Patches) -> None:
        super().__init__(model, config, decoder)
        self.patches = patches

    def input(self, batch: str = "batch") -> Value:
        """The graph's input of images."""
        return Value(PIXELS, "F32", (batch, *self.patches.image))

    def embedded(self) -> str:
        """Tokens and patches with their positions, [B, length, hidden]."""
        add, patches, norm = self.builder, self.patches, self.decoder.norm
        x, places = self._projected(), self._places()
        if patches.tokens:
            pads = add.integers("embed.pads", [0, len(patches.tokens), 0, 0, 0, 0])
            x = add.node("Pad", x, pads, name="embed.sequence")
        x = add.node("Add", x, places, name="embed")
        if not patches.norm:
            return x
        return norm.add(add, x, norm.parameters(add, patches.norm, self.hidden), "embed.norm")

    def _places(self) -> str:
        """The positions, those of tokens with the tokens themselves, so that zeros may stand where tokens do."""
        add, patches = self.builder, self.patches
        shape = (1,) * patches.axes[0] + (patches.length, self.hidden)
        positions = add.weight(patches.positions, shape, "image_size, patch_size")
        if not patches.tokens:
            return positions
        own = (1,) * patches.axes[1] + (self.hidden,)
        names = [add.weight(parameter, own, "hidden_size") for parameter in patches.tokens]
        values = add.model.tensors[positions].decode().reshape(1, patches.length, self.hidden).copy()
        for place, name in enumerate(names):
            values[0, place] = add.model.tensors[name].decode().reshape(-1) + values[0, place]
        return add.constant("embed.places", values)

    def _projected(self) -> str:
        patches = self.patches
        shape = (self.hidden, patches.channels, *patches.side)
        fields = "hidden_size, num_channels, patch_size"
        return projected_patches(self.builder, patches.projection, shape, fields, biased=patches.biased)

    def for_every_image(self, x: str, name: str) -> str:
        """[1, n, hidden] -> [B, n, hidden]."""
        add = self.builder
        batch = add.node("Shape", PIXELS, name=f"{name}.batch", start=0, end=1)
        ones = add.integers(f"{name}.ones", [1, 1])
        shape = add.node("Concat", batch, ones, name=f"{name}.extents", axis=0)
        return add.node("Expand", x, shape, name=name)


def projected_patches(
    add: Builder, module: str, shape: tuple[int, int, int, int], fields: str, *, biased: bool = True
) -> str:
    """Adds the convolution [width, channels, rows, columns] whose stride is its kernel: patches [B, patches, width]."""
    weight = add.weight(f"{module}.weight", shape, fields)
    bias = add.bias(f"{module}.bias", shape[0], biased, fields.partition(",")[0])
    x = add.node("Conv", PIXELS, weight, bias, name="embed.patches", strides=list(shape[2:]))
    flat = add.node("Reshape", x, name="embed.flat", shape=[0, 0, -1])  # [B, width, patches]
    return add.node("Transpose", flat, name="embed.transposed", perm=[0, 2, 1])


def token_at(stack: Stack, x: str, place: int, name: str) -> str:
    """The vector at a place of the sequence; -1 for the last: [B, T, hidden] -> [B, hidden]."""
    end = place + 1 if place >= 0 else 1 << 31
    cut = stack.builder.node("Slice", x, name=f"{name}.cut", starts=[place], ends=[end], axes=[1])
    return stack.builder.node("Squeeze", cut, name=name, axes=[1])
