"""float -> terms: one file per method, listed here. A spec of one is METHOD[:TYPE][,option=value...].

rtn        round to nearest in groups
gptq       the same, with later weights making up for the errors of earlier ones
bitstack   sums of signs times low-rank products, elastic
ternary    -1, 0 and +1 times the mean or median magnitude
ladder     bit planes of which every prefix is fitted for its size, elastic

Other people's quantizers register their dataclass under the entry point group `qdeploy.quantizers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdeploy.ir.model import Model
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.contract import QuantizerRow
from qdeploy.quantize.specs import QUANTIZERS, parse

__all__ = ["BUILT_IN", "QUANTIZERS", "parse", "quantize_model"]

BUILT_IN = (
    QuantizerRow("rtn", "qdeploy.quantize.nearest:Rtn"),
    QuantizerRow("gptq", "qdeploy.quantize.gptq:Gptq"),
    QuantizerRow("bitstack", "qdeploy.quantize.bitstack:BitStack"),
    QuantizerRow("ternary", "qdeploy.quantize.ternary:Ternary"),
    QuantizerRow("ladder", "qdeploy.quantize.ladder.quantizer:Ladder"),
)
"""The quantizers of this project."""


def quantize_model(
    model: Model, specs: Sequence[str], progress: Progress = SILENT, folder: Path | None = None
) -> Model:
    """Returns the model with the weights of its linear layers (a tied embedding included) quantized as they are read.

    An embedding that is nothing else is quantized only where a method names it with only=REGEX; a conversion adds such
    a method where none speaks of it (`qdeploy.quantize.embeddings`).

    Args:
        model: A model with float weights.
        specs: Methods; the first that takes a tensor's name has it.
        progress: Told of sequences that are run, and of tensors.
        folder: Where tensors that follow from data are kept as soon as they are finished, and taken from if a run
            before this one has finished them (`qdeploy.quantize.resume`); None: nowhere.

    Raises:
        UnsupportedError: A weight is quantized already.
        BadArgumentError: A spec does not parse.
    """
    from qdeploy.quantize.driver import quantized

    return quantized(model, [parse(spec) for spec in specs], progress, folder)
