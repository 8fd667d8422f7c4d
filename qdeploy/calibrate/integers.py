"""The options that turn a network into integers; `network.py` applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdeploy.options import option, refuse_unknown


@dataclass(frozen=True)
class Integers:
    """How a network becomes one of integers.

    Attributes:
        calibrate: An .npz file with inputs; empty: the source carries its scales.
        calibrate_method: minmax | percentile | entropy | mse.
        weight_bits: Of weights that the source has not quantized; the first and the last layer keep 8.
        activation_bits: Of the inputs of layers, but the first and the last.
        layer_bits: {layer: [weights, activations]} for single layers, or a JSON file with that.
        rounding: half_up | half_even | half_away.
        narrow_sums: Sums of convolutional networks are of 8 bits, each at its own scale, not in a stream of 16 bits.
            It follows from the target.

    Raises:
        BadArgumentError: A value is not one of those.
    """

    calibrate: str = option("", "An array per input, to measure activation scales with.", metavar="NPZ")
    calibrate_method: str = option(
        "minmax",
        "How ranges are clipped.",
        choices=("minmax", "percentile", "entropy", "mse"),
        label="calibration method",
    )
    weight_bits: int = option(8, "Bits of float weights; the first and the last layer keep 8.", choices=(8, 4, 2))
    activation_bits: int = option(
        8, "Bits of the inputs of layers; the first and the last layer keep 8.", choices=(8, 7, 6, 5, 4, 3, 2)
    )
    layer_bits: str | Mapping[str, int | Sequence[int]] = option(
        "", 'Bits of single layers: {"layer": [weights, activations]}.', metavar="FILE", mapping=True
    )
    rounding: str = option("half_up", "How halves are rounded.", choices=("half_up", "half_even", "half_away"))
    narrow_sums: bool = False

    def __post_init__(self) -> None:
        """Refuses values that are not allowed."""
        refuse_unknown(self)
