"""The proof of integers alone holds for what is compiled, and can fail: two networks with a float hidden in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integer_networks import resnet8

from qdeploy.backends.tvm import BACKEND
from qdeploy.backends.tvm.prove import Proof, look_at_ir, look_at_module
from qdeploy.errors import UnsupportedError


def test_a_compiled_network_is_proven_down_to_its_instructions(compiled: Callable[..., Any], tmp_path: Path):
    net = resnet8()
    compiled(net.model(net.last), forms=("library", "bare"))
    proof = BACKEND.integers.integer_only(tmp_path / "out")
    assert proof["integer_only"] and proof["nodes"] > 10_000 and proof["lines"] > 10_000
    assert proof["instructions"] in ([], None)
    assert not [line for line in proof["divisions"] if "num_task" not in line]  # only rows among threads


def test_a_float_operator_of_relax_is_found(tvm: None):
    from qdeploy.backends.tvm.engine import relax

    x = relax.Var("x", relax.TensorType((4,), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        wide = builder.emit(relax.op.multiply(relax.op.astype(x, "float32"), relax.const(2.0, "float32")))
        builder.emit_func_output(builder.emit(relax.op.astype(wide, "int8")))
    proof = look_at_module(builder.finalize())
    assert proof.floats and proof.externs and not proof.holds


def test_a_float_inside_of_a_kernel_is_found_in_its_tree_and_in_its_code(tvm: None):
    """The types of the kernel's arguments are integers: only its expressions tell."""
    from qdeploy.backends.tvm.engine import ir, te, tirx
    from qdeploy.backends.tvm.engine import tvm as compiler

    a = te.placeholder((16,), "int8", "a")
    half = te.compute((16,), lambda i: (a[i].astype("float32") * tirx.const(0.5, "float32")).astype("int8"), name="rq")
    module = ir.IRModule({"hidden": te.create_prim_func([a, half]).with_attr("global_symbol", "hidden")})
    assert look_at_module(module).floats
    built = compiler.compile(module, target=compiler.target.Target({"kind": "llvm"}))
    assert look_at_ir(built.mod.inspect_source("ll")).floats


def test_a_call_of_what_was_not_looked_at_is_found(tvm: None):
    from qdeploy.backends.tvm.engine import relax

    x = relax.Var("x", relax.TensorType((4,), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        output = relax.call_dps_packed("opaque", relax.Tuple([x]), relax.TensorType((4,), "int8"))
        builder.emit_func_output(builder.emit(output))
    module = builder.finalize()
    assert look_at_module(module).externs == ["main: opaque"]
    assert look_at_module(module, known=["opaque"]).holds


def test_calls_and_divisions_are_found_in_code():
    text = """define i32 @kernel(i32 %a, i32 %b) {
  %q = sdiv i32 %a, %b
  %k = sdiv i32 %a, 7
  %r = call i32 @opaque(i32 %q)
  %s = call i32 @llvm.smax.i32(i32 %r, i32 0)
  %t = fadd float %x, %y
}
"""
    proof = look_at_ir(text)
    assert proof.externs == ["kernel: opaque"]
    assert proof.divisions == ["kernel: sdiv by %b"]
    assert len(proof.floats) == 1


def test_nothing_proves_nothing(tmp_path: Path):
    assert not Proof().holds
    with pytest.raises(UnsupportedError, match="no output of the TVM backend"):
        BACKEND.integers.integer_only(tmp_path)
