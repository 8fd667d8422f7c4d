"""BitStack: the numbers of the published layout, its bytes, its side files, and what is refused.

The checkpoints are written here from the text of the layout: signs by numpy.packbits over the whole matrix, keys by
name, no line shared with the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_layers import assert_comes_back, assert_rows_agree, open_
from safetensors.numpy import save_file

import qdeploy
from qdeploy.elastic.pieces import pieces_of
from qdeploy.elastic.published import reference_steps, sensitivities
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.run import generate_greedy
from qdeploy.ir.views import view

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
LAYERS = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
Q = "model.layers.0.self_attn.q_proj"


def layer(name: str, shape: tuple[int, int], blocks: int, rank: int, seed: int) -> tuple[dict, np.ndarray]:
    """The stored tensors of a layer, and the weight that they stand for after each block."""
    rng, tensors, sums = np.random.default_rng(seed), {}, [np.zeros(shape)]
    for i in range(blocks):
        signs = rng.choice([-1, 1], shape)
        u = (rng.standard_normal((shape[0], rank)) * 0.5**i / 4).astype(np.float16)
        vt = (rng.standard_normal((rank, shape[1])) * 0.5**i).astype(np.float16)
        tensors[f"{name}.qweight_{i}"] = np.packbits(signs.reshape(-1) == 1)
        tensors[f"{name}.u_{i}"], tensors[f"{name}.vt_{i}"] = u, vt
        sums.append(sums[-1] + signs * (u.astype(np.float64) @ vt.astype(np.float64)))
    return tensors, np.array(sums)


def network(blocks: int = 3, rank: int = 2) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every stored tensor of a small Llama, and the weights of its decomposed layers."""
    rng, tensors, weights = np.random.default_rng(5), {}, {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((32, 16)).astype(np.float16)
    tensors["model.norm.weight"] = np.ones(16, np.float16)
    for i in range(2):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = np.ones(16, np.float16)
        for number, (part, shape) in enumerate(LAYERS.items()):
            name = f"model.layers.{i}.{part}"
            output, sums = layer(name, shape, blocks, rank, 10 * i + number)
            tensors |= output
            weights[f"{name}.weight"] = sums
    return tensors, weights


def save(folder: Path, tensors: dict[str, np.ndarray], **side: object) -> Path:
    """Writes the folder; `side` gives the JSON files beside config.json."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    for name, value in {"config": CONFIG, **side}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def order_file(steps: list[tuple[str, int]]) -> list[dict]:
    """compression_config.json of an order: one block of everything, then an entry per step."""
    now = {f"layer.{i}.{part}": 1 for i in range(2) for part in LAYERS}
    entries = [{"memory": 100, "layers": dict(now)}]
    for number, (name, block) in enumerate(steps, 1):
        now[name] = block + 1
        entries.append({"memory": 100 + number, "layers": dict(now)})
    return entries


def level_by_level(blocks: int, seed: int = 3) -> list[tuple[str, int]]:
    names, rng = [f"layer.{i}.{part}" for i in range(2) for part in LAYERS], np.random.default_rng(seed)
    return [(str(name), b) for b in range(1, blocks) for name in rng.permutation(names)]


def test_a_whole_network_is_read_with_every_prefix_of_its_blocks(tmp_path: Path) -> None:
    tensors, weights = network()
    model = open_(save(tmp_path / "m", tensors))
    assert model.format == "bitstack"
    for name, sums in weights.items():
        tensor = model.tensors[name]
        rules.check(tensor, name)
        rules.check_values(tensor, name)
        assert len(view(tensor).terms) == 3
        np.testing.assert_allclose(tensor.decode(), sums[-1], rtol=1e-5, atol=1e-6)
        for rung in range(3):
            np.testing.assert_allclose(decode_tensor(tensor, rung=rung), sums[rung + 1], rtol=1e-5, atol=1e-6)
    assert len(generate_greedy(model, [1, 2, 3], 4)) == 4


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 41),
    columns=st.integers(1, 41),
    blocks=st.integers(1, 4),
    rank=st.integers(1, 5),
)
def test_any_shape_is_decoded_and_comes_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, columns: int, blocks: int, rank: int
) -> None:
    tensors, sums = layer("block.proj", (rows, columns), blocks, rank, seed)
    folder = tmp_path_factory.mktemp("bitstack")
    save_file(tensors, folder / "model.safetensors")
    model = open_(folder)
    np.testing.assert_allclose(model.tensors["block.proj.weight"].decode(), sums[-1], rtol=1e-5, atol=1e-5)
    assert_rows_agree(model)
    assert_comes_back(model, folder)


def test_a_package_gives_the_source_files_back(tmp_path: Path) -> None:
    source = save(tmp_path / "m", network()[0], compression_config=order_file(level_by_level(3)))
    report = qdeploy.convert(source, tmp_path / "package", to="ir")
    assert report["lossless"]["file bytes"] == {"proven": 1, "of": 1}
    qdeploy.convert(tmp_path / "package", tmp_path / "again", to="source")
    for path in source.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_bits_behind_the_last_sign_come_back_too(tmp_path: Path) -> None:
    tensors, sums = layer("a.proj", (3, 3), 1, 1, 0)
    tensors["a.proj.qweight_0"][-1] |= 0x15
    model = open_(save(tmp_path / "m", tensors, config={}))
    np.testing.assert_allclose(model.tensors["a.proj.weight"].decode(), sums[-1], rtol=1e-5)
    residue = next(o for o in model.origins if o.name.endswith("qweight_0")).residue()
    assert residue.tolist() == [(1, 0x15)]


def test_shards_with_an_index_and_a_bare_file_are_recognised(tmp_path: Path) -> None:
    tensors, _ = layer("a.proj", (8, 8), 2, 1, 0)
    (tmp_path / "m").mkdir()
    first = {k: v for k, v in tensors.items() if k.endswith("_0")}
    second = {k: v for k, v in tensors.items() if k not in first}
    for name, part in (("one.safetensors", first), ("two.safetensors", second)):
        save_file(part, tmp_path / "m" / name)
    table = {**dict.fromkeys(first, "one.safetensors"), **dict.fromkeys(second, "two.safetensors")}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert open_(tmp_path / "m").format == "bitstack"
    save_file(tensors, tmp_path / "bare.safetensors")
    assert open_(tmp_path / "bare.safetensors").format == "bitstack"


# The files beside the weights.


@pytest.mark.parametrize("falling", [False, True])
def test_the_authors_order_is_read_from_its_list_of_configurations(tmp_path: Path, falling: bool) -> None:
    steps = level_by_level(3)
    entries = order_file(steps)
    model = open_(save(tmp_path / "m", network()[0], compression_config=entries[::-1] if falling else entries))
    wanted = [(f"{name.replace('layer.', 'model.layers.', 1)}.weight", block) for name, block in steps]
    assert reference_steps(model) == wanted


def test_a_list_longer_than_a_chunk_is_read_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.elastic.published._CHUNK", 700)
    steps = level_by_level(3)
    model = open_(save(tmp_path / "m", network()[0], compression_config=order_file(steps)))
    assert len(reference_steps(model)) == len(steps)


def test_sensitivities_follow_the_measured_perplexities(tmp_path: Path) -> None:
    names = [f"layer.{i}.{part}" for i in range(2) for part in LAYERS]
    rows = [{"bit": b, "ppls": [{"layer": n, "ppl": 50.0 / b - (n == names[3])} for n in names]} for b in (1, 2)]
    side = {"original_ppl": 6.0, "reduced_ppl": rows}
    model = open_(save(tmp_path / "m", network()[0], reduced_ppl_average=side))
    pieces = [p for name in model.tensors for p in pieces_of(name, model.tensors[name])]
    result = sensitivities(model, pieces)
    assert set(result) == {f"{n.replace('layer.', 'model.layers.', 1)}.weight" for n in names}
    assert max(result, key=result.__getitem__) == "model.layers.0.self_attn.o_proj.weight"
    assert min(result.values()) > 0
    assert sum(result.values()) / len(result) == pytest.approx(1)


def unknown_layer(entries: list) -> object:
    return [{**e, "layers": {**e["layers"], "layer.7.self_attn.q_proj": 1}} for e in entries]


LISTS: dict[str, Callable[[list], object]] = {
    "a layer that is not there": unknown_layer,
    "an empty list": lambda entries: [],
    "no list": lambda entries: {"memory": 1},
    "text": lambda entries: "hello",
    "a block taken away": lambda entries: [entries[0], entries[5], entries[2], *entries[6:]],
    "a layer that goes missing": lambda entries: [entries[0], {"layers": {"layer.0.self_attn.q_proj": 2}}],
    "not one block at first": lambda entries: entries[5:],
    "no number": lambda entries: [{"layers": dict.fromkeys(entries[0]["layers"], "1")}],
    "no layers": lambda entries: [{"memory": {}}],
}


@pytest.mark.parametrize("attack", LISTS)
def test_a_list_that_lies_is_one_clear_error(tmp_path: Path, attack: str) -> None:
    entries = LISTS[attack](order_file(level_by_level(3)))
    model = open_(save(tmp_path / "m", network()[0], compression_config=entries))
    with pytest.raises(BadFileError) as caught:
        reference_steps(model)
    assert "compression_config.json" in caught.value.where


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"reduced_ppl": 3},
        {"reduced_ppl": [{"ppls": [{"layer": "layer.0.self_attn.q_proj", "ppl": -1.0}]}]},
        {"reduced_ppl": [{"ppls": [{"layer": "layer.9.self_attn.q_proj", "ppl": 5.0}]}]},
        {"reduced_ppl": [{}]},
        {"reduced_ppl": [{"ppls": [{"layer": ["x"], "ppl": 5.0}]}]},
    ],
)
def test_perplexities_that_lie_are_one_clear_error(tmp_path: Path, tree: object) -> None:
    model = open_(save(tmp_path / "m", network()[0], reduced_ppl_average=tree))
    with pytest.raises(BadFileError):
        sensitivities(model, [])


def test_a_checkpoint_without_the_files_says_so(tmp_path: Path) -> None:
    model = open_(save(tmp_path / "m", network()[0]))
    with pytest.raises(UnsupportedError):
        reference_steps(model)


# Damage.


def drop(name: str) -> Callable[[dict], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, array: np.ndarray) -> Callable[[dict], None]:
    return lambda tensors: tensors.update({name: array})


HALF = np.float16
DAMAGE: dict[str, tuple[Callable[[dict], None], str]] = {
    "a block in the middle": (drop(f"{Q}.qweight_1"), f"{Q}.qweight_1"),
    "the first signs": (drop(f"{Q}.qweight_0"), f"{Q}.qweight_0"),
    "the first factor": (drop(f"{Q}.u_0"), f"{Q}.u_0"),
    "the last factor": (drop(f"{Q}.vt_2"), f"{Q}.vt_2"),
    "a number too far": (put(f"{Q}.qweight_99999999999999999999", np.zeros(32, np.uint8)), f"{Q}.qweight_3"),
    "a number with a zero in front": (put(f"{Q}.u_01", np.zeros((16, 2), HALF)), f"{Q}.qweight_3"),
    "signs too short": (put(f"{Q}.qweight_1", np.zeros(31, np.uint8)), f"{Q}.qweight_1"),
    "signs as a matrix": (put(f"{Q}.qweight_1", np.zeros((16, 2), np.uint8)), f"{Q}.qweight_1"),
    "signs as words": (put(f"{Q}.qweight_1", np.zeros(8, np.int32)), f"{Q}.qweight_1"),
    "another number of rows": (put(f"{Q}.u_2", np.zeros((17, 2), HALF)), f"{Q}.u_2"),
    "another number of columns": (put(f"{Q}.vt_1", np.zeros((2, 15), HALF)), f"{Q}.vt_1"),
    "ranks that differ": (put(f"{Q}.u_1", np.zeros((16, 3), HALF)), f"{Q}.u_1"),
    "no rows": (put(f"{Q}.u_0", np.zeros((0, 2), HALF)), f"{Q}.u_0"),
    "integers as factors": (put(f"{Q}.u_0", np.zeros((16, 2), np.int16)), f"{Q}.u_0"),
    "a plain weight beside": (put(f"{Q}.weight", np.zeros((16, 16), HALF)), f"{Q}.weight"),
    "scales that were not fused": (put("model.layers.0.mlp.act_fn.scales", np.ones(24, HALF)), "act_fn.scales"),
}


@pytest.mark.parametrize("attack", DAMAGE)
def test_damage_is_one_clear_error_that_names_the_tensor(tmp_path: Path, attack: str) -> None:
    tensors, _ = network()
    change, where = DAMAGE[attack]
    change(tensors)
    with pytest.raises(QdeployError) as caught:
        open_(save(tmp_path / "m", tensors))
    assert where in caught.value.where


def test_blocks_without_signs_are_refused_by_name(tmp_path: Path) -> None:
    tensors, _ = network()
    for i in range(3):
        del tensors[f"{Q}.qweight_{i}"]
    with pytest.raises(UnsupportedError, match="no_avd"):
        open_(save(tmp_path / "m", tensors))


def test_a_weight_of_another_shape_than_the_config_is_refused(tmp_path: Path) -> None:
    model = open_(save(tmp_path / "m", network()[0], config={**CONFIG, "intermediate_size": 40}))
    with pytest.raises(BadFileError, match="intermediate_size"):
        _ = model.graph
