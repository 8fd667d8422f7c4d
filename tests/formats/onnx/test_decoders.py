"""A language model that came as a graph with caches is a decoder: it runs everywhere, and gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import qdeploy
from qdeploy.errors import UnsupportedError
from qdeploy.formats.onnx.decoder.rotation import frequencies
from qdeploy.native import Runtime
from tests.formats.onnx_decoders import CONTEXT, VOCAB, DecoderFile, Shape, feeds, write_decoder
from tests.formats.onnx_networks import onnx_runtime, saved

SHAPES = {
    "packed": Shape(),
    "split, with norms of heads": Shape(packed=False, norms=True),
    "8 bits with zero points": Shape(bits=8, zeros=True, packed=False),
    "4 bits with zero points": Shape(zeros=True, activation="gelu"),
    "a shared table": Shape(shared=True),
    "a shared table of 8 bits": Shape(shared=True, bits=8),
    "a window and a softcap": Shape(window=5, softcap=3.0),
    "sinks": Shape(sinks=True),
    "a smooth softmax": Shape(smooth=True),
    "neighbours as pairs": Shape(interleaved=True, base=500000.0),
    "a rotation outside": Shape(packed=False, fused_rope=False, interleaved=True),
    "QuickGelu": Shape(activation="QuickGelu"),
    "FastGelu": Shape(activation="FastGelu"),
    "a head of floats": Shape(float_head=True),
    "norms behind a rotation": Shape(packed=False, fused_rope=False, norms_behind=True),
    "a table of floats that is the head": Shape(tied=True),
    "tables of FP4": Shape(table=0),
    "tables of NF4": Shape(table=1),
    "experts with a gated unit": Shape(experts="swiglu"),
    "experts without a gate": Shape(experts="gelu"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_the_source_in_the_interpreter_and_in_the_runtime(shape: Shape, tmp_path: Path):
    folder = write_decoder(tmp_path / "source", shape)
    ids = np.random.default_rng(1).integers(0, VOCAB, (1, 20))
    expected = onnx_runtime(folder, feeds(folder, ids, shape.size))[0]
    model = qdeploy.load(folder)
    assert model.graph.meta["kind"] == "decoder"
    assert [state.heads for state in model.graph.states] == [shape.kv_heads] * 2
    scale = np.abs(expected).max()
    assert np.abs(model.run(input_ids=ids)["logits"] - expected).max() < 1e-5 * scale
    qdeploy.convert(folder, tmp_path / "native", to="native")
    with Runtime(tmp_path / "native", threads=1, activations="exact", kv="f32") as runtime:
        assert np.abs(runtime.logits(ids[0]) - expected[0]).max() < 1e-4 * scale


def test_norms_inside_of_attention_are_norms_before_it(tmp_path: Path):
    """ONNX Runtime has them on GPUs alone; with the norms outside it is the same network."""
    proto = DecoderFile(Shape(packed=False, norms=True)).model()
    outside = qdeploy.load(saved(proto, tmp_path / "outside"))
    for node in proto.graph.node:
        if node.op_type == "GroupQueryAttention":
            names = [f"{node.name.removesuffix('.mixed')}.{side}" for side in "qk"]
            node.input[:2] = names
            node.input.extend([""] * (14 - len(node.input)) + [f"{name}.norm.w" for name in names])
            node.attribute.append(onnx.helper.make_attribute("qk_norm_epsilon", 1e-6))
    kept = [node for node in proto.graph.node if ".norm." not in node.name]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    inside = qdeploy.load(saved(proto, tmp_path / "inside"))
    ids = np.random.default_rng(1).integers(0, VOCAB, (1, 20))
    assert inside.graph.meta["kind"] == "decoder"
    assert len(inside.graph.nodes) == len(outside.graph.nodes)
    np.testing.assert_array_equal(inside.run(input_ids=ids)["logits"], outside.run(input_ids=ids)["logits"])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_tables_of_16_bits_give_their_frequencies(kind: str):
    narrow = ml_dtypes.bfloat16 if kind == "BF16" else np.float16
    inv_freq = (1 / 10000.0 ** (np.arange(16, dtype=np.float32) / np.float32(16))).astype(np.float32)
    angles = np.arange(256, dtype=np.float32)[:, None] * inv_freq
    cos, sin = (turn(angles).astype(narrow).astype(np.float32) for turn in (np.cos, np.sin))
    recovered = frequencies(cos, sin, kind)
    assert recovered is not None and np.abs(recovered[0] - inv_freq).max() < 1e-7


def test_greedy_text_is_that_of_the_source(tmp_path: Path):
    shape = Shape(packed=False, norms=True, window=6)
    folder = write_decoder(tmp_path / "source", shape)
    ids = [5, 9, 2]
    for _ in range(12):
        arrays = feeds(folder, np.array([ids]), shape.size)
        ids.append(int(onnx_runtime(folder, arrays)[0][0, -1].argmax()))
    qdeploy.convert(folder, tmp_path / "native", to="native")
    with Runtime(tmp_path / "native", threads=1, activations="exact", kv="f32") as runtime:
        text = list(ids[:3])
        logits = runtime.decode(text)
        while len(text) < len(ids):
            text.append(int(logits.argmax()))
            logits = runtime.decode(text[-1:])
    assert text == ids


@pytest.mark.parametrize("shape", [Shape(shared=True), Shape(tied=True)], ids=["a shared table", "a table of floats"])
def test_the_decoder_goes_to_onnx_as_one(shape: Shape, tmp_path: Path):
    folder = write_decoder(tmp_path / "source", shape)
    report = qdeploy.convert(folder, tmp_path / "out", to="onnx")
    assert all(check["error"] <= check["limit"] for check in report["checks"])
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert (config["eos_token_id"], config["context_length"], config["vocab_size"]) == ([2, 3], CONTEXT, VOCAB)


def test_a_table_that_is_also_the_head_is_one_tensor(tmp_path: Path):
    model = qdeploy.load(write_decoder(tmp_path / "source", Shape(shared=True)))
    table = next(node.inputs[0] for node in model.graph.nodes if node.op == "Gather")
    head = next(node.inputs[1] for node in model.graph.nodes if node.outputs[0] == "logits")
    assert table == head == "head_Q"


@pytest.mark.parametrize("what", ["an operator", "attention", "a mask", "tables"])
def test_what_stands_in_the_way_is_named_and_the_network_still_passes(what: str, tmp_path: Path):
    proto = _with_an_obstacle(what)
    folder = saved(proto, tmp_path / "source")
    model = qdeploy.load(folder)
    assert model.graph.meta["kind"] == "network"
    named = {"an operator": "lifted (HardSwish)", "attention": "layers.1.attn.mixed (GroupQueryAttention)"}
    expected = named.get(what, "layers.0.attn.mixed (GroupQueryAttention)")
    assert expected in str(model.graph.meta["obstacle"]) and any(expected in note for note in model.notes)
    with pytest.raises(UnsupportedError, match=r"HardSwish|GroupQueryAttention"):
        qdeploy.convert(folder, tmp_path / "native", to="native")
    qdeploy.convert(folder, tmp_path / "onnx", to="onnx", check="none")
    ids = np.random.default_rng(1).integers(0, VOCAB, (1, 8))
    arrays = feeds(folder, ids, 16)
    before, after = onnx_runtime(folder, arrays)[0], onnx_runtime(tmp_path / "onnx", arrays)[0]
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()


def _with_an_obstacle(what: str) -> onnx.ModelProto:
    file = DecoderFile(Shape())
    proto = file.model()
    nodes = {node.name: node for node in proto.graph.node}
    if what == "an operator":
        place = next(i for i, node in enumerate(proto.graph.node) if node.name == "layers.0.mlp.down")
        proto.graph.node[place].input[0] = "lifted"
        lifted = onnx.helper.make_node("HardSwish", ["layers.0.mlp.product"], ["lifted"], name="lifted")
        proto.graph.node.insert(place, lifted)
    elif what == "attention":  # an output that is no cache
        attention = nodes["layers.1.attn.mixed"]
        bias = onnx.numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.float32), "bias")
        proto.graph.initializer.append(bias)
        attention.input.extend(["", "bias"])
    elif what == "a mask":  # sequences that are one token shorter than their masks
        nodes["less"].input[1] = "two"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "two"))
    else:
        table = next(t for t in proto.graph.initializer if t.name == "cos")
        turned = onnx.numpy_helper.to_array(table).copy()
        turned[7, 3] += 0.25
        table.CopyFrom(onnx.numpy_helper.from_array(turned, "cos"))
    return proto


@pytest.mark.parametrize("base", [10000.0, 1e6, 12345.678])
@pytest.mark.parametrize(("positions", "pairs"), [(16, 8), (512, 32), (4096, 64)])
def test_frequencies_are_recovered_from_tables(base: float, positions: int, pairs: int):
    inv_freq = (1 / base ** (np.arange(pairs, dtype=np.float64) / pairs)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inv_freq
    factor = np.float32(1.25)
    recovered = frequencies(np.cos(angles) * factor, np.sin(angles) * factor)
    assert recovered is not None
    assert recovered[1] == factor
    assert np.abs(recovered[0] - inv_freq).max() < 1e-6 / positions + 1e-7


def test_tables_that_are_no_rotation_are_refused():
    rng = np.random.default_rng(0)
    for cos, sin in (
        (rng.standard_normal((8, 4)), rng.standard_normal((8, 4))),
        (np.ones((8, 4)), np.ones((8, 4))),
        (np.ones((1, 4)), np.zeros((1, 4))),
        (np.full((8, 4), np.nan), np.zeros((8, 4))),
        (np.ones((8, 4)), np.zeros((8, 5))),
    ):
        assert frequencies(cos.astype(np.float32), sin.astype(np.float32)) is None


def test_folders_of_the_builder_are_decoders(testdata: Path, tmp_path: Path):
    folders = sorted((testdata / "formats").glob("genai-*"))
    assert folders
    for folder in folders:
        model = qdeploy.load(folder)
        assert model.graph.meta["kind"] == "decoder", model.notes
        oracle = np.load(folder / "oracle.npz")
        for ids, logits in (("input_ids", "logits"), ("input_ids_2", "logits_2")):
            expected = oracle[logits]
            logits_here = model.run(input_ids=oracle[ids])["logits"]
            assert np.linalg.norm(logits_here - expected) < 5e-2 * np.linalg.norm(
                expected
            )  # activations of 8 bits there
        out = tmp_path / folder.name
        qdeploy.convert(folder, out, to="native")
        with Runtime(out, threads=1, activations="exact", kv="f32") as runtime:
            ids = oracle["input_ids"][0]
            own = model.run(input_ids=ids[None])["logits"][0]
            assert np.abs(runtime.logits(ids) - own).max() < 1e-4 * np.abs(own).max()
