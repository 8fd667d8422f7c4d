"""The qdeploy functions: plain ONNX, exact, and still packed after ONNX Runtime has optimized them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_forms import error_of, packed, plain_codes, relative, scales, session, tensor_of, write

from qdeploy.ir.tensor import Buffer, Codes, LowRank, Param, QTensor, Table

EXACT = 1e-5


def table_of(rng: np.random.Generator, tables: int, levels: int, select: Param | None = None) -> Table:
    return Table(Buffer.of("table", rng.standard_normal((tables, levels)).astype(np.float32), "F32"), select)


def codebook(rng: np.random.Generator, width: int = 4, rows: int = 12, columns: int = 96, group: int = 32) -> QTensor:
    codes = rng.integers(0, 1 << width, (rows, columns), dtype=np.uint8)
    scale = scales(rng, rows, -(-columns // group), (1, group))
    return tensor_of(packed(codes, width, table_of(rng, 1, 1 << width), scale=scale))


def selected(rng: np.random.Generator) -> QTensor:
    """A table per group out of four (BitMoD, arXiv 2411.11745)."""
    chosen = packed(rng.integers(0, 4, (12, 3), dtype=np.uint8), 2, "uint2", "select")
    table = table_of(rng, 4, 8, Param(chosen, (1, 32)))
    return tensor_of(packed(rng.integers(0, 8, (12, 96), dtype=np.uint8), 3, table, scale=scales(rng, 12, 3, (1, 32))))


def bitstack(rng: np.random.Generator, terms: int = 2, rows: int = 12, columns: int = 50) -> QTensor:
    outputs = []
    for i in range(terms):
        low = LowRank(
            *(
                plain_codes(rng.standard_normal(shape).astype(np.float32), "F32", "f32", f"{name}{i}")
                for name, shape in (("u", (rows, 3)), ("vt", (3, columns)))
            )
        )
        signs = rng.integers(0, 2, (rows, columns), dtype=np.uint8)
        outputs.append(packed(signs, 1, "sign", f"signs{i}", scale=Param(low, (1, 1))))
    return tensor_of(*outputs)


def aqlm(rng: np.random.Generator, levels: int = 256) -> QTensor:
    outputs: list[Codes] = []
    for i in range(2):
        book = Table(Buffer.of(f"book{i}", rng.standard_normal((1, levels, 1, 8)).astype(np.float32), "F32"))
        codes = rng.integers(0, levels, (12, 8)).astype("<u2")
        outputs.append(
            Codes((12, 8), (Buffer.of(f"codes{i}", codes, "U16"),), plain_codes(codes, "U16", "").layout, book)
        )
    return tensor_of(*outputs, scale=scales(rng, 12, 1, (1, 64)))


CASES = {
    "codebook4": codebook,
    "codebook3": lambda rng: codebook(rng, 3),
    "codebook8": lambda rng: codebook(rng, 8),
    "ragged": lambda rng: codebook(rng, 4, columns=75),
    "odd group": lambda rng: codebook(rng, 4, columns=90, group=15),
    "selected": selected,
    "bitstack": bitstack,
    "aqlm": aqlm,
    "aqlm 16 bits": lambda rng: aqlm(rng, 1024),
}


@pytest.mark.parametrize("use", ["linear", "gather"])
@pytest.mark.parametrize("case", CASES)
def test_a_function_computes_what_the_tensor_means(case, use, tmp_path, rng):
    assert error_of(tmp_path, CASES[case](rng), use) < EXACT


@pytest.mark.parametrize("case", ["codebook4", "bitstack", "aqlm"])
def test_the_body_is_portable(case, tmp_path, rng):
    """It passes the checker and runs in onnx's own reference evaluator."""
    tensor = CASES[case](rng)
    written = write(tmp_path, tensor)
    onnx.checker.check_model(str(written.path), full_check=False)
    x = rng.standard_normal((1, 3, tensor.shape[1])).astype(np.float32)
    result = ReferenceEvaluator(str(written.path)).run(None, {"x": x})[0]
    assert relative(result, x @ tensor.decode().T) < EXACT


@pytest.mark.parametrize("case", ["codebook4", "bitstack", "aqlm"])
def test_the_weight_stays_packed_in_the_optimized_model(case, tmp_path, rng):
    """ONNX Runtime inlines the function; what it keeps must hold the codes and no float32 matrix."""
    import onnxruntime

    tensor = CASES[case](rng)
    written = write(tmp_path, tensor)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(written.path), options, providers=["CPUExecutionProvider"])
    kept = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    codes = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
    assert any(t.data_type in codes and np.prod(t.dims) >= 84 for t in kept.graph.initializer)
    whole = tensor.shape[0] * tensor.shape[1]
    floats = [t for t in kept.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == whole]
    assert not floats


def test_a_function_says_that_it_is_slow(tmp_path, rng):
    assert write(tmp_path, codebook(rng)).ruling.reason.startswith("slow")


def test_codes_of_four_bits_stay_two_to_a_byte(tmp_path, rng):
    write(tmp_path, codebook(rng))
    assert session(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size < 12 * 96 / 2 + 12 * 3 * 4 + 256 * 2 * 4 + 3 * 64
