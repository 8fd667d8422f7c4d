"""Writing a model file: every offset first, then the bytes by ranges of row blocks, the header last.

Planning reads the params of every matrix (to find the smallest format that holds them) but no codes. A range of row
blocks goes to all blocks that it has bytes in, so codes are read once whatever number of planes they have. Page
checksums are taken from what was written. Nothing here depends on the time, the machine or the number of processes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qdeploy.backends.native import layout as f
from qdeploy.backends.native import losses, metadata, recurrence
from qdeploy.backends.native.checksum import crc32c, page_checksums
from qdeploy.backends.native.layout import LINE, NONE, PAGE, SectionId, aligned
from qdeploy.backends.native.naming import FILE, MAGIC
from qdeploy.backends.native.options import Options
from qdeploy.backends.native.order import BlockPlan, Stack, stack_order
from qdeploy.backends.native.parts import Array, LoweredMatrix, LoweredTerm, plane_of, row_slabs
from qdeploy.backends.native.plan import Plan, lowered_ops, plan_graph
from qdeploy.backends.native.sums import lower_matrix
from qdeploy.contracts.results import Choice, Lowered
from qdeploy.elastic import published
from qdeploy.elastic.pieces import Piece
from qdeploy.errors import OutputError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.ir.views.levels import Levels
from qdeploy.passes.expand import expand_graph
from qdeploy.passes.experts import with_matrices
from qdeploy.progress import Progress
from qdeploy.store.output import write_all

_TENSOR_KINDS = {"<f4": f.TensorKind.FLOAT32, "<i4": f.TensorKind.INT32, "|i1": f.TensorKind.INT8}


@dataclass
class File:
    """A planned file.

    Attributes:
        plan: The network.
        matrices: Of the plan, lowered.
        stack: The blocks in their order.
        records: The sections but for the page checksums.
        header: All fields but the two checksums.
        block_at: Of each block in the stack, by (term, plane).
        part_at: Of each part from the start of its block, by term.
        tensor_at: Of each resident tensor, from the start of the resident part.
    """

    plan: Plan
    matrices: list[LoweredMatrix]
    stack: Stack
    records: dict[SectionId, Array]
    header: Array
    block_at: dict[tuple[int, int], int]
    part_at: list[dict[str, int]]
    tensor_at: list[int]


def write_model(model: Model, target: Path, options: Options, progress: Progress) -> Lowered:
    """Writes `model.qd` into a folder.

    Raises:
        UnsupportedError: The graph has an op that the runtime does not have.
        OutputError: The file cannot be written.
    """
    file = (
        _measured(model, target, options, progress) if options.measure else _written(model, target, options, progress)
    )
    sizes = [sum(t.plane_bytes(p) for t in m.terms for p in range(t.planes)) for m in file.matrices]
    choices = tuple(
        Choice(m.name, m.form, m.reason, m.lossless, size) for m, size in zip(file.matrices, sizes, strict=True)
    )
    notes = tuple(f"{c.tensor}: {c.reason}" for c in choices if c.reason.startswith("slow") or not c.lossless)
    return Lowered((FILE,), choices, notes)


def _written(model: Model, target: Path, options: Options, progress: Progress) -> File:
    file = plan_file(model, options)
    with _begun(file, target) as out:
        _write_stack(out, file, progress)
        _write_front(out, file, int(file.header["file_bytes"][0]))
        os.fsync(out)
    return file


def _measured(model: Model, target: Path, options: Options, progress: Progress) -> File:
    """The file in the better of two orders, with the losses of some rungs in its metadata."""
    samples = losses.held_back(model, options.measure)
    options = replace(options, losses=losses.blank())

    def run(file: File, folder: Path, count: int) -> dict[int, float]:
        sizes = [int(size) for size in file.records[SectionId.RUNGS]["bytes"]]
        return losses.measured(folder, sizes, file.stack.floor, samples, count, progress)

    if options.order == "gain":
        with tempfile.TemporaryDirectory(dir=target) as other:
            even = run(
                _written(model, Path(other), replace(options, order="uniform"), progress), Path(other), losses.CHOOSING
            )
        own = run(_written(model, target, options, progress), target, losses.CHOOSING)
        if sum(even.values()) / len(even) < sum(own.values()) / len(own):
            options = replace(options, order="uniform")
    file = _written(model, target, options, progress)
    entry = losses.packed(run(file, target, losses.POINTS), samples.tokens)
    section = file.records[SectionId.METADATA].tobytes().replace(options.losses, entry, 1)
    file.records[SectionId.METADATA] = np.frombuffer(section, np.uint8)
    with open(target / FILE, "r+b", buffering=0) as out:
        _write_front(out.fileno(), file, int(file.header["file_bytes"][0]))
        os.fsync(out.fileno())
    return file


def write_head(model: Model, target: Path, options: Options) -> Path:
    """Writes the file that `write_model` would, but for its stack, which is a hole: what it holds can be read, not run.

    Raises:
        UnsupportedError: The graph has an op that the runtime does not have.
        OutputError: The file cannot be written.
    """
    file = plan_file(model, options)
    with _begun(file, target) as out:
        _write_front(out, file, int(file.header["stack_at"][0]))
    return target / FILE


@contextmanager
def _begun(file: File, target: Path) -> Iterator[int]:
    """The descriptor of the file in its whole size, of which the resident part is written."""
    try:
        with open(target / FILE, "w+b", buffering=0) as out:
            os.ftruncate(out.fileno(), int(file.header["file_bytes"][0]))
            _write_resident(out.fileno(), file)
            yield out.fileno()
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror}", where=str(target)) from error


def _fitted(model: Model) -> Model:
    """The model with a graph of what the runtime has.

    Experts are matrices, and other composites are expanded.
    """
    model = with_matrices(model)
    graph = model.graph
    if any(node.op not in lowered_ops() for node in graph.nodes):
        graph = expand_graph(graph, keep=lowered_ops())
    return model if graph is model.graph else replace(model, build_graph=lambda _: graph)


def plan_file(model: Model, options: Options) -> File:
    """Decides where every byte will lie."""
    model = _fitted(model)
    plan = plan_graph(model)
    matrices = [lower_matrix(name, model.tensors[name], options.layout) for name in plan.matrices]
    terms = [term for matrix in matrices for term in matrix.terms]
    plan.ladders = any(term.bias is not None for term in terms)
    stack = _stack(model, matrices, options)
    block_at, end = {}, 0
    for block in stack.blocks:
        block_at[block.term, block.plane] = end
        end = aligned(end + block.nbytes, LINE)
    file = File(plan, matrices, stack, {}, np.zeros(1, f.HEADER), block_at, [_laid(t)[0] for t in terms], [])
    conversion = {
        **options.conversion,
        "layout": options.layout,
        "order": options.order,
        "sensitivities": dict(stack.sensitivities),
    }
    conversion |= {"measure": options.measure} if options.measure else {}
    meta = metadata.entries(model, conversion, plan.features)
    meta |= {"losses": options.losses} if options.losses else {}
    names = [*plan.matrices, *(v.name for v in plan.values if v.role)]
    packed, places = metadata.pack(meta, names)
    file.records[SectionId.METADATA] = np.frombuffer(packed, np.uint8)
    _matrix_records(file, terms, places)
    _graph_records(file, model, places)
    _header(file, model)
    return file


def _stack(model: Model, matrices: list[LoweredMatrix], options: Options) -> Stack:
    def weights(pieces: list[Piece]) -> Mapping[str, float]:
        sensitivities = options.sensitivities
        if isinstance(sensitivities, str):
            return published.sensitivities(model, pieces, sensitivities) if sensitivities else {}
        return sensitivities

    steps = published.reference_steps(model) if options.order == "reference" else ()
    return stack_order(_blocks(model, matrices), options.order, steps, weights)


def _blocks(model: Model, matrices: list[LoweredMatrix]) -> list[tuple[str, QTensor, Levels, list[BlockPlan]]]:
    plans, number = [], 0
    for matrix in matrices:
        own = []
        for term in matrix.terms:
            own += [BlockPlan(number, p, size, max(p, term.level)) for p, size in enumerate(_laid(term)[1])]
            number += 1
        plans.append((matrix.name, model.tensors[matrix.name], matrix.levels, own))
    return plans


def _laid(term: LoweredTerm) -> tuple[dict[str, int], list[int]]:
    """Where each part lies in its block, and the size of the block of each plane."""
    offsets, ends = dict[str, int](), [0] * term.planes
    for part, size in term.sizes.items():
        plane = plane_of(part)
        offsets[part] = aligned(ends[plane], LINE)
        ends[plane] = offsets[part] + size
    return offsets, ends


def _matrix_records(file: File, terms: list[LoweredTerm], names: Mapping[str, int]) -> None:
    matrices, records = np.zeros(len(file.matrices), f.MATRIX), np.zeros(len(terms), f.TERM)
    first = 0
    for row, matrix in zip(matrices, file.matrices, strict=True):
        row["rows"], row["columns"] = matrix.shape
        row["padded_columns"], row["first_term"], row["terms"] = matrix.columns.padded, first, len(matrix.terms)
        row["map_tensor"] = _resident(file, matrix.columns.order)
        row["scale_tensor"] = _resident(file, matrix.row_scale)
        row["name_at"] = names[matrix.name]
        first += len(matrix.terms)
    first_block = 0
    for row, term, at in zip(records, terms, file.part_at, strict=True):
        row["kind"], row["planes"], row["first_block"] = term.kind, term.planes, first_block
        row["table_tensor"] = row["itable_tensor"] = NONE
        row["codes_at"], row["select_at"] = at["codes"], at.get("select", 0)
        for name, value in term.record.items():
            row[name] = value
        for name, tensor in term.tensors.items():
            row[name] = _resident(file, tensor)
        if term.bias is not None:
            row["ladder"], row["bias_kind"], row["bias_at"] = 1, term.bias, at.get("bias", 0)
        for name, form in term.params.items():
            row[name] = (at[name], at.get(f"{name}.super", 0), form.super_span, form.kind, form.super_kind, 0)
        first_block += term.planes
    file.records[SectionId.MATRICES], file.records[SectionId.TERMS] = matrices, records
    _block_records(file)


def _block_records(file: File) -> None:
    """Blocks by term and plane; rungs as the stack lies."""
    blocks, rungs = np.zeros(len(file.stack.blocks), f.BLOCK), np.zeros(len(file.stack.blocks), f.RUNG)
    for rung, block, error in zip(rungs, file.stack.blocks, file.stack.errors, strict=True):
        rung["bytes"], rung["error"] = file.block_at[block.term, block.plane] + block.nbytes, error
    for row, block in zip(blocks, sorted(file.stack.blocks, key=lambda b: (b.term, b.plane)), strict=True):
        at = file.block_at[block.term, block.plane]
        row["at"], row["bytes"], row["term"], row["plane"] = at, block.nbytes, block.term, block.plane
    file.records[SectionId.BLOCKS], file.records[SectionId.RUNGS] = blocks, rungs


def _resident(file: File, tensor: Array | None) -> int:
    if tensor is None:
        return NONE
    file.plan.tensors.append(np.ascontiguousarray(tensor))
    return len(file.plan.tensors) - 1


def _graph_records(file: File, model: Model, names: Mapping[str, int]) -> None:
    plan, words = file.plan, list[int]()
    values, nodes = np.zeros(len(plan.values), f.VALUE), np.zeros(len(plan.nodes), f.NODE)
    for row, value in zip(values, plan.values, strict=True):
        row["kind"], row["width"], row["slot"], row["role"] = value.kind, value.width, value.slot, value.role
        row["name_at"] = names[value.name] if value.role else NONE
    for row, node in zip(nodes, plan.nodes, strict=True):
        row["op"], row["matrix"], row["state"] = node.op, node.matrix, node.state
        for name, numbers in (("inputs", node.inputs), ("outputs", node.outputs), ("tensors", node.tensors)):
            row[name] = NONE
            row[name][: len(numbers)] = numbers
        row["attr"], row["attrs"] = len(words), len(node.attrs)
        words += node.words()
    states = np.zeros(len(model.graph.states), f.STATE)
    keepers = {str(node.attrs["state"]): node.op for node in model.graph.nodes if node.attrs.get("state")}
    for place, state in enumerate(model.graph.states):
        states[place] = recurrence.record(state, keepers)
    tensors, end = np.zeros(len(plan.tensors), f.TENSOR), 0
    for row, tensor in zip(tensors, plan.tensors, strict=True):
        row["at"], row["bytes"], row["count"] = end, tensor.nbytes, tensor.size
        row["kind"] = _TENSOR_KINDS[tensor.dtype.str]
        file.tensor_at.append(end)
        end = aligned(end + tensor.nbytes, LINE)
    file.records |= {
        SectionId.VALUES: values,
        SectionId.NODES: nodes,
        SectionId.STATES: states,
        SectionId.TENSORS: tensors,
        SectionId.ATTRIBUTES: np.array(words, "<u4"),
    }


def _header(file: File, model: Model) -> None:
    header, meta, tensors = file.header[0], model.graph.meta, file.plan.tensors
    resident = file.tensor_at[-1] + tensors[-1].nbytes if tensors else 0
    stack = int(file.records[SectionId.RUNGS]["bytes"][-1]) if file.stack.blocks else 0
    following = aligned(resident, PAGE) + stack
    at = f.HEADER.itemsize
    file.records[SectionId.PAGES] = np.zeros(-(-following // PAGE), "<u4")
    for section in SectionId:
        at, records = aligned(at, LINE), file.records[section]
        header["sections"][section]["at"], header["sections"][section]["count"] = at, len(records)
        at += records.nbytes
    header["magic"], header["version"], header["front_end"] = np.frombuffer(MAGIC, np.uint8), f.VERSION, at
    header["resident_at"], header["resident_bytes"] = aligned(at, PAGE), resident
    header["stack_at"], header["stack_bytes"] = aligned(at, PAGE) + aligned(resident, PAGE), stack
    header["file_bytes"] = aligned(at, PAGE) + following
    header["floor_rung"], header["kind"] = file.stack.floor, int(meta["kind"] == "encoder")
    header["vocab"], header["context"] = int(meta.get("vocab", 0)), int(meta.get("context", 0))  # type: ignore[arg-type]
    header["slot_width"], header["features"] = file.plan.slot_width, file.plan.features
    logits = [i for i, value in enumerate(file.plan.values) if value.name == "logits" and value.role]
    header["logits_value"] = logits[0] if logits else NONE
    small = sum(t.size for t in tensors)
    header["parameters"] = sum(m.shape[0] * m.shape[1] for m in file.matrices) + small


def _write_resident(out: int, file: File) -> None:
    start = int(file.header["resident_at"][0])
    for at, tensor in zip(file.tensor_at, file.plan.tensors, strict=True):
        _put(out, tensor, start + at)


def _write_stack(out: int, file: File, progress: Progress) -> None:
    start, number = int(file.header["stack_at"][0]), 0
    progress.start("writing weights", sum(block.nbytes for block in file.stack.blocks))
    for matrix in file.matrices:
        for term in matrix.terms:
            for first, last in row_slabs(matrix.shape[0], matrix.columns.padded):
                for part, at, data in term.produce(first, last):
                    at += start + file.block_at[number, plane_of(part)] + file.part_at[number][part]
                    _put(out, data, at)
                    progress.advance(data.nbytes, matrix.name)
            number += 1


def _write_front(out: int, file: File, end: int) -> None:
    """The header and the front; pages up to `end` have been written, and get their checksums."""
    header, step = file.header[0], 128 * PAGE
    at, pages = int(header["resident_at"]), file.records[SectionId.PAGES]
    for start in range(at, end, step):
        checksums = page_checksums(np.frombuffer(os.pread(out, min(step, end - start), start), np.uint8))
        pages[(start - at) // PAGE :][: len(checksums)] = checksums
    front = np.zeros(int(header["front_end"]) - f.HEADER.itemsize, np.uint8)
    for section, records in file.records.items():
        place = int(header["sections"][section]["at"]) - f.HEADER.itemsize
        front[place : place + records.nbytes] = np.frombuffer(records.tobytes(), np.uint8)
    _put(out, front, f.HEADER.itemsize)
    header["content_sha256"] = np.frombuffer(hashlib.sha256(front.tobytes()).digest(), np.uint8)
    header["front_crc"] = crc32c(front)
    header["header_crc"] = crc32c(file.header.tobytes()[:508])
    _put(out, file.header, 0)


def _put(out: int, data: Array, at: int) -> None:
    write_all(out, memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8)), at)  # type: ignore[arg-type]
