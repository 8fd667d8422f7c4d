"""The passes of a conversion, as its spec says: recover a source's grid, quantize or restate it, make it integers.

All are pure functions of the source and the spec, so an output can be held against its source by doing the same again.
"""

from __future__ import annotations

from pathlib import Path

from qdeploy.ir.model import Model
from qdeploy.progress import SILENT, Progress
from qdeploy.spec import ConversionSpec


def completed(model: Model, spec: ConversionSpec) -> ConversionSpec:
    """Returns the spec with all that quantizing does by default written out, as outputs record it.

    Args:
        model: As its reader gives it.
        spec: As the user asks for it.
    """
    if not spec.passes.quantize or not spec.target.reads_rows or spec.integers is not None:
        return spec
    from qdeploy.quantize.embeddings import with_embeddings

    return spec.with_quantizers(with_embeddings(model, spec.passes.quantize))


def restated(model: Model, spec: ConversionSpec, progress: Progress = SILENT, folder: Path | None = None) -> Model:
    """Returns the model with its tensors recovered, quantized and restated as they are read.

    Args:
        model: As its reader gives it.
        spec: The conversion.
        progress: Told of the search for grids, and of tensors that are quantized by data.
        folder: Where those are kept as soon as they are finished; None: nowhere.

    Raises:
        UnsupportedError: The model has nothing that a pass could be applied to.
    """
    if spec.passes.recover:
        from qdeploy.recover import recover_model

        model = recover_model(model, spec.passes.recover, progress)
    if spec.passes.quantize:
        from qdeploy.quantize import quantize_model

        model = quantize_model(model, spec.passes.quantize, progress, folder)
    if spec.passes.lower:
        from qdeploy.quantize.restate import lower_model

        model = lower_model(model, spec.passes.lower)
    return model


def derived(model: Model, spec: ConversionSpec, progress: Progress = SILENT, folder: Path | None = None) -> Model:
    """Returns the model after all passes: `restated`, and as a network of integers where the target takes one.

    Args:
        model: As its reader gives it.
        spec: The conversion.
        progress: As for `restated`, and told of calibration.
        folder: As for `restated`.

    Raises:
        UnsupportedError: The model has nothing that a pass could be applied to, or no integer form.
    """
    model = restated(model, spec, progress, folder)
    if spec.passes.quantize:
        from qdeploy.quantize.embeddings import note_floats

        note_floats(model)
    if spec.integers is not None:
        from qdeploy.calibrate.network import integer_network

        model = integer_network(model, spec.integers, progress)
    return model
