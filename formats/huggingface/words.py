"""What the formats of packed 32-bit words have in common: GPTQ, AWQ, AutoRound.

A linear layer `p`, weight [N, K] in groups of g columns (G = ceil(K / g) groups), is stored as

    p.qweight   I32   codes
    p.qzeros    I32   zero-points, packed like the codes
    p.scales    F16   (also BF16, F32)
    p.g_idx     I32   [K], GPTQ only: the group of each column
    p.bias            a plain tensor

and reads the same in all of them once it is in normal form: codes uint8 [N, ceil(K * bits / 8)] and zero-points
uint8 [N, ceil(G * bits / 8)] as little-endian bit streams, scales [N, G]. The weight is (code - zero) * scale. How
words become streams is what the formats differ in; each gives it as codecs, which read and write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.huggingface.checkpoint import Checkpoint
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.pack.words import transpose
from qdeploy.patterns import NO_EXPRESSION, Pattern
from qdeploy.store.codec import Codec
from qdeploy.store.safetensors import TensorEntry

SCALES = ("F16", "BF16", "F32")
"""Storage types that scales come in."""
EMBEDDINGS = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte")
"""Last parts of the names of input embeddings."""


@dataclass(frozen=True)
class Settings:
    """The quantization settings of a checkpoint or, with overrides, of one layer.

    Attributes:
        values: As they stand in the file.
        where: Where they stand, for errors.
    """

    values: Mapping[str, Any]
    where: str = "quantization_config"

    def overridden(self, values: object, where: str) -> Settings:
        """The same with the overrides of one layer."""
        if not isinstance(values, dict):
            raise BadFileError("overrides are not an object", where=f"{self.where}.{where}", found=values)
        return Settings({**self.values, **values}, f"{self.where}.{where}")

    def integer(self, *names: str) -> int:
        """A required integer under the first of several names that is there."""
        value = self._first(names)
        if isinstance(value, bool) or not isinstance(value, int):
            where = f"{self.where}.{names[0]}"
            raise BadFileError("a setting is missing or no integer", where=where, found=repr(value))
        return value

    def text(self, *names: str) -> str:
        """Lower-case text under the first of several names that is there; "" if none is."""
        value = self._first(names)
        return "" if value is None else str(value).lower()

    def width(self, *names: str, allowed: tuple[int, ...]) -> int:
        """Bits per code; UnsupportedError for a width that this format has and we do not read."""
        bits = self.integer(*names)
        if bits not in allowed:
            raise UnsupportedError(
                "codes of this width are not read",
                where=f"{self.where}.{names[0]}",
                found=f"{bits} bits",
                allowed=", ".join(map(str, allowed)),
            )
        return bits

    def group(self, columns: int, *names: str) -> int:
        """Columns per group, at most `columns`; -1 stands for all of them."""
        group = self.integer(*names)
        if group != -1 and group < 1:
            raise BadFileError(
                "a group size is impossible",
                where=f"{self.where}.{names[0]}",
                found=group,
                allowed="-1 (one group per row) or at least 1",
            )
        return columns if group == -1 else min(group, columns)

    def refuse(self, *names: str) -> None:
        """UnsupportedError if one of these settings is there and says anything: it changes what the codes mean."""
        for name in names:
            if self.values.get(name):
                raise UnsupportedError(
                    "a setting that is not read changes the layer",
                    where=f"{self.where}.{name}",
                    found=str(self.values[name])[:100],
                )

    def refuse_others(self, known: Collection[str]) -> None:
        """The same for every setting that is not known: nothing is taken for granted that nobody reads."""
        self.refuse(*(name for name in self.values if name not in known))

    def _first(self, names: tuple[str, ...]) -> Any:
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)


def refuse_other_words(settings: Settings) -> None:
    """UnsupportedError for codes that are no integers in words of 32 bits, and for inputs that are changed, too."""
    pack_dtype = settings.text("pack_dtype").removeprefix("torch.")
    if pack_dtype not in ("", "int32"):
        raise UnsupportedError(
            "only words of 32 bits are read", where=f"{settings.where}.pack_dtype", found=pack_dtype, allowed="int32"
        )
    settings.refuse("rotation", "rotation_config", "rotation_configs", "spinquant_config", "adapter")
    if settings.text("data_type") not in ("", "int"):
        raise UnsupportedError(
            "this number format is not read yet",
            where=f"{settings.where}.data_type",
            found=settings.text("data_type"),
            allowed="int",
        )
    if settings.values.get("act_bits") is not None and settings.integer("act_bits") < 16:
        raise UnsupportedError(
            "quantized activations are not read yet",
            where=f"{settings.where}.act_bits",
            found=settings.integer("act_bits"),
            allowed="16",
        )


def pattern(key: str, where: str) -> Pattern | None:
    """A regular expression from a configuration; None if it does not compile; BadFileError beyond all bounds."""
    try:
        return Pattern(key, where)
    except BadFileError as error:
        if error.what == NO_EXPRESSION:
            return None
        raise


def layers(checkpoint: Checkpoint) -> list[str]:
    """Names of all layers with packed codes, in file order.

    Raises:
        UnsupportedError: A packed input embedding: it is stored transposed.
    """
    names = [name.removesuffix(".qweight") for name in checkpoint.entries if name.endswith(".qweight")]
    for name in names:
        if name.rpartition(".")[2] in EMBEDDINGS:
            raise UnsupportedError("a packed input embedding is not read", where=name)
    return names


@dataclass(frozen=True)
class Layer:
    """The stored tensors of one layer, checked against its settings."""

    checkpoint: Checkpoint
    name: str
    settings: Settings

    def has(self, part: str) -> bool:
        """Whether the layer has this tensor."""
        return f"{self.name}.{part}" in self.checkpoint.entries

    def part(self, part: str, *dtypes: str) -> TensorEntry:
        """A matrix of the layer, or a vector for g_idx; errors name what is missing or of another type."""
        return self.checkpoint.entry(f"{self.name}.{part}", *dtypes, rank=1 if part == "g_idx" else 2)

    def expect(self, field: str, setting: object, part: str, shape: Shape) -> None:
        """BadFileError, naming the setting, if a tensor does not have the shape that the setting implies."""
        actual = self.checkpoint.entries[f"{self.name}.{part}"].shape
        if actual != shape:
            raise self.contradiction(f"{field} = {setting}; {self.name}.{part}", list(actual), str(list(shape)))

    def contradiction(self, field: str, found: object, allowed: str) -> BadFileError:
        """The error of a setting that the tensors deny."""
        return BadFileError(
            "the configuration contradicts the tensors",
            where=f"{self.settings.where}.{field}",
            found=found,
            allowed=allowed,
            todo="Configuration and tensors are not of one checkpoint; fetch it again.",
        )

    def source(self, format: str, writer: str, args: Mapping[str, int | str], parts: tuple[str, ...]) -> Source:
        """What a tensor made of these parts came from."""
        entries = [self.checkpoint.entries[f"{self.name}.{part}"] for part in parts]
        stored = tuple(SourceTensor(e.file.name, e.name, e.dtype, e.shape) for e in entries)
        return Source(format, writer, args, stored)


def affine(
    shape: Shape,
    bits: int,
    codes: Buffer,
    scale: Buffer,
    zero: Buffer,
    group: int,
    index: Buffer | None,
    source: Source,
) -> QTensor:
    """The weight [N, K] in normal form: (code - zero) * scale, with one scale and zero per row and group."""
    layout, table = Layout("bits", width=bits), f"uint{bits}"
    tile = (1, 1) if index else (1, group)
    scales = Param(Codes(scale.shape, (scale,), PLAIN, plain_name(scale.dtype)), tile, index)
    zeros = Param(Codes(scale.shape, (zero,), layout, table), tile, index)
    weight = Codes(shape, (codes,), layout, table, zeros, scales)
    return QTensor(shape, scale.dtype, (Term(weight),), source=source)


def transposed(key: str) -> Codec:
    """The buffer is the transpose of the stored matrix."""
    return Codec((key,), lambda raw: (transpose(raw),), transpose, axis=1)
