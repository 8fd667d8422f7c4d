"""What is asked of quantizers, as text: METHOD[:TYPE][,option=value...], parsed here and nowhere else.

    rtn:int4,group=128,clip=none      bitstack:blocks=8,rank=16,calibrate=FILE      sign-planes:group=128

Every method also takes skip=REGEX and only=REGEX, which choose tensors by name. Which other options there are, the
fields of the method's dataclass say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.catalog.table import Table
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.dtype import dtype, is_known
from qdeploy.ir.rules import check
from qdeploy.ir.tensor import QTensor
from qdeploy.options import Option, option, options_of
from qdeploy.quantize.contract import Grid, Needs, Quantizer, QuantizerRow, Statistics, Weight

QUANTIZERS: Table[QuantizerRow] = Table("quantization method", "qdeploy.quantize", QuantizerRow, "qdeploy.quantizers")
SIGN_PLANES = "sign-planes"
_MOST_GROUP = 1 << 20


@dataclass(frozen=True)
class Groups:
    """The options of methods that round to a type."""

    group: int = option(128, "Weights of a row that share a scale; -1: the whole row.", least=-1, most=_MOST_GROUP)


@dataclass(frozen=True)
class Names:
    """The options of every method: which tensors it takes.

    Attributes:
        skip: Regular expression of tensor names that stay as they are.
        only: Regular expression of the tensor names that are quantized; empty: all weights of linear layers, and
            embeddings to 8 bits.
    """

    skip: str = option("", "Tensors that stay as they are.", metavar="REGEX")
    only: str = option(
        "",
        "Tensors that are quantized; all weights of linear layers, and embeddings to 8 bits, if not given.",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        """Refuses what is not a regular expression."""
        for name, text in (("skip", self.skip), ("only", self.only)):
            try:
                re.compile(text)
            except re.error as error:
                raise BadArgumentError(
                    f"{name} does not parse: {error}", found=text, allowed="a regular expression"
                ) from error

    def take(self, name: str) -> bool:
        """Whether a tensor is to be quantized."""
        return not (self.skip and re.search(self.skip, name)) and bool(re.search(self.only, name))


@dataclass(frozen=True)
class SignPlanes:
    """The options of residual sign planes (sign_planes.py)."""

    group: int = option(128, "Columns that share a scale.", least=1, most=999_999)


@dataclass(frozen=True)
class Spec:
    """A spec, parsed.

    Attributes:
        method: The quantizer's name.
        quantizer: With its settings.
        grid: The type and the group.
        names: Which tensors it takes.
        names_group: Whether the text says the group, which otherwise is a default.
    """

    method: str
    quantizer: Quantizer
    grid: Grid
    names: Names
    names_group: bool = False

    @property
    def needs(self) -> Needs:
        """What the quantizer asks of the data; UnsupportedError where a plug-in does not say it."""
        with QUANTIZERS.get(self.method).blamed("while it said what it needs"):
            needs: object = self.quantizer.needs
        if not isinstance(needs, Needs):
            raise UnsupportedError(
                f"the quantizer {self.method} does not say what it needs",
                where=QUANTIZERS.get(self.method).place,
                found=repr(needs),
                allowed="qdeploy.quantize.contract.Needs",
            )
        return needs

    def quantized(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid | None = None) -> QTensor:
        """What the quantizer makes of a weight, on a grid of its own or on that of the spec.

        Raises:
            UnsupportedError: A plug-in fails, or makes something else than a tensor of the weight's shape.
        """
        row = QUANTIZERS.get(self.method)
        with row.blamed(f"while it quantized {weight.name}"):
            tensor: object = self.quantizer.quantize(weight, statistics, grid or self.grid)
        if not isinstance(tensor, QTensor) or tensor.shape != weight.tensor.shape:
            shape = tensor.shape if isinstance(tensor, QTensor) else type(tensor).__name__
            raise UnsupportedError(
                f"the quantizer {self.method} made something else of a weight",
                where=f"{weight.name}, {row.place}",
                found=shape,
                allowed=f"a QTensor of shape {weight.tensor.shape}",
            )
        check(tensor, weight.name)
        return tensor


def parse(text: str) -> Spec:
    """Parses `rtn:int4,group=128,clip=none,skip=REGEX,only=REGEX` or `bitstack:blocks=8,rank=16,calibrate=FILE,...`.

    Raises:
        BadArgumentError: An unknown method, option or value; the error lists what is allowed.
    """
    method, _, rest = text.partition(":")
    try:
        quantizer = QUANTIZERS.get(method).load()
    except UnsupportedError as error:
        raise BadArgumentError(
            error.what, where=error.where, found=error.found, allowed=error.allowed, todo=error.todo
        ) from error
    texts = _texts(rest)
    kind = texts.pop("type", quantizer.TYPES[0] if quantizer.TYPES else "")
    if kind not in quantizer.TYPES and (kind or quantizer.TYPES):
        raise BadArgumentError(
            f"no such number type for {method}", found=kind, allowed=", ".join(quantizer.TYPES) or usage(method)
        )
    values = _values(method, parts_of(quantizer), texts, usage(method))
    settings, names = values[quantizer], Names(**values[Names])
    group = int(Groups(**values[Groups]).group) if quantizer.TYPES else -1
    if group == 0:
        raise BadArgumentError("not a group size", found=0, allowed=f"1..{_MOST_GROUP}, or -1 for a whole row")
    with QUANTIZERS.get(method).blamed("while it was asked for"):
        return Spec(method, quantizer(**settings), Grid(_bits(kind), group, kind), names, "group" in texts)


def _bits(kind: str) -> int:
    """The width of a number type: what its row says, or the number at the end of a name that has no row."""
    if is_known(kind):
        return dtype(kind).bits
    digits = re.search(r"\d+$", kind)
    return int(digits[0]) if digits else 0


def parse_lowering(text: str) -> int:
    """The group of `sign-planes[:group=N]`; BadArgumentError for another form, option or value."""
    form, _, rest = text.partition(":")
    allowed = f"{SIGN_PLANES}[:group=N]"
    if form != SIGN_PLANES:
        raise BadArgumentError("no such form to lower to", found=text, allowed=allowed)
    return SignPlanes(**_values(form, (SignPlanes,), _texts(rest), allowed)[SignPlanes]).group


def usage(method: str) -> str:
    """A method with all of its options: "rtn[:int4|int2][,clip=search|none][,group=N][,skip=REGEX][,only=REGEX]"."""
    quantizer = QUANTIZERS.get(method).load()
    head = f"{method}[:{'|'.join(quantizer.TYPES)}]" if quantizer.TYPES else f"{method}:"
    options = [known for part in parts_of(quantizer) for known in options_of(part)]
    rest = "".join(f"[,{known.name}={_shape(known)}]" for known in options)
    return head + (rest if quantizer.TYPES else rest.replace("[,", "[", 1))


def usages() -> list[tuple[str, str]]:
    """Every method that can be loaded: the form of its spec, and what its options mean."""
    lines = []
    for name, row in QUANTIZERS.rows().items():
        try:
            parts = parts_of(row.load())
        except UnsupportedError:  # `qdeploy formats` says why
            continue
        helps = (f"{known.name}: {known.help}" for part in parts[:-1] for known in options_of(part))
        lines.append((usage(name), " ".join(helps)))
    return lines


def parts_of(quantizer: type[Quantizer]) -> tuple[type[Any], ...]:
    """The dataclasses that declare the options of a method; UnsupportedError where one name stands for two options."""
    shared: tuple[type[Any], ...] = (Groups, Names) if quantizer.TYPES else (Names,)
    taken = {"type"} | {known.name for part in shared for known in options_of(part)}
    if clash := sorted(taken & {known.name for known in options_of(quantizer)}):
        raise UnsupportedError(
            "an option of a quantizer has the name of an option that all of them have",
            where=f"{quantizer.__module__}.{quantizer.__qualname__}",
            found=", ".join(clash),
        )
    return (quantizer, *shared)


def _shape(known: Option) -> str:
    return known.metavar or "|".join(map(str, known.choices)) or "N"


def _texts(text: str) -> dict[str, str]:
    """`int4,group=128` as {"type": "int4", "group": "128"}."""
    parts = [part.partition("=") for part in text.split(",") if part]
    return {name if sign else "type": value if sign else name for name, sign, value in parts}


def _values(
    method: str, parts: tuple[type[Any], ...], texts: Mapping[str, str], allowed: str
) -> dict[type[Any], dict[str, Any]]:
    """The options of each dataclass, as its fields hold them."""
    unknown = set(texts) - {known.name for part in parts for known in options_of(part)}
    if unknown:
        raise BadArgumentError(f"no such option of {method}", found=", ".join(sorted(unknown)), allowed=allowed)
    return {
        part: {known.name: _value(known, texts[known.name]) for known in options_of(part) if known.name in texts}
        for part in parts
    }


def _value(known: Option, text: str) -> object:
    if isinstance(known.default, int):
        whole = re.fullmatch(r"-?[0-9]{1,9}", text)
        return known.parsed(int(text) if whole else text)
    return known.parsed(text)
