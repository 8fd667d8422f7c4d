"""BitStack from floats: as close as the published algorithm, the same every time, and honest about its loss."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qdeploy
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import Buffer, QTensor, buffers, plain
from qdeploy.ir.views import view
from qdeploy.quantize import parse, quantize_model
from qdeploy.quantize.activations import observe, text_statistics
from qdeploy.quantize.bitstack import BitStack, lowrank, peel
from qdeploy.quantize.contract import Grid, Statistics, Weight

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


def matrix(rows: int, columns: int, seed: int = 0, heavy: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if not heavy:
        return rng.standard_normal((rows, columns)).astype(np.float32)
    spread = np.exp(0.3 * rng.standard_normal((rows, 1)) + 0.5 * rng.standard_normal((1, columns)))
    return (rng.standard_t(5, (rows, columns)) * spread).astype(np.float32)


def floats(array: np.ndarray) -> QTensor:
    return plain(Buffer.of("data", array, "F32"), "f32")


def published(weight: np.ndarray, blocks: int, rank: int) -> list[float]:
    """Residual norms after each block, by full SVDs in float64 and factors that are never rounded."""
    left, norms = weight.astype(np.float64), []
    for _ in range(blocks):
        u, values, vt = np.linalg.svd(np.abs(left), full_matrices=False)
        left = left - np.where(left >= 0, 1, -1) * ((u[:, :rank] * values[:rank]) @ vt[:rank])
        norms.append(float(np.linalg.norm(left)))
    return norms


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("shape", [(384, 512), (512, 200), (96, 700)])
def test_the_residual_is_that_of_the_full_svd_within_half_a_percent(shape: tuple[int, int], heavy: bool) -> None:
    weight = matrix(*shape, 1, heavy)
    output = BitStack(4, 16).quantize(Weight("w", floats(weight)), (), Grid())
    for rung, norm in enumerate(published(weight, 4, 16)):
        ours = float(np.linalg.norm(weight - decode_tensor(output, rung=rung)))
        assert ours <= 1.005 * norm


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 20), st.integers(-6, 6), st.integers(0, 9)
)
def test_any_shape_and_magnitude_gets_better_with_every_block(rows, columns, blocks, rank, magnitude, seed) -> None:
    weight = matrix(rows, columns, seed) * np.float32(10.0**magnitude)
    losses: dict[str, float] = {}
    output = BitStack(blocks, rank).quantize(Weight("w", floats(weight), losses), (), Grid())
    rules.check(output, "w")
    rules.check_values(output, "w")
    assert len(view(output).terms) == blocks
    errors = [float(np.linalg.norm(weight - decode_tensor(output, rung=i))) for i in range(blocks)]
    least = 1e-6 * np.linalg.norm(weight)  # what decoding in float32 rounds
    assert all(later <= earlier * (1 + 1e-4) + least for earlier, later in itertools.pairwise(errors))
    assert errors[0] < np.linalg.norm(weight)
    measured = 20 * np.log10(np.linalg.norm(weight) / errors[-1]) if errors[-1] else np.inf
    assert losses["w"] == pytest.approx(measured, abs=0.1) or measured > 100


def test_rounding_to_float16_goes_into_the_residual() -> None:
    left = matrix(64, 64)
    before = left.copy()
    block = peel(left, 4)
    product = block.u.astype(np.float32) @ block.vt.astype(np.float32)
    signs = np.where(np.unpackbits(block.signs, axis=1, bitorder="little"), np.float32(1), np.float32(-1))
    np.testing.assert_array_equal(left, before - signs * product)


def test_a_second_run_gives_the_same_bytes_and_reading_decomposes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "qdeploy.quantize.bitstack.peel", lambda *args, original=peel: calls.append(1) or original(*args)
    )
    weight = floats(matrix(300, 260))
    first, second = (BitStack(2, 4).quantize(Weight("w", weight), (), Grid()) for _ in range(2))
    parts = [
        np.concatenate([b.read(i, min(i + 7, b.shape[0])) for i in range(0, b.shape[0], 7)]) for b in buffers(first)
    ]
    assert len(calls) == 2
    for part, buffer in zip(parts, buffers(second), strict=True):
        np.testing.assert_array_equal(part, buffer.read())


def test_scales_move_the_error_away_from_the_columns_that_matter() -> None:
    weight = matrix(128, 256)
    scale = np.exp(np.random.default_rng(2).standard_normal(256)).astype(np.float32)
    plain_, scaled = (
        BitStack(2, 8).quantize(Weight("w", floats(weight)), statistics, Grid()).decode() - weight
        for statistics in ((), (Statistics(scale),))
    )
    assert np.linalg.norm(scaled * scale) < 0.9 * np.linalg.norm(plain_ * scale)
    assert np.linalg.norm(scaled) > np.linalg.norm(plain_)


def test_a_matrix_of_zeros_and_one_of_low_rank_are_exact_enough() -> None:
    zeros = BitStack(2, 4).quantize(Weight("w", floats(np.zeros((20, 300), np.float32))), (), Grid())
    assert not zeros.decode().any()
    product = np.abs(matrix(300, 3) @ matrix(3, 200, 1))
    u, v = lowrank(product, 16, np.random.default_rng(0))
    assert np.linalg.norm(product - u @ v) < np.linalg.norm(product - u[:, :8] @ v[:8])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(value: float) -> None:
    weight = matrix(8, 8)
    weight[3, 3] = value
    with pytest.raises(BadFileError, match="not a number"):
        BitStack(1, 1).quantize(Weight("w", floats(weight)), (), Grid()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "bitstack:blocks=0",
        "bitstack:blocks=33",
        "bitstack:rank=x",
        "bitstack:rank=²",
        "bitstack:int4",
        "bitstack:only=(",
    ],
)
def test_a_spec_that_does_not_parse_says_what_is_allowed(text: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        parse(text)
    assert caught.value.allowed


# With a model.


def text_file(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("Once upon a time there was a little dog. " * 30)
    return path


def test_a_model_is_decomposed_and_the_report_says_how(tmp_path: Path) -> None:
    spec = f"bitstack:blocks=2,rank=2,calibrate={text_file(tmp_path)},skip=lm_head|embed"
    report = qdeploy.convert(TINY, tmp_path / "out", to="ir", quantize=spec)
    losses = {name: row["snr_db"] for name, row in report["tensors"].items() if "snr_db" in row}
    assert len(losses) == 5 * 7
    assert all(4 < loss < 30 for loss in losses.values())
    assert any("activation scales from" in note for note in report["notes"])
    output = qdeploy.load(tmp_path / "out").tensors["model.layers.1.mlp.up_proj.weight"]
    assert len(view(output).terms) == len(output.rungs) == 2


def test_without_a_text_the_report_says_that_scales_are_one(tmp_path: Path) -> None:
    spec = "bitstack:blocks=1,rank=2,only=layers.0.mlp.up"
    report = qdeploy.convert(TINY, tmp_path / "out", to="ir", quantize=spec)
    assert any("scales are 1" in note for note in report["notes"])


def test_embedding_and_head_are_decomposed_where_they_are_named() -> None:
    def taken(spec: str) -> set[str]:
        model = quantize_model(qdeploy.load(TINY), [spec])
        return {name for name, tensor in model.tensors.items() if len(tensor.terms) == 2}

    assert taken("bitstack:blocks=2,rank=2,only=embed_tokens|lm_head") == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    everything = taken("bitstack:blocks=2,rank=2")
    assert "lm_head.weight" in everything
    assert "model.embed_tokens.weight" not in everything


def test_scales_are_the_mean_norms_of_the_inputs(tmp_path: Path) -> None:
    model = qdeploy.load(TINY)
    statistics, tokens = text_statistics(model, str(text_file(tmp_path)), ("norms",))
    scales = {name: known.norms for name, known in statistics.items()}
    assert tokens > 100
    assert len(scales) == 5 * 7 + 1
    np.testing.assert_array_equal(*(scales[f"model.layers.2.self_attn.{p}_proj.weight"] for p in "qk"))
    assert scales["model.layers.0.mlp.down_proj.weight"].shape == (384,)
    assert all(abs(np.log(scale).mean()) < 1e-4 for scale in scales.values())


def test_watching_a_graph_computes_what_running_it_does() -> None:
    model = qdeploy.load(TINY)
    ids = {"input_ids": np.array([[1, 17, 30, 4]])}
    seen: dict[str, np.ndarray] = {}
    observe(model.graph, ids, model.tensors, lambda name, x: seen.setdefault(name, x))
    logits = run(model.graph, ids, {}, Weights(model))[0]["logits"]
    head = seen["lm_head.weight"] @ model.tensors["lm_head.weight"].decode().T
    np.testing.assert_allclose(head, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["missing", "empty", "folder"])
def test_a_text_that_cannot_be_read_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    path = {"missing": tmp_path / "no.txt", "empty": tmp_path / "empty.txt", "folder": tmp_path}[kind]
    (tmp_path / "empty.txt").touch()
    with pytest.raises((BadArgumentError, BadFileError)):
        quantize_model(qdeploy.load(TINY), [f"bitstack:blocks=1,calibrate={path}"])


def test_a_quantized_source_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="already"):
        quantize_model(qdeploy.load(TINY.parent / "tiny-llama-gptq"), ["bitstack:blocks=1"])
