"""The proof that a compiled network computes with integers alone.

Three layers, each of which would find what the one above it misses:

    modules   every node of the Relax and TIR functions: its type, its constants, its operators, its calls
    LLVM IR   every line of every function that LLVM was given, after all passes of TVM
    objects   every instruction of the object file (`instructions`), where a disassembler is at hand

A node's type stands in `.ty`; expressions of TIR have no `.dtype`, and a proof that reads that alone misses casts.
Integer divisions are listed besides: HAWQ-V3 promises none but by constants, which become multiplications.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FLOAT_TYPE = re.compile(r"\b(b?float\d*|double|half|fp128|x86_fp80|ppc_fp128)")
FLOAT_IR = re.compile(
    r"\b(bfloat|float|double|half|fp128|x86_fp80|fneg|fadd|fsub|fmul|fdiv|frem|fcmp|fptrunc|fpext|fptosi|fptoui"
    r"|sitofp|uitofp)\b"
)
DIVISION_IR = re.compile(r"= (sdiv|udiv|srem|urem)(?: exact)? \S+(?: x i\d+>)? [^,]+, (%\S+)")
CALL_IR = re.compile(r"\bcall\b[^@%(]*(?:\([^)]*\)\s*)?@([\w.$]+|\"[^\"]+\")\(")
HELPERS = frozenset({"__truncsfhf2", "__extendhfsf2"})
"""Two conversions of half precision that TVM adds to every module; nothing calls them."""
RUNTIME = frozenset(
    {
        "TVMBackendAllocWorkspace",
        "TVMBackendFreeWorkspace",
        "TVMBackendParallelLaunch",
        "memset",
        "TVMBackendParallelBarrier",
        "TVMFFIErrorSetRaisedFromCStrParts",
    }
)
RELAX_OPS = frozenset({"relax.call_tir", "relax.call_dps_packed", "relax.reshape"})
EXTERN_OPS = ("call_extern", "call_pure_extern", "call_packed", "call_cpacked", "tvm_call")
X86_FLOAT = re.compile(r"^v?(add|sub|mul|div|sqrt|min|max|cvt\w*|fn?m(add|sub)\w*|round|rcp|rsqrt|u?comi)[sp][sd]")
X86_CONVERT = re.compile(r"^(v?cvt|f(add|sub|mul|div|ild|ist|sqrt|com))")
ARM_FLOAT = re.compile(r"^(f(add|sub|mul|div|neg|abs|madd|msub|mla|mls|cvt\w*|cmp\w*|rint\w*|sqrt|min|max)|[us]cvtf)")


@dataclass
class Proof:
    """What was looked at and what was found.

    Attributes:
        nodes: Nodes of the modules.
        lines: Lines of LLVM IR.
        floats: Everything of a floating type.
        externs: Calls of what was not looked at.
        divisions: Integer divisions by numbers that are not constant; allowed, but reported.
    """

    nodes: int = 0
    lines: int = 0
    floats: list[str] = field(default_factory=list)
    externs: list[str] = field(default_factory=list)
    divisions: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing but integers was found."""
        return self.nodes + self.lines > 0 and not self.floats and not self.externs

    def __add__(self, other: Proof) -> Proof:
        """Both of what was looked at."""
        return Proof(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def json(self) -> dict[str, Any]:
        """As it stands in proof.json."""
        return {"integer_only": self.holds, **asdict(self)}


def look_at_module(module: Any, known: Collection[str] = ()) -> Proof:
    """What the functions of a module hold; `known` are kernels that are looked at elsewhere."""
    from qdeploy.backends.tvm.engine import walk

    proof = Proof()
    for handle, function in module.functions.items():
        name = handle.name_hint

        def visit(node: Any, name: str = name) -> None:
            proof.nodes += 1
            for text in _floats(node):
                proof.floats.append(f"{name}: {type(node).__name__} {text}")
            if type(node).__name__ == "ExternFunc" and node.global_symbol not in known:
                proof.externs.append(f"{name}: {node.global_symbol}")
            called = str(getattr(getattr(node, "op", None), "name", ""))
            if (called and any(part in called for part in EXTERN_OPS)) or (
                called.startswith("relax.") and called not in RELAX_OPS
            ):
                proof.externs.append(f"{name}: {called}")
            if _divides(node):
                proof.divisions.append(f"{name}: {type(node).__name__} {str(node)[:80]}")

        walk(function, visit)
    return proof


def _floats(node: Any) -> Iterator[str]:
    """Everything of a node that says what type it is."""
    if type(node).__name__ == "FloatImm":
        yield str(node)
    for part in ("ty", "dtype", "type_annotation"):
        text = str(getattr(node, part, None))
        if FLOAT_TYPE.search(text):
            yield f"{part} {text[:80]}"
    dtype = getattr(getattr(node, "value", None), "dtype", "")
    if FLOAT_TYPE.search(str(dtype)):
        yield f"constant {dtype}"


def _divides(node: Any) -> bool:
    kinds = ("Div", "Mod", "FloorDiv", "FloorMod")
    return type(node).__name__ in kinds and type(node.b).__name__ != "IntImm"


def look_at_ir(text: str) -> Proof:
    """What LLVM IR holds; metadata and declarations compute nothing."""
    proof = Proof()
    defined = set(re.findall(r"^define [^@]*@([\w.$]+|\"[^\"]+\")\(", text, re.MULTILINE))
    name = ""
    for line in text.splitlines():
        if line.startswith("define "):
            header = re.search(r"@([\w.$]+|\"[^\"]+\")\(", line)
            name = header[1] if header else "?"
        if not name or name in HELPERS or line.startswith(("!", ";", "declare", "attributes")):
            name = "" if line == "}" else name
            continue
        proof.lines += 1
        plain = re.sub(r"@[\w.$]+|%[\w.$]+|\"[^\"]*\"", lambda m: m[0] if m[0].startswith("@llvm.f") else "@", line)
        if FLOAT_IR.search(plain) or "@llvm.f" in plain.replace("@llvm.fsh", ""):
            proof.floats.append(f"{name}: {line.strip()[:120]}")
        if match := DIVISION_IR.search(line):
            proof.divisions.append(f"{name}: {match[1]} by {match[2]}")
        for called in CALL_IR.findall(line):
            if called not in defined | RUNTIME and not called.startswith("llvm."):
                proof.externs.append(f"{name}: {called}")
        name = "" if line == "}" else name
    return proof


def instructions(path: Path, machine: str) -> list[str] | None:
    """Instructions of floating point arithmetic in an object file; None: there is no disassembler for it.

    Moves between registers and memory are not arithmetic: integer vectors travel by them.
    """
    tool = shutil.which("objdump" if machine == "x86_64" else f"{machine}-linux-gnu-objdump")
    if tool is None or machine not in ("x86_64", "aarch64"):
        return None
    done = subprocess.run([tool, "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True)
    lines, name = [], ""
    for line in done.stdout.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.+)>:", line):
            name = match[1]
        parts = line.split("\t")
        if len(parts) < 2 or name.split(".")[0] in HELPERS:
            continue
        code = parts[1].split()[0]
        wrong = (X86_FLOAT, X86_CONVERT) if machine == "x86_64" else (ARM_FLOAT,)
        if any(pattern.match(code) for pattern in wrong):
            lines.append(f"{name}: {' '.join(parts[1:])}")
    return lines
