"""Kernels of x86-64-v4+vnni for machines without it: `python emulated_vnni.py FOLDER OUT.o`.

FOLDER holds a program (program.py). It is compiled for that target as ever; in the LLVM IR that comes of it the one
instruction that this machine may lack, vpdpbusd, becomes a call of its definition in plain IR, the target becomes
x86-64-v3, and LLVM makes an object file of that. Printed is how often the instruction was called.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

INTRINSIC = "@llvm.x86.avx512.vpdpbusd.512"
NARROW = "x86-64-v3"


def definition() -> str:
    """VPDPBUSD of the manual: to each of 16 sums the four products of unsigned with signed bytes, nothing saturates."""
    lines = [
        "define internal <16 x i32> @qd_vpdpbusd(<16 x i32> %sums, <64 x i8> %left, <64 x i8> %right) {",
        "  %a = zext <64 x i8> %left to <64 x i32>",
        "  %b = sext <64 x i8> %right to <64 x i32>",
        "  %p = mul <64 x i32> %a, %b",
    ]
    total = "%sums"
    for k in range(4):
        mask = ", ".join(f"i32 {4 * lane + k}" for lane in range(16))
        lines.append(f"  %q{k} = shufflevector <64 x i32> %p, <64 x i32> poison, <16 x i32> <{mask}>")
        lines.append(f"  %s{k} = add <16 x i32> {total}, %q{k}")
        total = f"%s{k}"
    return "\n".join([*lines, f"  ret <16 x i32> {total}", "}", ""])


def emulated(text: str) -> tuple[str, int]:
    """The IR without the instruction, and the number of calls that were replaced."""
    text = re.sub(rf"^declare .*{re.escape(INTRINSIC)}\(.*\n", "", text, flags=re.MULTILINE)
    calls = text.count(INTRINSIC + "(")
    text = text.replace(INTRINSIC + "(", "@qd_vpdpbusd(")
    text = text.replace('"target-cpu"="x86-64-v4"', f'"target-cpu"="{NARROW}"')
    text = re.sub(r' "target-features"="[^"]*"', "", text)
    text = re.sub(r"\\22mcpu\\22:\s*\\22x86-64-v4\\22", f"\\\\22mcpu\\\\22: \\\\22{NARROW}\\\\22", text)
    text = re.sub(r",?\s*\\22mattr\\22:\s*\[[^\]]*\]", "", text)
    return text + definition(), calls


def main(folder: Path, out: Path) -> None:
    """Compiles a program."""
    from qdeploy.backends.tvm import emit
    from qdeploy.backends.tvm.engine import tvm
    from qdeploy.backends.tvm.program import load
    from qdeploy.backends.tvm.targets import target

    wide = target("x86-64-v4+vnni").llvm
    module = emit.bare_module(emit.kernels(load(folder), parallel=False))
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        built = tvm.compile(module, target=tvm.target.Target(dict(wide)))
    text, calls = emulated(built.mod.inspect_source("ll"))
    with tempfile.TemporaryDirectory() as content:
        path = Path(content) / "kernels.ll"
        path.write_text(text)
        tvm.runtime.load_module(str(path)).write_to_file(str(out), "o")
    print(calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
