"""The whole lowering: graph, weights, files."""

from __future__ import annotations

from pathlib import Path

from qdeploy.backends.onnx.genai import genai_config, write_side_files
from qdeploy.backends.onnx.integer.lowering import IntegerLowering
from qdeploy.backends.onnx.lowering import GraphLowering
from qdeploy.backends.onnx.options import Lowered, Options
from qdeploy.backends.onnx.proto import DATA_FILE, MODEL_FILE
from qdeploy.backends.onnx.trial import rounds
from qdeploy.contracts.results import Choice
from qdeploy.errors import OutputError
from qdeploy.ir.model import Model
from qdeploy.progress import Progress

SATURATION = (
    "the network quantizes its activations: on x86 processors without VNNI, ONNX Runtime's products of 8-bit codes "
    "saturate unless the session option session.x64quantprecision is 1"
)
RECURRENT = (
    "no genai_config.json: onnxruntime-genai carries key/value caches only, and this network has states of fixed size"
)


def lowered_graph(model: Model, options: Options) -> GraphLowering | IntegerLowering:
    """The graph of a model, lowered into a builder."""
    integers = model.graph.meta.get("kind") == "integer"
    lowering = IntegerLowering(model, options) if integers else GraphLowering(model, options)
    lowering.builder.explicit_zeros = options.integer == "fast"
    lowering.run()
    return lowering


def assemble(model: Model, target: Path, options: Options, progress: Progress) -> Lowered:
    """See `qdeploy.backends.onnx.lower`."""
    lowering = lowered_graph(model, options)
    builder = lowering.builder
    digests = builder.data.write(target / DATA_FILE, progress, options.jobs)
    states = lowering.graph.states
    cached = bool(states) and all(state.kind == "kv" for state in states)
    alike = len({(state.heads, state.head_dim, state.value_dim) for state in states}) == 1  # genai knows one extent
    config = genai_config(model, lowering.graph) if cached and alike else None
    try:
        (target / MODEL_FILE).write_bytes(builder.model().SerializeToString(deterministic=True))
        side = write_side_files(model, target, config)
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror}", where=str(target)) from error
    sizes = builder.owned_bytes(lowering.rulings)
    choices = tuple(
        Choice(name, ruling.form.label, ruling.reason, ruling.lossless, sizes.get(name, 0))
        for name, ruling in lowering.rulings.items()
    )
    notes = tuple(f"{c.tensor}: {c.reason}" for c in choices if c.reason.startswith("slow") or not c.lossless)
    fast = isinstance(lowering, IntegerLowering) and lowering.fast
    if rounds(lowering.graph) or fast:
        notes += (SATURATION,)
    if states and not cached:
        notes += (RECURRENT,)
    forms = {name: ruling.form for name, ruling in lowering.rulings.items()}
    return Lowered(
        (MODEL_FILE, DATA_FILE, *side),
        choices,
        notes,
        digests,
        forms,
        builder.places(),
        options.activations == "int8" or fast,
    )
