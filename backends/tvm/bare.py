"""The bare form: kernels, a plan in C, and weights; no library of TVM's, no Python, no malloc.

    kernels.o    the kernels, each `int __tvm_ffi_<name>(void *, const Any *, int, Any *)`
    model.c      the plan: a table of (kernel, arguments), the arena, and `qd_run`
    model.h      what a program includes
    weights.bin  constants, each at a multiple of 64
    weights.S    puts weights.bin into the program's read-only data

Every intermediate array has its place in one static arena, found by a linear scan over the steps: the lowest gap that
no living array takes. Scratch memory of kernels comes from a second static buffer, as a stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qdeploy.backends.tvm.packing import padded
from qdeploy.backends.tvm.program import Buffer, Program

ALIGN = 64
WEIGHTS, ARENA, INPUT = range(3)


def write(program: Program, kernels: Mapping[str, str], workspace: int, out: Path) -> tuple[str, ...]:
    """Writes everything but the kernels.

    Args:
        program: The network.
        kernels: Signature -> kernel.
        workspace: Bytes of scratch memory.
        out: The folder.
    """
    places, arena = allocate(program)
    offsets, blob = _weights(program)
    (out / "weights.bin").write_bytes(blob)
    (out / "weights.S").write_text(_ASSEMBLY)
    (out / "model.h").write_text(_header(program, arena, workspace, len(blob)))
    (out / "model.c").write_text(_plan(program, kernels, places, offsets))
    return "kernels.o", "model.c", "model.h", "weights.S", "weights.bin"


def roots(program: Program) -> dict[str, str]:
    """Buffer -> the buffer whose bytes it views."""
    bases = {name: name for name in (*program.buffers, *program.constants)}
    for step in program.steps:
        if step.kind == "view":
            bases[step.output] = bases[step.inputs[0]]
    return bases


def allocate(program: Program) -> tuple[dict[str, int], int]:
    """The offset of every buffer that is not an input, and the arena's size."""
    root = roots(program)
    last: dict[str, int] = {}
    for place, step in enumerate(program.steps):
        last.update((root[name], place) for name in (*step.inputs, step.output))
    last.update((root[name], len(program.steps)) for name in program.outputs)
    taken: list[tuple[int, int, str]] = []  # offset, size, buffer: alive
    places: dict[str, int] = {}
    size = 0
    for place, step in enumerate(program.steps):
        if step.kind == "view":
            continue
        taken = sorted(entry for entry in taken if last[entry[2]] >= place)
        need, offset = padded(program.buffers[step.output].nbytes, ALIGN), 0
        for begin, length, _ in taken:
            if offset + need <= begin:
                break
            offset = max(offset, begin + length)
        places[step.output] = offset
        taken.append((offset, need, step.output))
        size = max(size, offset + need)
    return places, size


def _weights(program: Program) -> tuple[dict[str, int], bytes]:
    offsets, blob = {}, bytearray()
    used = {name for step in program.steps for name in step.inputs}
    for name, array in program.constants.items():
        if name in used:
            blob += bytes(padded(len(blob), ALIGN) - len(blob))
            offsets[name] = len(blob)
            blob += array.astype(array.dtype.newbyteorder("<")).tobytes()
    return offsets, bytes(blob)


def identifier(name: str) -> str:
    """A name as C has it."""
    return re.sub(r"\W", "_", name)


def _header(program: Program, arena: int, workspace: int, weights: int) -> str:
    def listed(names: list[str], kind: str, shown: Mapping[str, str]) -> list[str]:
        lines = [f"#define QD_{kind}S {len(names)}"]
        for place, name in enumerate(names):
            buffer = program.operand(name)
            lines += [
                f"/* {kind.lower()} {place}: {shown.get(name, name)}, {buffer.dtype} {list(buffer.shape)} */",
                f"#define QD_{kind}_{place}_BYTES {buffer.nbytes}",
            ]
        return lines

    return _HEADER.format(
        inputs="\n".join(listed(program.inputs, "INPUT", {})),
        outputs="\n".join(listed(program.outputs, "OUTPUT", program.names)),
        arena=max(arena, ALIGN),
        workspace=max(workspace, ALIGN),
        weights=weights,
    )


def _plan(program: Program, kernels: Mapping[str, str], places: Mapping[str, int], offsets: Mapping[str, int]) -> str:
    root = roots(program)
    shapes: dict[tuple[int, ...], str] = {}
    arguments: list[str] = []
    steps: list[str] = []
    for step in program.steps:
        if step.kind == "view":
            continue
        names = (*step.inputs, step.output)
        steps.append(f"    {{__tvm_ffi_{kernels[program.signature(step)]}, {len(arguments)}, {len(names)}}},")
        for name in names:
            buffer = program.operand(name)
            shape = shapes.setdefault(buffer.shape, f"shape_{len(shapes)}")
            space, offset = _located(program, root[name], places, offsets)
            arguments.append(f"    {{{offset}, {shape}, {len(buffer.shape)}, {space}, {_type(buffer)}}},")
    outputs = [
        f"    {{{_located(program, root[n], places, offsets)[1]}, {program.operand(n).nbytes}}},"
        for n in program.outputs
    ]
    return _PLAN.format(
        declared="\n".join(f"extern Kernel __tvm_ffi_{name};" for name in dict.fromkeys(kernels.values())),
        shapes="\n".join(
            f"static const int64_t {name}[] = {{{', '.join(map(str, s)) or '1'}}};" for s, name in shapes.items()
        ),
        arguments="\n".join(arguments),
        steps="\n".join(steps),
        outputs="\n".join(outputs),
        most=max((len(step.inputs) + 1 for step in program.steps), default=1),
    )


def _located(program: Program, root: str, places: Mapping[str, int], offsets: Mapping[str, int]) -> tuple[int, int]:
    if root in program.inputs:
        return INPUT + program.inputs.index(root), 0
    return (WEIGHTS, offsets[root]) if root in offsets else (ARENA, places[root])


def _type(buffer: Buffer) -> str:
    """DLPack's type: code (0 signed, 1 unsigned) and bits."""
    dtype = np.dtype(buffer.dtype)
    return f"{int(dtype.kind == 'u')}, {8 * dtype.itemsize}"


_ASSEMBLY = """/* The weights as read-only data: assemble in the folder of weights.bin, or with it as -I. */
#if defined(__wasm__)
    .section .rodata.qd_weights,"",@
#else
    .section .rodata
#endif
    .balign 64
    .globl qd_weights
qd_weights:
    .incbin "weights.bin"
    .size qd_weights, . - qd_weights
#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack,"",%progbits
#endif
"""

_HEADER = """/* An integer-only network. Generated by qdeploy. */
#ifndef QD_MODEL_H
#define QD_MODEL_H
#ifdef __cplusplus
extern "C" {{
#endif

{inputs}
{outputs}
#define QD_ARENA_BYTES {arena}
#define QD_WORKSPACE_BYTES {workspace}
#define QD_WEIGHTS_BYTES {weights}

/* Runs the network once; arrays lie in C order. Returns 0, or the number of the step that failed, from 1.
   One call at a time: intermediate arrays lie in one static arena. Nothing is allocated. */
int qd_run(const void *const inputs[QD_INPUTS], void *const outputs[QD_OUTPUTS]);

#ifdef __cplusplus
}}
#endif
#endif
"""

_PLAN = """/* The plan of an integer-only network. Generated by qdeploy. */
#include "model.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {{ int32_t type; int32_t pad; union {{ int64_t bits; void *pointer; }} value; }} Any; /* TVMFFIAny */
typedef struct {{
    void *data; int32_t device, device_id, rank; uint8_t code, bits; uint16_t lanes;
    const int64_t *shape; const int64_t *strides; uint64_t offset;
}} Tensor; /* DLTensor */
typedef int Kernel(void *self, const Any *arguments, int32_t count, Any *result);
typedef struct {{ uint32_t offset; const int64_t *shape; uint8_t rank, space, code, bits; }} Argument;
typedef struct {{ Kernel *kernel; uint16_t first, count; }} Step;

{declared}
extern const uint8_t qd_weights[];

{shapes}

/* space 0: weights, 1: the arena, 2 + i: input i */
static const Argument arguments[] = {{
{arguments}
}};

static const Step steps[] = {{
{steps}
}};

static const struct {{ uint32_t offset, bytes; }} results[] = {{
{outputs}
}};

static _Alignas(64) uint8_t arena[QD_ARENA_BYTES];
static _Alignas(64) uint8_t workspace[QD_WORKSPACE_BYTES];
static size_t top;

static void *take(int device, int id, uint64_t bytes, int code, int bits) {{
    size_t size = ((size_t)bytes + 63) / 64 * 64;
    (void)device, (void)id, (void)code, (void)bits;
    if (size > sizeof workspace - top) return NULL;
    top += size;
    return workspace + top - size;
}}

static int give(int device, int id, void *pointer) {{
    (void)device, (void)id;
    top = (size_t)((uint8_t *)pointer - workspace); /* in the opposite order of taking */
    return 0;
}}

/* the kernels call these through pointers that the object file leaves open */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = give;

static void *located(const Argument *argument, const void *const inputs[]) {{
    if (argument->space == 0) return (void *)(uintptr_t)(qd_weights + argument->offset);
    if (argument->space == 1) return arena + argument->offset;
    return (void *)(uintptr_t)inputs[argument->space - 2];
}}

int qd_run(const void *const inputs[QD_INPUTS], void *const outputs[QD_OUTPUTS]) {{
    Tensor tensors[{most}];
    Any given[{most}], result;
    for (size_t s = 0; s < sizeof steps / sizeof *steps; ++s) {{
        for (int i = 0; i < steps[s].count; ++i) {{
            const Argument *a = &arguments[steps[s].first + i];
            tensors[i] = (Tensor){{located(a, inputs), 1, 0, a->rank, a->code, a->bits, 1, a->shape, NULL, 0}};
            given[i].type = 7; /* a DLTensor */
            given[i].pad = 0;
            given[i].value.bits = 0;
            given[i].value.pointer = &tensors[i];
        }}
        top = 0;
        if (steps[s].kernel(NULL, given, steps[s].count, &result) != 0) return (int)s + 1;
    }}
    for (size_t i = 0; i < QD_OUTPUTS; ++i) memcpy(outputs[i], arena + results[i].offset, results[i].bytes);
    return 0;
}}
"""
