"""A channel whose factor is so small that every result is its zero point."""

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_files import Network

from qdeploy.formats.tflite import reader
from qdeploy.ir.dyadic import dyadic
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder


@pytest.mark.parametrize("factor", [0.0, 2.0**-33, 1e-12, 5e-324])
def test_a_factor_too_small_for_a_multiplier_is_nothing_at_a_shift_that_fits(factor: float):
    assert dyadic(factor) == (0, 31)


def test_a_dead_channel_gives_what_the_reference_kernels_give(tmp_path: Path):
    random = np.random.default_rng(5)
    n = Network()
    x = n.value("x", (1, 6, 6, 3), scale=0.5, zero=3)
    scales = np.array([0.01, 1e-12, 0.02, 1e-20], np.float32)
    w = n.constant("w", random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), scale=scales)
    b = n.constant("b", np.zeros(4, np.int32), scale=scales * np.float32(0.5))
    y = n.value("y", (1, 6, 6, 4), scale=0.7, zero=-5)
    n.add("CONV_2D", [x, w, b], [y], Padding=0, StrideW=1, StrideH=1, DilationHFactor=1, DilationWFactor=1)
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write([x], [y]))
    model = reader.read(Folder(path))
    arguments = random.integers(-128, 128, (1, 6, 6, 3)).astype(np.int8)
    (result,) = run(model.graph, {"x": arguments}, None, Weights(model))[0].values()
    library = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    library.allocate_tensors()
    library.set_tensor(library.get_input_details()[0]["index"], arguments)
    library.invoke()
    np.testing.assert_array_equal(result, library.get_tensor(library.get_output_details()[0]["index"]))
    assert set(np.unique(result[..., 1])) == {-5}
