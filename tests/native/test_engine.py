"""What an engine promises: the bits of a sequence are its own, memory is promised and counted, nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.backends.native.reading import ModelFile
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.native import Engine, NoMemoryError, Runtime, Sequence, UnderFloorError

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").glob("*.qd"))
RANDOM = np.random.default_rng(3)
LONG = RANDOM.integers(5, 90, 400)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network for 1,024 tokens."""
    folder = tmp_path_factory.mktemp("engine")
    source = shutil.copytree(TINY, folder / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    qdeploy.convert(source, folder / "tiny.qd", to="native")
    return folder / "tiny.qd"


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    with Runtime(tiny, threads=2, session=False) as model, Engine(model) as opened:
        yield opened


def answer(
    engine: Engine, ids: list[int] | np.ndarray, tokens: int, context: int = 512
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens of one sequence that is alone, and its last logits."""
    sequence = engine.open(ids, context)
    results: list[int] = []
    while len(results) < tokens:
        for ready in engine.step():
            results.append(ready.sample())
            if len(results) < tokens:
                ready.push(results[-1:])
    logits = sequence.logits
    sequence.close()
    assert logits is not None
    return results, logits


def finish(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


def logits(sequence: Sequence) -> np.ndarray:
    result = sequence.logits
    assert result is not None
    return result


def test_a_sequence_does_not_depend_on_who_else_is_in_the_batch(tiny: Path):
    prompts = [RANDOM.integers(5, 90, size) for size in (1, 3, 70, 128, 200, 17, 64, 65)]
    alone = []
    for prompt in prompts:
        with Runtime(tiny, threads=1, session=False) as model, Engine(model, sequences=1, rows=7) as engine:
            alone.append(answer(engine, prompt, 9))
    with Runtime(tiny, threads=3, session=False) as model, Engine(model) as engine:
        sequences, result = {}, [list[int]() for _ in prompts]
        last: dict[int, np.ndarray] = {}
        turn = 0
        while len(last) < len(prompts):
            if turn < len(prompts):  # one joins before every step
                sequences[engine.open(prompts[turn], 512)] = turn
            turn += 1
            for ready in engine.step():
                which = sequences[ready]
                result[which].append(ready.sample())
                if len(result[which]) < 9:
                    ready.push(result[which][-1:])
                else:
                    last[which] = logits(ready)
                    ready.close()
    for which, (tokens, wanted) in enumerate(alone):
        assert result[which] == tokens
        np.testing.assert_array_equal(last[which], wanted)


@pytest.mark.parametrize("path", [p for p in GOLDEN if not ModelFile(p).header["kind"]], ids=lambda path: path.stem)
@pytest.mark.parametrize("activations", ["int8", "exact"])
def test_every_kind_of_network_gives_its_bits_in_any_batch(path: Path, activations: str):
    prompts, alone = [[3, 88, 41], [7], [19, 0, 56, 71, 4], [5, 6]], []
    with Runtime(path, threads=1, session=False, activations=activations) as model:  # type: ignore[arg-type]
        for prompt in prompts:
            with Engine(model, sequences=1, rows=2) as engine:
                alone.append(answer(engine, prompt, 4, 32))
        with Engine(model) as engine:
            sequences = [engine.open(prompt, 32) for prompt in prompts]
            for _ in range(3):
                for ready in engine.step():
                    ready.push([ready.sample()])
            engine.step()
            for sequence, (_, wanted) in zip(sequences, alone, strict=True):
                np.testing.assert_array_equal(logits(sequence), wanted)


def test_the_engine_says_what_a_session_says(tiny: Path):
    ids = LONG[:150]
    with Runtime(tiny, activations="exact", context=512) as model, Engine(model) as engine:
        wanted = model.decode(ids)
        sequence = engine.open(ids, 200)
        finish(engine)
        np.testing.assert_array_equal(logits(sequence), wanted)


def test_a_shared_prefix_is_computed_once_with_the_same_bits(engine: Engine):
    first = answer(engine, LONG, 3)
    assert engine.stats["reused_tokens"] == 0 and engine.stats["cached_blocks"] == 6
    assert engine.model.stats["prompt_cache"] == 6 * engine.stats["block_bytes"]
    again = engine.open(LONG, 512)
    assert again.reused == 384
    again.close()
    second = answer(engine, LONG, 3)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    other = engine.open([*LONG[:100], *LONG[:100]], 512)
    assert other.reused == 64


def test_two_that_begin_alike_share_blocks_while_both_run(engine: Engine):
    one, two = engine.open(LONG, 448), engine.open(LONG, 448)
    finish(engine)
    np.testing.assert_array_equal(logits(one), logits(two))
    assert engine.stats["blocks"] == 8  # six shared, and one of each


def test_blocks_of_other_rungs_are_not_shared(engine: Engine):
    answer(engine, LONG, 1)
    engine.model.set_rung(engine.model.stats["rungs"] - 1)
    assert engine.open(LONG, 512).reused == 0


def test_forks_go_their_own_ways(engine: Engine):
    parent = engine.open(LONG[:100], 256)
    finish(engine)
    child = parent.fork()
    np.testing.assert_array_equal(logits(parent), logits(child))
    parent.push([9, 8, 7])
    child.push([4, 5])
    finish(engine)
    for sequence, more in ((parent, [9, 8, 7]), (child, [4, 5])):
        np.testing.assert_array_equal(logits(sequence), answer(engine, [*LONG[:100], *more], 1)[1])


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 100, 128, 199, 200])
def test_what_is_trimmed_leaves_no_trace(engine: Engine, keep: int):
    sequence = engine.open(LONG[:200], 300)
    finish(engine)
    fork = sequence.fork()
    before = engine.stats["blocks"]
    sequence.trim(keep)
    sequence.push([11, 12])
    fork.push([13])
    finish(engine)
    np.testing.assert_array_equal(logits(sequence), answer(engine, [*LONG[:keep], 11, 12], 1)[1])
    np.testing.assert_array_equal(logits(fork), answer(engine, [*LONG[:200], 13], 1)[1])
    assert before <= engine.stats["blocks"] <= before + 4
    sequence.close()
    fork.close()
    assert engine.stats["blocks"] == 0


@pytest.mark.parametrize("waiting", [False, True])
def test_a_saved_sequence_goes_on_as_if_it_had_stayed(engine: Engine, tmp_path: Path, waiting: bool):
    path = tmp_path / "talk"
    sequence = engine.open(LONG[:130], 256)
    finish(engine)
    if waiting:
        sequence.push([3, 4])
    sequence.save(path)
    again = engine.restore(path, 256)
    assert len(again) == len(sequence)
    for each in (sequence, again):
        each.push([9])
    finish(engine)
    np.testing.assert_array_equal(logits(sequence), logits(again))
    good = path.read_bytes()
    for at in (0, 20, 60, 81, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(BadFileError):
            engine.restore(path, 256)
    for cut in (good[:-1], good + b"\0", good[:40]):
        path.write_bytes(cut)
        with pytest.raises(qdeploy.errors.QdeployError):
            engine.restore(path, 256)
    assert engine.stats["sequences"] == 2


def test_memory_is_promised_counted_and_given_back(tiny: Path):
    with Runtime(tiny, threads=1, session=False) as model:
        empty = model.stats["total"]
        with Engine(model, sequences=2) as engine:
            block, ready = engine.stats["block_bytes"], model.stats["total"]
            sequence = engine.open(LONG, 512)
            assert engine.stats["blocks"] == 8 and model.stats["kv"] == 8 * block
            finish(engine)
            assert model.stats["kv"] == 8 * block
            sequence.close()
            assert engine.stats["blocks"] == 0 and model.stats["kv"] == 6 * block
            assert model.stats["total"] == ready + 6 * block
            engine.open(LONG, 512)
            engine.open([3], 64)
            with pytest.raises(BadArgumentError, match="sequences"):
                engine.open([3], 64)
        assert model.stats["total"] == empty


def test_a_budget_drops_the_prompt_cache_before_any_weight_and_refuses_what_cannot_fit(engine: Engine):
    model = engine.model
    answer(engine, LONG, 1)
    cached, rungs = model.stats["prompt_cache"], model.stats["rungs"]
    assert cached > 0
    model.memory = model.stats["total"] - cached
    model.wait()
    assert model.stats["prompt_cache"] == 0 and model.stats["rung"] == rungs
    model.memory = 0
    running = engine.open(LONG, 512)
    model.memory = model.stats["floor"]
    assert model.stats["total"] <= model.stats["budget"] or model.stats["pending"]
    with pytest.raises(UnderFloorError) as refused:
        engine.open(LONG, 512)
    finish(engine)  # what runs goes on, with fewer bits
    assert running.logits is not None and model.stats["rung"] < rungs
    assert model.stats["total"] <= model.stats["budget"]
    model.memory = refused.value.floor
    engine.open(LONG, 512)
    with pytest.raises(UnderFloorError):
        model.memory = model.stats["floor"] - 1


def test_a_limit_of_keys_and_values_is_kept(tiny: Path):
    with Runtime(tiny, threads=1, session=False) as model:
        with Engine(model) as engine:
            block = engine.stats["block_bytes"]
        with Engine(model, kv=8 * block) as engine:
            answer(engine, LONG, 1)
            engine.open(LONG[:5], 512)
            assert model.stats["kv"] <= 8 * block
            with pytest.raises(NoMemoryError):
                engine.open(LONG[:5], 64)


def test_a_mask_allows_what_it_says_and_wrong_calls_are_errors(engine: Engine):
    sequence = engine.open([5, 6, 7], 64)
    with pytest.raises(BadArgumentError, match="wait"):
        sequence.sample()
    finish(engine)
    words = -(-engine.model.vocab // 32)
    mask = np.zeros(words, np.uint32)
    with pytest.raises(BadArgumentError, match="mask"):
        sequence.sample(mask)
    mask[2] = 1 << 9
    for how in ({}, {"temperature": 2.0, "seed": 4}, {"repetition_penalty": 1.3}):
        assert sequence.sample(mask, **how) == 73
    with pytest.raises(BadArgumentError):
        sequence.sample(mask[1:])
    with pytest.raises(BadArgumentError, match="tokens"):
        sequence.push([1] * 62)
    with pytest.raises(BadArgumentError, match="vocabulary"):
        sequence.push([-1])
    with pytest.raises(BadArgumentError, match="context"):
        engine.open([1], 4096)
    sequence.close()
    with pytest.raises(BadArgumentError, match="closed"):
        sequence.push([1])


def test_states_of_fixed_size_are_copied_and_do_not_go_back():
    path = next(p for p in GOLDEN if p.stem == "delta")
    with Runtime(path, threads=1, session=False) as model, Engine(model) as engine:
        parent = engine.open([3, 4, 5], 32)
        finish(engine)
        child = parent.fork()
        parent.push([6])
        child.push([6])
        finish(engine)
        np.testing.assert_array_equal(logits(parent), logits(child))
        with pytest.raises(UnsupportedError):
            parent.trim(2)
        parent.trim(0)
        parent.push([3, 4, 5, 6])
        finish(engine)
        np.testing.assert_array_equal(logits(parent), logits(child))


def test_an_encoder_has_no_engine():
    path = next(p for p in GOLDEN if p.stem == "encoder")
    with Runtime(path, session=False) as model, pytest.raises(UnsupportedError):
        Engine(model)
