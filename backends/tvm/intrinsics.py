"""Inner products as tensor intrinsics, and the unpacking of weights for the one that works on 16-bit numbers.

    avx2_madd   C[16] += A[2] . B[16][2]     int16 pairs: vpmaddwd is exact, its sum of two products fits an int32
    vnni_dot    C[16] += A[4] . B[16][4]     uint8 with int8, in the signature that LLVM 22 has
    arm_sdot    C[16] += A[4] . B[16][4]     int8 with int8
    arm_usdot   C[16] += A[4] . B[16][4]     uint8 with int8
    avx2_widen  W[2][16][2] = B[16][4]       int8 to int16, a quad of every lane to two pairs

All but the last take the same blocks of packed weights. `register` must run before a schedule names one.
"""

# TVMScript: annotations are calls that TVM reads
# mypy: disable-error-code="valid-type,untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from qdeploy.backends.tvm.engine import T, TensorIntrin

LANES = 16


@cache
def register(name: str) -> None:
    """Makes an intrinsic known to TVM, and what unpacks weights for it."""
    TensorIntrin.register(name, *_PARTS[name](), override=True)
    if name == "avx2_madd":
        register("avx2_widen")


_PARTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "avx2_madd": lambda: (_product("int16", "int16", 2), _madd()),
    "vnni_dot": lambda: (_product("uint8", "int8", 4), _dot("uint8", "llvm.x86.avx512.vpdpbusd.512", 16)),
    "arm_sdot": lambda: (_product("int8", "int8", 4), _dot("int8", "llvm.aarch64.neon.sdot.v4i32.v16i8", 4)),
    "arm_usdot": lambda: (_product("uint8", "int8", 4), _dot("uint8", "llvm.aarch64.neon.usdot.v4i32.v16i8", 4)),
    "avx2_widen": lambda: (_widening(), _widen()),
}


def _product(left: str, right: str, group: int) -> Any:
    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((group,), left, offset_factor=1),  # noqa: N803
        B: T.Buffer((LANES, group), right, offset_factor=1),  # noqa: N803
        C: T.Buffer((LANES,), "int32", offset_factor=1),  # noqa: N803
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:LANES], A[0:group], B[0:LANES, 0:group])
            T.writes(C[0:LANES])
            for i in T.serial(0, LANES):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _madd() -> Any:
    @T.prim_func(s_tir=True)
    def body(
        A: T.Buffer((2,), "int16", offset_factor=1),  # noqa: N803
        B: T.Buffer((LANES, 2), "int16", offset_factor=1),  # noqa: N803
        C: T.Buffer((LANES,), "int32", offset_factor=1),  # noqa: N803
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:LANES], A[0:2], B[0:LANES, 0:2])
            T.writes(C[0:LANES])
            for h in T.unroll(2):
                C[T.ramp(h * 8, 1, 8)] = C.vload([h * 8], dtype="int32x8") + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd"),
                    T.reinterpret(
                        T.broadcast(T.reinterpret(A.vload([0], "int16x2"), dtype="int32"), 8), dtype="int16x16"
                    ),
                    B.vload([h * 8, 0], dtype="int16x16"),
                    dtype="int32x8",
                )

    return body


def _dot(left: str, instruction: str, lanes: int) -> Any:
    """A product of quads, `lanes` channels per instruction. LLVM wants vpdpbusd's operands as signed bytes."""
    parts, codes, narrow, wide = LANES // lanes, lanes * 4, f"{left}x4", f"int32x{lanes}"
    broad = f"int8x{codes}" if lanes == LANES else f"{left}x{codes}"
    weights = f"int8x{codes}"

    @T.prim_func(s_tir=True)
    def body(
        A: T.Buffer((4,), left, offset_factor=1),  # noqa: N803
        B: T.Buffer((LANES, 4), "int8", offset_factor=1),  # noqa: N803
        C: T.Buffer((LANES,), "int32", offset_factor=1),  # noqa: N803
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:LANES], A[0:4], B[0:LANES, 0:4])
            T.writes(C[0:LANES])
            for h in T.unroll(parts):
                C[T.ramp(h * lanes, 1, lanes)] = T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id(instruction),
                    C.vload([h * lanes], dtype=wide),
                    T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], narrow), dtype="int32"), lanes), dtype=broad),
                    B.vload([h * lanes, 0], dtype=weights),
                    dtype=wide,
                )

    return body


def _widening() -> Any:
    @T.prim_func(s_tir=True)
    def description(
        B: T.Buffer((LANES, 4), "int8", offset_factor=1),  # noqa: N803
        W: T.Buffer((2, LANES, 2), "int16", offset_factor=1),  # noqa: N803
    ) -> None:
        with T.sblock("root"):
            T.reads(B[0:LANES, 0:4])
            T.writes(W[0:2, 0:LANES, 0:2])
            for p in T.serial(0, 2):
                for i in T.serial(0, LANES):
                    for r in T.serial(0, 2):
                        with T.sblock("update"):
                            vp, vi, vr = T.axis.remap("SSS", [p, i, r])
                            W[vp, vi, vr] = T.cast(B[vi, vp * 2 + vr], "int16")

    return description


def _widen() -> Any:
    """Bytes b0 b1 b2 b3 of a lane to the pairs (b0, b1) and (b2, b3): first pairs of 8 lanes, then second ones."""

    def pairs(codes: Any, first: Any, place: int) -> Any:
        """Pair `place` of 8 lanes: int16 of 4 lanes at a time, of which every other 32 bits are that pair."""
        parts = [
            T.reinterpret(T.cast(codes.vload([first + i, 0], dtype="int8x16"), "int16x16"), dtype="int32x8")
            for i in (0, 4)
        ]
        return T.reinterpret(T.Shuffle(parts, [*range(place, 16, 2)]), dtype="int16x16")

    @T.prim_func(s_tir=True)
    def body(
        B: T.Buffer((LANES, 4), "int8", offset_factor=1),  # noqa: N803
        W: T.Buffer((2, LANES, 2), "int16", offset_factor=1),  # noqa: N803
    ) -> None:
        with T.sblock("root"):
            T.reads(B[0:LANES, 0:4])
            T.writes(W[0:2, 0:LANES, 0:2])
            for h in T.unroll(2):
                W[0, h * 8, T.ramp(0, 1, 16)] = pairs(B, h * 8, 0)
                W[1, h * 8, T.ramp(0, 1, 16)] = pairs(B, h * 8, 1)

    return body
