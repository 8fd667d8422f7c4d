"""Quantizes a model: chooses the weights, measures what each quantizer needs, and hands both over.

Statistics are measured on the float model, or, for a quantizer that asks for levels, in the order of the graph: when
the run comes to a layer, the layers before it are quantized already, and so their errors are in what is measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir.model import Model, ReplacedTensors
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.ir.views import Floats, view
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.activations import Sums, observe, pieces_of, text_statistics
from qdeploy.quantize.contract import Statistics, Weight
from qdeploy.quantize.ladder.imported import has_planes
from qdeploy.quantize.measured import measured_rungs, with_errors
from qdeploy.quantize.networks import META as NETWORK_META
from qdeploy.quantize.networks import layer_weights, rounded, smallest_layers
from qdeploy.quantize.resume import Finished
from qdeploy.quantize.samples import read_samples
from qdeploy.quantize.shifts import shifted
from qdeploy.quantize.specs import Spec
from qdeploy.quantize.statistics import InputFile, StatisticsFolder
from qdeploy.quantize.streams import Quantized, run_streams

_STACK = "Stack"
"""The op that makes one tensor of the weights of experts, each of which is a matrix of its own."""


def quantized(model: Model, specs: Sequence[Spec], progress: Progress = SILENT, folder: Path | None = None) -> Model:
    """See `qdeploy.quantize.quantize_model`."""
    if _is_network(model):
        return _quantized_network(model, specs)
    weights, source = chosen_weights(model, specs), model
    _refuse_idle(model, specs, [id(spec) for spec in weights.values()], tuple(weights))
    losses: dict[str, float] = {}
    shifts: dict[str, QTensor] = {}
    tensors: dict[str, QTensor] = {}
    finished = Finished(folder, model)
    followed: dict[str, list[tuple[Spec, Weight]]] = {}
    for spec in specs:
        own = [Weight(name, model.tensors[name], losses, shifts) for name, taker in weights.items() if taker is spec]
        if spec.needs.levels and spec.needs.text:
            tensors |= _by_levels(model, spec, own)
            continue
        if _is_followed(spec):
            followed.setdefault(spec.needs.text, []).extend((spec, weight) for weight in own)
            continue
        tensors |= _one_by_one(model, spec, own, finished, progress)
    for text, members in followed.items():
        tensors |= _by_streams(model, text, members, finished, progress)
    model = dataclasses.replace(model, tensors=ReplacedTensors(model.tensors, tensors), losses=losses)
    return _with_costs(source, shifted(model, shifts), specs, progress)


def _one_by_one(
    model: Model, spec: Spec, weights: Sequence[Weight], finished: Finished, progress: Progress
) -> dict[str, QTensor]:
    """The tensors of a quantizer that looks at each weight by itself; those that follow from data are kept."""
    statistics, tensors = _measured(model, spec, progress), dict[str, QTensor]()
    if spec.needs.text:
        progress.start(f"{spec.method}: weights", len(weights), "tensors")
    for weight in weights:
        known = statistics.get(weight.name)
        tensor = finished.restored(spec, weight) if spec.needs.text else None
        if tensor is None:
            tensor = spec.quantized(weight, () if known is None else (known,))
            if spec.needs.text:
                finished.keep(spec, weight, tensor)
        tensors[weight.name] = tensor
        if spec.needs.text:
            progress.advance(1, weight.name)
    return tensors


def _is_network(model: Model) -> bool:
    """Whether the graph came with its source, so that layers take their weights in forms of their own."""
    try:
        return model.graph.meta.get("kind") == "network"
    except UnsupportedError:  # tensors without a network
        return False


def _quantized_network(model: Model, specs: Sequence[Spec]) -> Model:
    """The weights of a network's layers, rounded; its graph lists which."""
    graph, tensors = model.graph, dict[str, QTensor]()
    layers = layer_weights(graph, model.tensors)
    losses: dict[str, float] = {}
    takers: set[int] = set()
    small = {bits: smallest_layers(layers, model.tensors, bits) for bits in {spec.grid.bits for spec in specs}}
    for name, outputs in layers.items():
        spec = next((s for s in specs if s.names.take(name)), None)
        if spec is None or not isinstance(view(model.tensors[name]), Floats):
            continue
        if name in small[spec.grid.bits] and not spec.names.only:
            continue
        if not spec.grid.bits or (spec.needs.kinds and spec.needs.text):
            raise UnsupportedError(
                "this method is for models of text", where=model.path, found=spec.method, allowed="rtn"
            )
        takers.add(id(spec))
        tensors[name] = rounded(Weight(name, model.tensors[name], losses), outputs, spec)
    _refuse_idle(model, specs, takers, tuple(layers))
    listed = dataclasses.replace(graph, meta={**graph.meta, NETWORK_META: sorted(tensors)})
    replaced = ReplacedTensors(model.tensors, tensors)
    return dataclasses.replace(model, tensors=replaced, losses=losses, build_graph=lambda _: listed)


def _refuse_idle(model: Model, specs: Sequence[Spec], takers: Collection[int], names: Sequence[str]) -> None:
    """Raises BadArgumentError for a spec that no weight falls to."""
    for spec in specs:
        if id(spec) not in takers:
            _ = model.graph if not names and model.build_graph is not None else None  # says why it is not read
            chosen = f", only={spec.names.only}" if spec.names.only else ""
            raise BadArgumentError(
                "nothing is left for this method to quantize",
                where=model.path,
                found=f"{spec.method}{chosen}",
                allowed=", ".join(names[:8]) or "a model with float weights of layers",
            )


def chosen_weights(model: Model, specs: Sequence[Spec]) -> dict[str, Spec]:
    """The weights that are quantized, and by which of the specs; UnsupportedError where one is quantized already."""
    tables, integers = embedding_tables(model), integer_weights(model)
    chosen: dict[str, Spec] = {}
    for name in (*linear_weights(model), *tables):
        ways = (s for s in specs if s.names.take(name))
        spec = next((s for s in ways if s.names.only or _is_meant(name, s, tables, integers)), None)
        if spec is None or (spec.needs.integers and name in integers):
            chosen |= {} if spec is None else {name: spec}
            continue
        if not isinstance(view(model.tensors[name]), Floats):
            raise UnsupportedError(
                "the source is quantized already: quantizing again would lose twice",
                where=name,
                found=model.format,
                todo="Name the float tensors with only=REGEX (only=lm_head), or start from the float checkpoint.",
            )
        chosen[name] = spec
    return chosen


def integer_weights(model: Model) -> tuple[str, ...]:
    """Names of the weights and tables that are integers which planes are cut from."""
    names = (*linear_weights(model), *embedding_tables(model))
    return tuple(name for name in names if has_planes(model.tensors[name]))


def _is_meant(name: str, spec: Spec, tables: Collection[str], integers: Collection[str]) -> bool:
    """Whether a spec that names no tensors is for this one.

    Where a method keeps the integers of a checkpoint, only they are meant: the rest stays what it is.
    """
    if spec.needs.integers and integers:
        return name in integers
    return name not in tables


def linear_weights(model: Model) -> tuple[str, ...]:
    """Names of the weights that are multiplied with activations, in graph order; without a graph all float matrices."""
    try:
        nodes = model.graph.nodes
    except UnsupportedError:
        matrices = {n: t for n, t in model.tensors.items() if len(t.shape) == 2 and min(t.shape) > 1}
        return tuple(n for n, t in matrices.items() if isinstance(view(t), Floats))
    names: dict[str, None] = {}
    for node in nodes:
        places = range(len(node.inputs)) if node.op == _STACK else [place for place, _ in op(node.op).weights]
        names.update((node.inputs[place], None) for place in places if place < len(node.inputs))
    stored = {name: model.tensors[name].shape for name in names if name in model.tensors}
    return tuple(name for name, shape in stored.items() if len(shape) == 2 and math.prod(shape) > 0)


def embedding_tables(model: Model) -> tuple[str, ...]:
    """Names of the matrices that rows are gathered from and that no linear layer uses, in graph order."""
    try:
        nodes = model.graph.nodes
    except UnsupportedError:
        return ()
    linear = set(linear_weights(model))
    gathered = dict.fromkeys(
        node.inputs[0] for node in nodes if node.op == "Gather" and node.inputs[0] in model.tensors
    )
    return tuple(n for n in gathered if n not in linear and len(model.tensors[n].shape) == 2)


def _measured(model: Model, spec: Spec, progress: Progress) -> Mapping[str, Statistics]:
    """The statistics of the float model by weight, which the model's notes tell of."""
    needs = spec.needs
    if not needs.kinds:
        return {}
    if not needs.text:
        model.notes.append(f"{spec.method} without a calibration text: {needs.without}")
        return {}
    if StatisticsFolder.is_one(needs.text):
        return _Stored(StatisticsFolder(Path(needs.text)).inputs(), model)
    statistics, tokens = text_statistics(model, needs.text, needs.kinds, progress)
    model.notes.append(f"{spec.method}: activation scales from {tokens} tokens of the calibration text")
    return statistics


def _is_followed(spec: Spec) -> bool:
    """Whether weights are quantized while a run comes to them: where rungs are followed, or means are wanted."""
    needs = spec.needs
    stored = bool(needs.text) and StatisticsFolder.is_one(needs.text)
    if stored and needs.streams:
        raise BadArgumentError(
            "rungs are followed on the text itself, of which statistics are not enough",
            where=f"{spec.method}: calibrate",
            found=needs.text,
            todo="Name the text, or leave effort=best out.",
        )
    return bool(needs.text) and not stored and (needs.streams > 0 or "means" in needs.kinds)


class _Stored(Mapping[str, Statistics]):
    """Statistics that stand in a folder, read one by one."""

    def __init__(self, files: Mapping[str, InputFile], model: Model) -> None:
        self._files, self._model = files, model

    def __getitem__(self, weight: str) -> Statistics:
        file = self._files[weight]
        statistics, columns = file.read(), self._model.tensors[weight].shape[-1]
        width = 0 if statistics.norms is None else statistics.norms.size
        if width != columns:
            raise BadFileError(
                "statistics of an input of another width",
                where=f"{file.path}: {weight}",
                found=width,
                allowed=str(columns),
                todo="Calibrate the model again.",
            )
        return statistics

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _by_levels(model: Model, spec: Spec, weights: Sequence[Weight]) -> dict[str, QTensor]:
    """The tensors of a quantizer that is given statistics per level, each measured with what there is by then."""
    needs = spec.needs
    ids = pieces_of(model, needs.text)
    model.notes.append(f"{spec.method}: {needs.levels} levels, measured in order on {ids.size} tokens")
    waiting = {weight.name: weight for weight in weights}
    known: dict[str, tuple[Statistics, ...]] = dict.fromkeys(waiting, ())
    quantized_tensors: dict[str, QTensor] = {}
    for level in range(needs.levels):

        def watch(name: str, x: Array, level: int = level) -> None:
            if name in waiting and len(known[name]) == level:
                sums = Sums(needs.kinds)
                for sequence in x:
                    sums.add(sequence)
                known[name] = (*known[name], sums.statistics())
                quantized_tensors[name] = spec.quantized(waiting[name], known[name])

        observe(model.graph, {"input_ids": ids}, ReplacedTensors(model.tensors, quantized_tensors), watch)
    unseen = {name: weight for name, weight in waiting.items() if name not in quantized_tensors}
    return quantized_tensors | {name: spec.quantized(weight, ()) for name, weight in unseen.items()}


def _by_streams(
    model: Model, text: str, members: Sequence[tuple[Spec, Weight]], finished: Finished, progress: Progress
) -> dict[str, QTensor]:
    """The tensors of quantizers that follow the inputs of layers on a text, at rungs of what they have made so far."""
    waiting = {weight.name: (spec, weight) for spec, weight in members}
    streams = max((spec.needs.streams for spec, _ in members), default=0)
    samples, _ = read_samples(model, text).parted()
    how = f"{streams} rungs, followed in order on" if streams else "inputs of layers from"
    methods = ", ".join(dict.fromkeys(spec.method for spec, _ in members))
    model.notes.append(f"{methods}: {how} {samples.tokens} tokens of the calibration text")
    tensors: dict[str, QTensor] = {}
    progress.start(f"{methods}: weights", len(members), "tensors")

    def quantized_one(name: str, statistics: Sequence[Statistics]) -> QTensor:
        spec, weight = waiting[name]
        tensor = finished.restored(spec, weight)
        if tensor is None:
            tensor = spec.quantized(weight, statistics)
            finished.keep(spec, weight, tensor)
        progress.advance(1, name)
        return tensor

    def quantize(name: str, statistics: Sequence[Statistics]) -> Quantized | None:
        if name not in waiting:
            return None
        if name not in tensors:
            tensors[name] = quantized_one(name, statistics)
        return tensors[name], waiting[name][1].shifts.get(name)

    run_streams(model, samples, waiting, streams, quantize)
    unseen = [name for name in waiting if name not in tensors]
    return tensors | {name: quantized_one(name, ()) for name in unseen}


def _with_costs(source: Model, model: Model, specs: Sequence[Spec], progress: Progress) -> Model:
    """The model with what each rung costs the network, where a quantizer asks for it and names its data."""
    texts = [spec.needs.text for spec in specs if spec.needs.costs and spec.needs.text]
    text = next((text for text in texts if not StatisticsFolder.is_one(text)), "")
    if not text:
        return model
    _, held_back = read_samples(source, text).parted()
    costs = measured_rungs(source, model, held_back, progress)
    if not costs:
        model.notes.append("the losses of rungs are predicted from the errors of their layers")
    known = {name: with_errors(model.tensors[name], errors) for name, errors in costs.items()}
    return dataclasses.replace(model, tensors=ReplacedTensors(model.tensors, known))
