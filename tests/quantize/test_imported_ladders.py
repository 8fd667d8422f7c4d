"""Integers of any checkpoint as ladders: the last level is the source bit for bit, lower ones beat a cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadArgumentError
from qdeploy.ir.decode import decode_codes, decode_tensor
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Term
from qdeploy.ir.views.ladder import ladder_of
from qdeploy.native import Runtime
from qdeploy.pack import bits as bitstream
from qdeploy.quantize import quantize_model
from qdeploy.quantize.contract import Grid, Weight
from qdeploy.quantize.ladder.affine import RIDGE, Affine
from qdeploy.quantize.ladder.quantizer import Ladder
from tests.quantize.test_bitstack import text_file
from tests.quantize.test_ladder import inputs, statistics

GPTQ = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama-gptq"
ROWS, COLUMNS = 40, 256
RANDOM = np.random.default_rng(11)


def param(key: str, values: np.ndarray, kind: str, tile: tuple[int, int], **more: object) -> Param:
    buffer = Buffer.of(key, values, {"uint8": "U8", "int8": "I8"}.get(kind, kind.upper()))
    scale = more.pop("above", None)
    return Param(Codes(values.shape, (buffer,), PLAIN, kind, scale=scale), tile, **more)  # type: ignore[arg-type]


def rounded(bits: int, group: int, *, index: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Weights of uneven columns, rounded to a grid with a zero point per group: values, codes, scales, zero points."""
    values = (RANDOM.standard_normal((ROWS, COLUMNS)) * 0.05 * np.exp(RANDOM.standard_normal(COLUMNS) / 3)).astype("f4")
    which = np.arange(COLUMNS) // group if index is None else index
    groups = int(which.max()) + 1
    low, high = (np.stack([f(values[:, which == g], axis=1) for g in range(groups)], 1) for f in (np.min, np.max))
    scale = ((high - low) / ((1 << bits) - 1)).astype(np.float16)
    zero = np.clip(np.rint(-low / scale.astype("f4")), 0, (1 << bits) - 1).astype(np.uint8)
    codes = np.clip(np.rint(values / scale.astype("f4")[:, which] + zero[:, which]), 0, (1 << bits) - 1)
    return values, codes.astype(np.uint8), scale, zero


def tensor(codes: np.ndarray, bits: int, **params: Param) -> QTensor:
    packed = bitstream.pack(codes, bits)
    data = (Buffer.of("codes", packed, "U8"),)
    return QTensor(codes.shape, "F32", (Term(Codes(codes.shape, data, Layout("bits", bits), f"uint{bits}", **params)),))


def integers_with_zeros(bits: int, group: int) -> QTensor:
    _, codes, scale, zero = rounded(bits, group)
    return tensor(
        codes, bits, zero=param("zero", zero, "uint8", (1, group)), scale=param("scale", scale, "f16", (1, group))
    )


def act_order() -> QTensor:
    index = RANDOM.permutation(np.arange(COLUMNS) // 64).astype(np.int32)
    _, codes, scale, zero = rounded(4, 64, index=index)
    labels = Buffer.of("g_idx", index, "I32")
    return tensor(
        codes,
        4,
        zero=param("zero", zero, "uint8", (1, 1), index=labels),
        scale=param("scale", scale, "f16", (1, 1), index=labels),
    )


def one_zero() -> QTensor:
    _, codes, scale, _ = rounded(4, 128)
    middle = param("zero", np.full((1, 1), 8, np.uint8), "uint8", (ROWS, COLUMNS))
    return tensor(codes, 4, zero=middle, scale=param("scale", scale, "f16", (1, 128)))


def float_zeros() -> QTensor:
    _, codes, scale, zero = rounded(3, 32)
    fraction = (zero + RANDOM.random(zero.shape)).astype(np.float16)
    return tensor(codes, 3, zero=param("zero", fraction, "f16", (1, 32)), scale=param("scale", scale, "f16", (1, 32)))


def two_levels() -> QTensor:
    """Small scales and minima under a float16 for 8 groups, as k-quants have them."""
    _, codes, scale, zero = rounded(4, 32)
    wide = scale.astype("f4")
    above = (wide.max(axis=1, keepdims=True) / 63).astype(np.float16)
    small = np.clip(np.rint(wide / above.astype("f4")), 1, 63).astype(np.uint8)
    minima = np.clip(np.rint(zero * wide / (8 * above.astype("f4"))), 0, 63).astype(np.uint8)
    below = -(8 * above)
    return tensor(
        codes,
        4,
        scale=param("scale", small, "uint8", (1, 32), above=param("scale.scale", above, "f16", (1, 8))),
        offset=param("offset", minima, "uint8", (1, 32), above=param("offset.scale", below, "f16", (1, 8))),
    )


def signed() -> QTensor:
    """Signed codes of 8 bits with one float32 per row."""
    codes = RANDOM.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
    data = (Buffer.of("codes", codes, "I8"),)
    scale = param("scale", (RANDOM.random((ROWS, 1)) * 0.01).astype(np.float32), "f32", (1, COLUMNS))
    return QTensor(codes.shape, "F32", (Term(Codes(codes.shape, data, PLAIN, "int8", scale=scale)),))


SOURCES = {
    "zeros": lambda: integers_with_zeros(4, 64),
    "narrow": lambda: integers_with_zeros(4, 16),
    "3 bits": lambda: integers_with_zeros(3, 128),
    "2 bits": lambda: integers_with_zeros(2, 64),
    "act-order": act_order,
    "one zero": one_zero,
    "float zeros": float_zeros,
    "two levels": two_levels,
    "signed": signed,
}


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest) -> QTensor:
    return SOURCES[request.param]()


def truncated(source: QTensor, level: int) -> np.ndarray:
    """The source with only its first planes, the rest at the middle, by its own scales."""
    from qdeploy.ir.views import view

    seen = view(source).grouped
    step = 1 << (seen.code_top.bit_length() - level)
    codes = seen.codes(0, ROWS).astype("f4")
    which = np.arange(COLUMNS) // seen.group if seen.index is None else seen.index
    moved = np.floor(codes / step) * step + (step - 1) / 2 - codes
    return source.decode() + moved * seen.scale(0, ROWS)[:, which]


def test_the_last_level_is_the_source_and_lower_ones_beat_a_cut(source: QTensor):
    x = inputs(COLUMNS, 1500)
    weight = Weight("w", source)
    ladder = Ladder().quantize(weight, [statistics(x)], Grid())
    wanted = source.decode()
    np.testing.assert_array_equal(ladder.decode(), wanted)
    np.testing.assert_array_equal(decode_tensor(ladder, rung=len(ladder.rungs) - 1), wanted)
    assert ladder.rungs[-1].error == 0 and ladder.rungs[-1].bias is None and not weight.shifts
    outputs = x @ wanted.T
    for level in range(1, len(ladder.rungs)):
        own = x @ decode_tensor(ladder, rung=level - 1).T + decode_codes(ladder.rungs[level - 1].bias)
        lost, cut = (np.square(y - outputs).mean() for y in (own, x @ truncated(source, level).T))
        assert lost < (0.95 if level < 4 else 1.0) * cut, (level, lost / cut)


def test_a_file_holds_every_level(source: QTensor):
    """The levels as the native writer takes them: what the runtime reads equals the tensor at every rung."""
    ladder = Ladder().quantize(Weight("w", source), [statistics(inputs(COLUMNS))], Grid())
    seen = ladder_of(ladder)
    assert seen is not None
    which = np.arange(COLUMNS) // seen.group if seen.index is None else seen.index
    codes = seen.codes(0, ROWS)
    for level, own in enumerate(seen.levels, 1):
        step = 1 << (seen.planes - level)
        zero = own.zero if isinstance(own.zero, float) else own.zero(0, ROWS)[:, which]
        read = (codes // step * step + np.float32((step - 1) / 2) - zero) * own.scale.product(0, ROWS)[:, which]
        read = read if own.offset is None else read + own.offset.product(0, ROWS)[:, which]
        np.testing.assert_allclose(read, decode_tensor(ladder, rung=level - 1), rtol=2e-6, atol=1e-9)
    assert seen.levels[-1].scale.product(0, ROWS).dtype == np.float32


def test_the_fit_is_the_solution_of_its_normal_equations():
    """Against a dense least-squares problem per row, ridge included."""
    rows, columns, group = 5, 48, 16
    x = inputs(columns, 300)
    moment = x.T @ x / len(x) + 0.01 * np.eye(columns)
    which = RANDOM.permutation(np.arange(columns) // group)
    groups = 3
    target = RANDOM.standard_normal((rows, columns)).astype("f4")
    read = RANDOM.integers(-3, 4, (rows, columns)).astype("f4") + 0.5
    present = np.full((rows, groups), 0.5, np.float32)
    seen: list[np.ndarray] = []

    def stored(rows: slice, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(np.concatenate((scale, shift), axis=1))
        return np.zeros_like(shift), np.rint(shift / scale)

    scale, shift = Affine(moment, which, groups).fit(target, read, present, stored, shifted=True)
    root, member = np.linalg.cholesky(moment).T, np.eye(groups)[which]
    for row in range(rows):
        basis = root @ np.hstack((read[row, :, None] * member, member))
        pull = np.sqrt(RIDGE) * np.linalg.norm(basis, axis=0)
        begin = np.concatenate((present[row], np.zeros(groups)))
        tall, right = np.vstack((basis, np.diag(pull))), np.concatenate((root @ target[row], pull * begin))
        both = np.linalg.lstsq(tall, right, rcond=None)[0]
        np.testing.assert_allclose(seen[0][row], both, rtol=2e-3, atol=1e-4)
        moved = np.rint(seen[0][row, groups:] / seen[0][row, :groups])
        basis = root @ ((read[row, :, None] + moved[which][:, None]) * member)
        pull = np.sqrt(RIDGE) * np.linalg.norm(basis, axis=0)
        tall = np.vstack((basis, np.diag(pull)))
        right = np.concatenate((root @ target[row], pull * seen[0][row, :groups]))
        np.testing.assert_allclose(scale[row], np.linalg.lstsq(tall, right, rcond=None)[0], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(shift[row], scale[row] * moved, rtol=1e-9)


def test_a_checkpoint_becomes_elastic_and_its_top_is_itself(tmp_path: Path):
    text = text_file(tmp_path)
    plain, ladder = tmp_path / "plain.qd", tmp_path / "ladder.qd"
    qdeploy.convert(GPTQ, plain, to="native")
    report = qdeploy.convert(GPTQ, ladder, to="native", calibrate=str(text), order="uniform")
    assert any("all planes are the source" in note for note in report["notes"])
    assert not report["summary"]["lossy tensors"]
    ids = list(range(3, 20))
    with Runtime(plain, activations="exact") as one, Runtime(ladder, activations="exact") as two:
        np.testing.assert_array_equal(np.asarray(one.logits(ids)), np.asarray(two.logits(ids)))
        wanted, count = np.asarray(one.logits(ids)), len(one.rungs())
        errors = []
        for runtime in (one, two):
            runtime.set_rung(len(runtime.rungs()) - 35 * 2)
            errors.append(np.linalg.norm(np.asarray(runtime.logits(ids)) - wanted))
    assert count > 70 and errors[1] < 0.9 * errors[0], errors


def test_best_follows_the_rungs_of_integers_too(tmp_path: Path):
    model, text = qdeploy.load(GPTQ), text_file(tmp_path)
    full = quantize_model(model, [f"ladder:calibrate={text}"])
    best = quantize_model(qdeploy.load(GPTQ), [f"ladder:calibrate={text},effort=best"])
    name = next(n for n in full.tensors if n.endswith("1.mlp.down_proj.weight"))
    np.testing.assert_array_equal(full.tensors[name].decode(), best.tensors[name].decode())
    one, two = (decode_tensor(m.tensors[name], rung=1) for m in (full, best))
    assert not np.array_equal(one, two)


def test_floats_beside_integers_stay_floats(tmp_path: Path):
    """The top of the file is to be the source, so nothing of it is rounded unless its name is said."""
    model = qdeploy.load(GPTQ)
    quantized = quantize_model(model, ["ladder"])
    for name, own in model.tensors.items():
        np.testing.assert_array_equal(quantized.tensors[name].decode(), own.decode())
    with pytest.raises(BadArgumentError, match="nothing is left"):
        quantize_model(qdeploy.load(GPTQ), ["ladder:only=no such tensor"])
