"""From a program to TVM modules: every distinct step becomes one PrimFunc, the order of calls a Relax function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from qdeploy.backends.tvm import builders, rows, windows, winograd
from qdeploy.backends.tvm.engine import ir, relax, te
from qdeploy.backends.tvm.intrinsics import register
from qdeploy.backends.tvm.program import Program, Step
from qdeploy.backends.tvm.schedule import schedule

Builder = Callable[..., Any]
BUILDERS: dict[str, Builder] = {
    "conv": builders.conv,
    "depthwise": builders.depthwise,
    "grouped": builders.depthwise,
    "mat_mul": builders.mat_mul,
    "elementwise": builders.elementwise,
    "max_pool": windows.max_pool,
    "average_pool": windows.average_pool,
    "reduce": windows.reduce,
    "to_last": windows.to_last,
    "to_padded": windows.to_padded,
    "to_plain": windows.to_plain,
    "transpose": windows.transpose,
    "concat": windows.concat,
    "slice": windows.slice_,
    "pad": windows.pad,
    "gather": windows.gather,
    "IntegerSqrt": rows.roots,
    "IntegerSoftmax": rows.softmax,
    "IntegerLayerNorm": rows.layer_norm,
    "IntegerRMSNorm": rows.rms_norm,
    "TfliteSoftmax": rows.tflite_softmax,
}
"""Kind of step -> builder."""


def kernel_names(program: Program) -> dict[str, str]:
    """The kernel's name for every distinct signature: its kind and a number."""
    names: dict[str, str] = {}
    for step in program.steps:
        if step.kind != "view":
            names.setdefault(program.signature(step), f"qd_{step.kind.lower()}_{len(names)}")
    return names


def register_all(program: Program) -> None:
    """Makes the intrinsics known that steps of a program name."""
    for name in sorted({step.attrs.get("intrinsic") or "" for step in program.steps} - {""}):
        register(name)


def parts(program: Program, count: int) -> list[list[str]]:
    """The kernels of a program in parts that take about as long to compile."""
    weights: dict[str, int] = {}
    names = kernel_names(program)
    for step in program.steps:
        if step.kind != "view":
            filtered = bool(step.attrs.get("winograd"))
            weights[names[program.signature(step)]] = 3 if filtered else 2 if step.kind == "conv" else 1
    shares: list[list[str]] = [[] for _ in range(min(count, len(weights)) or 1)]
    for name in sorted(weights, key=lambda name: -weights[name]):
        min(shares, key=lambda part: sum(weights[kernel] for kernel in part)).append(name)
    return shares


def kernels(
    program: Program, parallel: bool, scheduled: bool = True, only: Collection[str] | None = None
) -> dict[str, Any]:
    """The PrimFuncs of a program by name; `only` these, where given."""
    register_all(program)
    functions: dict[str, Any] = {}
    names = kernel_names(program)
    for step in program.steps:
        name = names.get(program.signature(step)) if step.kind != "view" else None
        if name and name not in functions and (only is None or name in only):
            filtered = bool(parallel and step.attrs.get("winograd"))
            function = _function(program, step, winograd.winograd if filtered else BUILDERS[step.kind])
            arrange = winograd.schedule if filtered else schedule
            functions[name] = arrange(function, step.attrs, parallel) if scheduled else function
    return {name: function.with_attr("global_symbol", name) for name, function in functions.items()}


def _function(program: Program, step: Step, build: Builder) -> Any:
    args = []
    for place, name in enumerate(step.inputs):
        buffer = program.operand(name)
        args.append(te.placeholder(buffer.shape, buffer.dtype, f"p{place}"))
    out = build(args, step.attrs, program.operand(step.output))
    return te.create_prim_func([*args, out])


def bare_module(functions: Mapping[str, Any]) -> Any:
    """A module of the kernels alone."""
    return ir.IRModule(dict(functions))


def network(program: Program, functions: Mapping[str, Any]) -> Any:
    """The module with `main`, constants inside. Kernels that are not given are called by name."""
    builder = relax.BlockBuilder()
    names = kernel_names(program)
    handles = {name: builder.add_func(f.without_attr("global_symbol"), name) for name, f in functions.items()}
    values = {name: relax.Var(f"input_{i}", _type(program, name)) for i, name in enumerate(program.inputs)}
    params = [values[name] for name in program.inputs]
    values.update({name: relax.const(array) for name, array in program.constants.items()})
    with builder.function("main", params):
        with builder.dataflow():
            for step in program.steps:
                operands = [values[name] for name in step.inputs]
                output_type = _type(program, step.output)
                if step.kind == "view":
                    call = relax.op.reshape(operands[0], program.operand(step.output).shape)
                elif (name := names[program.signature(step)]) in handles:
                    call = relax.call_tir(handles[name], relax.Tuple(operands), output_type)
                else:
                    call = relax.call_dps_packed(name, relax.Tuple(operands), output_type)
                values[step.output] = builder.emit(call)
            result = builder.emit_output(relax.Tuple([values[name] for name in program.outputs]))
        builder.emit_func_output(result)
    return builder.finalize()


def _type(program: Program, name: str) -> Any:
    buffer = program.operand(name)
    return relax.TensorType(buffer.shape, buffer.dtype)
