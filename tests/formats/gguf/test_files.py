"""GGUF files as their writers made them: values against oracles, and every byte back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.gguf import reader
from qdeploy.formats.gguf.blocks import BLOCKS
from qdeploy.ir import rules
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import buffers
from qdeploy.store.codec import restore
from qdeploy.store.folder import Folder
from qdeploy.store.safetensors import TensorEntry

Types = gguf.GGMLQuantizationType


def load(path: Path) -> Model:
    return reader.read(Folder(path))


def checkpoints(testdata: Path) -> list[Path]:
    return sorted([*testdata.glob("checkpoints/gguf-*/*.gguf"), *testdata.glob("quantized/gguf/*.gguf")])


def written_again(model: Model, name: str) -> bytes:
    """The file from head, buffers and codecs alone."""
    head = next(file for file in model.files if file.role == "head" and file.path == name)
    out = np.zeros(head.total, np.uint8)
    out[: head.data.nbytes] = head.data.read()
    places = {(o.file, o.name): o for o in model.origins}
    for tensor in model.tensors.values():
        contents = {buffer.key: buffer for buffer in buffers(tensor)}
        for part, how in zip(tensor.source.tensors, reader.codecs(tensor.source), strict=True):
            place = places[(part.file, part.name)]
            if place.file != name:
                continue
            for start, slab in restore(how, [contents[key] for key in how.keys], place.shape):
                data = np.ascontiguousarray(slab).reshape(-1).view(np.uint8)
                begin = place.begin + start * place.nbytes // place.extent
                out[begin : begin + data.size] = data
    return out.tobytes()


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Types | None]], **fields: object) -> Path:
    """A small file by gguf-py; tensors in blocks are given as bytes with their type."""
    split = int(fields.pop("split", 0))
    writer = gguf.GGUFWriter(path, str(fields.pop("architecture", "llama")), split_max_tensors=split)
    for key, value in fields.items():
        writer.add_uint32(key.replace("__", "."), int(value))
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(shape: tuple[int, ...], kind: Types, seed: int = 0) -> tuple[np.ndarray, Types]:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return gguf.quants.quantize(values, kind), kind


def test_every_checkpoint_equals_its_oracle(testdata):
    compared = 0
    for path in checkpoints(testdata):
        if not (path.parent / "oracle.npz").exists():
            continue
        model, oracle = load(path), np.load(path.parent / "oracle.npz")
        for key in oracle.files:
            if key.startswith("w:"):
                assert np.array_equal(model.tensors[key[2:]].decode(), oracle[key]), f"{path.name}: {key}"
                compared += 1
    assert compared >= 26


def test_every_tensor_is_proven_by_reading_it_and_the_whole_file_comes_back(testdata):
    for path in checkpoints(testdata):
        model = load(path)
        for name, tensor in model.tensors.items():
            rules.check(tensor, name)
            tensor.decode()
        assert all(o.proven and not o.values_only and not len(o.residue()) for o in model.origins), path.name
        again = hashlib.sha256(written_again(model, path.name)).digest()
        assert again == hashlib.sha256(path.read_bytes()).digest(), path.name


def test_logits_are_those_of_the_library(testdata):
    for path in checkpoints(testdata):
        if not (path.parent / "oracle.npz").exists() or "logits" not in (oracle := np.load(path.parent / "oracle.npz")):
            continue
        model = load(path)
        ids = oracle["input_ids"].astype(np.int64).reshape(1, -1)
        out, _ = run(model.graph, {"input_ids": ids}, {}, Weights(model))
        result, want = (a.reshape(-1, a.shape[-1]) for a in (out["logits"], oracle["logits"]))
        bound = 5e-2 if "llamacpp" in path.parent.name else 1e-5  # llama.cpp's activations are 8 bit
        assert np.linalg.norm(result - want) / np.linalg.norm(want) < bound, path.name
        assert (result.argmax(-1) == want.argmax(-1)).mean() >= 14 / 16, path.name


@pytest.mark.parametrize(("kind", "bound"), [("F16", 6e-4), ("Q8_0", 1e-2), ("Q4_0", 0.15)])
def test_a_trained_model_is_near_its_float_original(testdata, kind, bound):
    model = load(testdata / "quantized" / "gguf" / f"stories260K-{kind}.gguf")
    original = load_file(testdata / "lm" / "stories260K" / "model.safetensors")
    for name, theirs in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight"),
        ("blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"),
        ("blk.4.attn_v.weight", "model.layers.4.self_attn.v_proj.weight"),
    ):
        result, want = model.tensors[name].decode(), original[theirs]
        assert np.linalg.norm(result - want) / np.linalg.norm(want) < bound


def test_vectors_and_experts_in_blocks(tmp_path):
    kinds = {"vector": ((96,), Types.Q8_0), "experts": ((3, 5, 64), Types.Q4_1), "deep": ((2, 3, 2, 256), Types.TQ2_0)}
    outputs = {name: quantized(shape, kind) for name, (shape, kind) in kinds.items()}
    plain = {
        "half": np.arange(12, dtype=np.float16).reshape(2, 2, 3),
        "whole": np.arange(5, dtype=np.int32),
        "double": np.linspace(0, 1, 6).reshape(2, 3),
        "long": np.array([1, -2, 3]),
    }
    model = load(write(tmp_path / "m.gguf", {**outputs, **{name: (a, None) for name, a in plain.items()}}))
    for name, (shape, kind) in kinds.items():
        assert model.tensors[name].shape == shape
        assert np.array_equal(model.tensors[name].decode(), gguf.quants.dequantize(*outputs[name]))
        assert model.tensors[name].source.tensors[0].dtype == kind.name
    assert np.array_equal(
        model.tensors["experts"].decode(slice(1, 2)), gguf.quants.dequantize(*outputs["experts"])[1:2]
    )
    for name, array in plain.items():
        assert np.array_equal(model.tensors[name].decode(), array.astype(np.float32))
    assert written_again(model, "m.gguf") == (tmp_path / "m.gguf").read_bytes()


def test_reading_rows_proves_only_those(tmp_path):
    model = load(write(tmp_path / "m.gguf", {"w": quantized((8, 64), Types.Q5_1)}))
    model.tensors["w"].decode(slice(2, 5))
    assert model.origins[0].covers(2, 5)
    assert not model.origins[0].covers(0, 5)
    assert not model.origins[0].proven


@pytest.mark.parametrize("kind", [Types.Q8_0, Types.TQ1_0])
def test_a_small_buffer_of_a_large_tensor_is_read_in_pieces(tmp_path, monkeypatch, kind):
    output = quantized((50, 256), kind)
    model = load(write(tmp_path / "m.gguf", {"w": output}))
    monkeypatch.setattr(reader, "SLAB_BYTES", 4 * output[0].shape[1] + 1)  # four rows
    largest, slab = [], TensorEntry.slab
    monkeypatch.setattr(TensorEntry, "slab", lambda self, *at: (largest.append(at[2] - at[1]), slab(self, *at))[1])
    scale = next(b for b in buffers(model.tensors["w"]) if b.key == "scale")
    assert scale.read(7, 7).shape == (0, *scale.shape[1:])
    assert scale.read().tobytes() == BLOCKS[kind.name].field(output[0], "scale").tobytes()
    assert max(largest) == 4
    assert model.origins[0].proven


def test_parts_are_one_model(tmp_path):
    outputs = {f"w{i}": quantized((4, 32), Types.Q8_0, seed=i) for i in range(5)}
    write(tmp_path / "m.gguf", outputs, split=2)
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[2]):
        model = load(path)
        assert list(model.tensors) == list(outputs)
        for name, value in outputs.items():
            assert np.array_equal(model.tensors[name].decode(), gguf.quants.dequantize(*value))
        for name in names:
            assert written_again(model, name) == (tmp_path / name).read_bytes()
    (tmp_path / names[1]).unlink()
    with pytest.raises(BadFileError, match="a part of a split model is missing"):
        load(tmp_path)


def test_metadata_of_a_later_part_are_not_dropped_in_silence(tmp_path):
    write(tmp_path / "m.gguf", {f"w{i}": quantized((4, 32), Types.Q8_0) for i in range(4)}, split=2)
    second = tmp_path / "m-00002-of-00002.gguf"
    reader = gguf.GGUFReader(second)
    writer = gguf.GGUFWriter(tmp_path / "x", "llama")
    del writer.kv_data[0]["general.architecture"]
    for key, kind in (("split.no", "uint16"), ("split.count", "uint16"), ("split.tensors.count", "int32")):
        getattr(writer, f"add_{kind}")(key, int(reader.fields[key].contents()))
    writer.add_float32("llama.rope.freq_base", 5.0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    del reader
    (tmp_path / "x").rename(second)
    with pytest.raises(BadFileError, match="metadata of its own") as caught:
        load(tmp_path)
    assert caught.value.found == "llama.rope.freq_base"


def test_a_part_under_another_parts_name_is_refused(tmp_path):
    write(tmp_path / "m.gguf", {f"w{i}": quantized((4, 32), Types.Q8_0) for i in range(4)}, split=2)
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(BadFileError, match="does not belong where its name puts it"):
        load(tmp_path)
    second.rename(tmp_path / "alone.gguf")
    with pytest.raises(BadFileError, match="does not belong where its name puts it"):
        load(tmp_path / "alone.gguf")


def test_a_folder_holds_one_model_and_its_side_files(tmp_path):
    write(tmp_path / "a.gguf", {"w": quantized((4, 32), Types.Q8_0)})
    (tmp_path / "README.md").write_text("hello")
    model = load(tmp_path)
    assert {file.path: file.role for file in model.files} == {"README.md": "side", "a.gguf": "head"}
    assert reader.sniff(Folder(tmp_path)).score == 90
    assert reader.sniff(Folder(tmp_path / "a.gguf")).score == 100
    assert reader.sniff(Folder(tmp_path / "README.md")).score == 0
    write(tmp_path / "b.gguf", {"w": quantized((4, 32), Types.Q8_0)})
    with pytest.raises(AmbiguousError, match="several models"):
        load(tmp_path)


def test_a_type_that_cannot_be_read_is_refused_by_name_and_only_where_it_is_used(tmp_path):
    write(tmp_path / "m.gguf", {"good": quantized((4, 32), Types.Q8_0), "last": quantized((4, 32), Types.Q4_0)})
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    at = data.index(b"last") + 4 + 4 + 16  # name, axes, extents
    assert data[at] == Types.Q4_0
    for number, name in ((9, "Q8_1"), (15, "Q8_K"), (41, "Q1_0"), (36, "IQ4_NL_4_4"), (77, "type 77")):
        data[at] = number
        (tmp_path / "m.gguf").write_bytes(data)
        model = load(tmp_path)
        assert model.tensors["good"].decode().shape == (4, 32)
        with pytest.raises(UnsupportedError, match=name):
            model.tensors["last"]


def test_padding_that_is_not_zero_is_kept(tmp_path):
    path = write(tmp_path / "m.gguf", {"a": quantized((1, 32), Types.Q8_0), "b": quantized((1, 32), Types.Q8_0)})
    data = bytearray(path.read_bytes())
    begin = load(path).origins[1].begin
    data[begin - 3] = 7
    path.write_bytes(data)
    (rest,) = load(path).files
    assert rest.role == "rest"
    assert rest.data.read().tobytes().count(7) == 1
    import qdeploy

    qdeploy.convert(path, tmp_path / "package", to="ir")
    qdeploy.convert(tmp_path / "package", tmp_path / "back", to="source")
    assert (tmp_path / "back/m.gguf").read_bytes() == bytes(data)


def test_a_file_without_the_last_padding_is_whole(tmp_path):
    path = write(tmp_path / "m.gguf", {"a": quantized((1, 32), Types.Q8_0)})
    origin = load(path).origins[0]
    path.write_bytes(path.read_bytes()[: origin.begin + origin.nbytes])
    assert written_again(load(path), "m.gguf") == path.read_bytes()


def test_an_unknown_architecture_gives_tensors_but_no_graph(tmp_path):
    model = load(write(tmp_path / "m.gguf", {"w": quantized((4, 32), Types.Q8_0)}, architecture="mamba"))
    assert model.config == {}
    assert model.tensors["w"].decode().shape == (4, 32)
    with pytest.raises(UnsupportedError, match="mamba"):
        _ = model.graph


def test_a_tensor_that_no_node_uses_is_refused(testdata, tmp_path):
    source = gguf.GGUFReader(testdata / "checkpoints" / "gguf-q4_0-tinyllama" / "tinyllama-q4_0.gguf")
    tensors = {t.name: (np.array(t.data), t.tensor_type) for t in source.tensors}
    fields = {key: field.contents() for key, field in source.fields.items() if key.startswith("llama.")}
    numbers = {key: value for key, value in fields.items() if isinstance(value, int)}
    tensors = {name: (a, None if kind == Types.F32 else kind) for name, (a, kind) in tensors.items()}
    assert load(write(tmp_path / "whole.gguf", tensors, **numbers)).graph.nodes
    tensors["blk.0.ffn_up.scale"] = (np.ones(1, np.float32), None)
    with pytest.raises(UnsupportedError, match="does not use"):
        _ = load(write(tmp_path / "more.gguf", tensors, **numbers)).graph


def test_parts_that_do_not_have_the_tensors_that_the_first_counts_are_refused(tmp_path):
    for folder, count in ((tmp_path / "one", 4), (tmp_path / "two", 3)):
        folder.mkdir()
        write(folder / "m.gguf", {f"{folder.name}.{i}": quantized((4, 32), Types.Q8_0) for i in range(count)}, split=2)
    name = "m-00002-of-00002.gguf"
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(BadFileError, match="the first part counts") as caught:
        load(tmp_path / "one")
    assert (caught.value.found, caught.value.allowed) == ("3", "4")
