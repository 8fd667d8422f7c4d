"""Decoders: logits of real and of small models, every family against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy.arch.family import family_of
from qdeploy.formats.huggingface import safetensors
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, generate_greedy, run
from qdeploy.ir.tensor import Buffer, QTensor, plain
from qdeploy.store.folder import Folder

IDS = [(7 * i * i + 3 * i + 1) % 48 for i in range(12)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA3,
    },
    "mistral": {"head_dim": 16, "sliding_window": 5},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "rope_parameters": YARN,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3": {
        "head_dim": 16,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
}
# transformers 5.23.0, <Family>ForCausalLM with eager attention, parameters by the rule in conftest.py, on IDS: the norm
# of all logits, the first six of the last token, and numbers 10 to 13 of token 7.
REFERENCE = {
    "llama": (
        19.800761663,
        [-0.599013, 0.02781, 0.0437, -0.555558, -0.664917, -2.413984],
        [1.22302, 0.662479, -0.87046, -0.966541],
    ),
    "mistral": (
        18.835770468,
        [-0.14725, -1.883874, -0.734405, -0.791953, -0.103954, -0.269126],
        [1.108872, -0.670899, -0.648554, 1.452257],
    ),
    "qwen2": (
        20.195909871,
        [-0.234441, 1.239874, -0.57128, -0.080006, -0.460636, -2.000063],
        [0.536456, 0.917544, -0.695285, 0.067648],
    ),
    "qwen3": (
        19.466168235,
        [-0.627745, -0.099078, 0.711032, -1.725626, 1.934203, 0.676072],
        [-0.386802, -0.662742, -0.635617, -0.972936],
    ),
}


def logits(model: Model, ids: list[int]) -> np.ndarray:
    return run(model.graph, {"input_ids": np.array([ids])}, None, Weights(model))[0]["logits"]


@pytest.mark.parametrize("kind", REFERENCE)
def test_every_family_gives_the_logits_of_transformers(kind: str, make_model: Any) -> None:
    result = logits(make_model(kind, **FIELDS[kind]), IDS)[0]
    norm, last, middle = REFERENCE[kind]
    assert np.linalg.norm(result.astype(np.float64)) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(result[-1, :6], last, atol=3e-6)
    np.testing.assert_allclose(result[7, 10:14], middle, atol=3e-6)


@pytest.mark.parametrize("kind", REFERENCE)
def test_steps_with_a_state_equal_one_shot(kind: str, make_model: Any) -> None:
    model = make_model(kind, **FIELDS[kind])
    weights, states, parts = Weights(model), None, []
    for chunk in (IDS[:3], IDS[3:4], IDS[4:9], IDS[9:]):
        outputs, states = run(model.graph, {"input_ids": np.array([chunk])}, states, weights)
        parts.append(outputs["logits"])
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits(model, IDS), atol=2e-5)
    assert {name: keys.shape[2] for name, (keys, _) in states.items()} == {"kv.0": 12, "kv.1": 12}


def test_a_batch_is_its_sequences(make_model: Any) -> None:
    model = make_model("qwen3", **FIELDS["qwen3"])
    both = run(model.graph, {"input_ids": np.array([IDS, IDS[::-1]])}, None, Weights(model))[0]["logits"]
    np.testing.assert_allclose(both[1:], logits(model, IDS[::-1]), atol=2e-5)


@pytest.mark.parametrize("name", ["base-tinyllama", "base-tinyqwen2"])
def test_checkpoints_give_the_logits_of_their_oracle(name: str, testdata: Path) -> None:
    folder = testdata / "checkpoints" / name
    oracle = np.load(folder / "oracle.npz")
    model = safetensors.read(Folder(folder))
    result = logits(model, oracle["input_ids"].ravel().tolist())
    expected = oracle["logits"].reshape(result.shape)
    assert np.linalg.norm(result - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.fixture(scope="module")
def stories(testdata: Path) -> tuple[Model, Any, Path]:
    from tokenizers import Tokenizer

    folder = testdata / "lm" / "stories260K"
    return safetensors.read(Folder(folder)), Tokenizer.from_file(str(folder / "tokenizer.json")), testdata


def test_stories_begin_as_they_do(stories: tuple[Model, Any, Path]) -> None:
    model, tokenizer, _ = stories
    ids = tokenizer.encode("Once upon a time").ids
    text = tokenizer.decode(ids + generate_greedy(model, ids, 50))
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


def test_stories_have_the_perplexity_of_a_trained_model(stories: tuple[Model, Any, Path]) -> None:
    """Over the first five stories transformers 5.23.0 gives 3.8193554 in float32 (1,748 tokens)."""
    model, tokenizer, testdata = stories
    texts = (testdata / "text" / "tinystories_a.txt").read_text("utf-8").split("<|endoftext|>")[:5]
    weights, total, count = Weights(model), 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text.strip()).ids[:512]
        assert ids[0] == model.config["bos_token_id"]
        scores = run(model.graph, {"input_ids": np.array([ids[:-1]])}, None, weights)[0]["logits"][0].astype(np.float64)
        scores -= scores.max(axis=-1, keepdims=True)
        likely = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        total -= likely[np.arange(len(ids) - 1), ids[1:]].sum()
        count += len(ids) - 1
    assert count == 1748 and np.exp(total / count) == pytest.approx(3.8193554, rel=1e-5)


def as_gguf(model: Model, permute: bool) -> Model:
    """The same model with GGUF names and, for Llama, the rows of q and k as llama.cpp's converter orders them."""
    family = family_of(model.config["model_type"])
    assert family is not None
    names, tensors = family.names, dict[str, QTensor]()
    for name, tensor in model.tensors.items():
        values = tensor.decode()
        if permute and ("q_proj" in name or "k_proj" in name):
            heads = model.config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            split = values.reshape(heads, 2, -1, *values.shape[1:])  # [heads, 2, D / 2, ...]
            values = split.swapaxes(1, 2).reshape(values.shape)
        tensors[names.to_gguf(name)] = plain(Buffer.of("data", values.copy(), "F32"), "f32")
    config = {**model.config, "rope_interleaved": permute}
    return Model("gguf", "small", tensors, config, "gguf", build_graph=model.build_graph)


@pytest.mark.parametrize("kind", REFERENCE)
def test_interleaved_rope_on_permuted_rows_is_half_split_rope(kind: str, make_model: Any) -> None:
    permute = kind in ("llama", "mistral")  # GGUF files of Qwen keep their rows
    model = make_model(kind, **FIELDS[kind])
    np.testing.assert_allclose(logits(as_gguf(model, permute), IDS), logits(model, IDS), atol=1e-5)


def test_a_gguf_file_may_keep_its_rope_scaling_as_a_tensor(make_model: Any) -> None:
    fields = {**FIELDS["llama"], "rope_parameters": None}
    plainly = make_model("llama", **fields)
    scaled = make_model("llama", **FIELDS["llama"])
    file = as_gguf(plainly, permute=True)
    factors = plainly.graph.constants["rope.inv_freq"].decode() / scaled.graph.constants["rope.inv_freq"].decode()
    file.tensors = {**file.tensors, "rope_freqs.weight": plain(Buffer.of("data", factors, "F32"), "f32")}
    np.testing.assert_allclose(logits(file, IDS), logits(scaled, IDS), atol=1e-5)


def test_a_tied_head_is_the_embedding_used_twice(make_model: Any) -> None:
    tied = make_model("llama", tie_word_embeddings=True)
    assert tied.graph.nodes[-1].inputs[1] == tied.graph.nodes[0].inputs[0] == "model.embed_tokens.weight"
    silent = make_model("llama", drop=("lm_head.weight",))  # not declared, but there is no other head
    assert silent.graph.weights() == tied.graph.weights()
    own = make_model("llama", arrays={"lm_head.weight": np.zeros((48, 32))}, tie_word_embeddings=True)
    assert own.graph.nodes[-1].inputs[1] == "lm_head.weight"


def test_zero_biases_that_nobody_declared_are_left_out(make_model: Any) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    model = make_model("llama", arrays={name: np.zeros(32)})
    assert name not in model.graph.weights()


def test_mlp_activations_that_gated_mlp_lacks_are_built_of_nodes(make_model: Any) -> None:
    ops = [node.op for node in make_model("llama", hidden_act="relu").graph.nodes]
    assert "GatedMlp" not in ops and ops.count("Relu") == 2


def test_sliding_windows_stand_on_the_layers_that_have_them(make_model: Any) -> None:
    def windows(kind: str, **fields: Any) -> list[Any]:
        return [n.attrs["window"] for n in make_model(kind, **fields).graph.nodes if n.op == "Attention"]

    assert windows("mistral", sliding_window=None) == [0, 0]
    assert windows("mistral") == [4096, 4096]  # MistralConfig's default
    assert windows("qwen2", sliding_window=8) == [0, 0]  # use_sliding_window is false by default
    assert windows("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1) == [0, 8]
    assert windows("qwen2", sliding_window=None, use_sliding_window=True) == [0, 0]


def test_the_graph_says_what_a_backend_must_know(make_model: Any) -> None:
    graph = make_model("llama", bos_token_id=1, eos_token_id=[2, 3], pad_token_id=None).graph
    assert graph.meta == {
        "kind": "decoder",
        "model_type": "llama",
        "context": 64,
        "vocab": 48,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    assert [(s.name, s.heads, s.head_dim, s.capacity) for s in graph.states] == [("kv.0", 2, 8, 64), ("kv.1", 2, 8, 64)]
