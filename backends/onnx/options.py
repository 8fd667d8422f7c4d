"""What a caller can ask of the ONNX backend, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qdeploy.contracts import results
from qdeploy.options import Arithmetic, TargetOptions, option, refuse_unknown

if TYPE_CHECKING:
    from qdeploy.backends.onnx.external import Placed
    from qdeploy.backends.onnx.forms import Form


@dataclass(frozen=True)
class Options(TargetOptions):
    """How to lower.

    Attributes:
        activations: "exact": float32 activations everywhere. "int8": the kernels quantize activations to 8 bits per
            block while they run, which is faster and changes results by about half a percent.
        requantize: Whether weights that have no lossless form may be rounded to 4 or 8 bits.
        jobs: Weights that are written at the same time.
        integer: For networks of integers. "strict" (and ""): operators over integers alone, equal to the graph bit for
            bit. "fast": ONNX Runtime's kernels for 8-bit codes.
    """

    activations: Literal["exact", "int8"] = option(
        "exact",
        "exact: float32 arithmetic. int8: activations rounded per block; several times faster.",
        choices=("exact", "int8"),
    )
    requantize: bool = option(False, "Let the target round what it cannot hold; the loss is reported.")
    jobs: int = option(1, "Weights written at a time.", least=1, most=64, recorded=False)
    integer: Literal["", "strict", "fast"] = option(
        "",
        "A network of integers. strict: integer operators alone, exact. fast: ONNX Runtime's 8-bit kernels.",
        choices=("", "strict", "fast"),
    )

    def __post_init__(self) -> None:
        """Refuses values that are not allowed."""
        refuse_unknown(self)

    @property
    def arithmetic(self) -> Arithmetic:
        """Integers where `integer` asks for them."""
        return "narrow" if self.integer == "fast" else "wide" if self.integer else ""

    @property
    def reads_rows(self) -> bool:
        """Embeddings are GatherBlockQuantized, but for networks of integers."""
        return not self.integer


@dataclass(frozen=True)
class Lowered(results.Lowered):
    """The result.

    Attributes:
        digests: SHA-256 of each range of the data file, by the name of the initializer that brought it.
        forms: The forms themselves, by tensor; for `check`.
        places: Where each range lies; for `check`.
        int8: Whether kernels quantize activations, or round where the graph of integers says how; for `check`.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict, repr=False)
    places: Mapping[str, Placed] = field(default_factory=dict, repr=False)
    int8: bool = False
