"""A kind of term is one file and one row; an op of the network is two functions and one row."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import FLAGS, RUNTIME, need

SOURCE = RUNTIME / "src"
TOY_TERM = """// Codes of 4 bits, counted backwards.
QD_TERM(11, kToy, Toy)

#if defined(QD_TERM_RULES)
struct Toy : GroupedTerm {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 8) * 64; }
};

#elif defined(QD_TERM_KERNELS)
struct Toy : IntegerCodes<Toy> {
  static constexpr size_t kUnitBytes = 128;
  static bool small(const TermView&) { return true; }
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    nibbles16(v.codes[0] + codes_at<Toy>(v, rb, u), c);
    for (int j = 0; j < 16; j++)
      for (int r = 0; r < 16; r++) c[j][r] = static_cast<int16_t>(15 - c[j][r]);
  }
};
#endif
"""
TOY_OP = """#include "../ops.h"
#include "../session.h"

namespace qd {
bool toy_fits(const NodeCheck& g) { return same_shape(g.in(0), g.out(0)); }
void run_toy(Step& s, const format::Node& n) {
  for_tokens(s, n, [&](uint32_t, uint32_t t) { *value_at(s, n.outputs[0], t) = -*value_at(s, n.inputs[0], t); });
}
}  // namespace qd
"""
USER = """
#include <cstdio>
#include <initializer_list>
#include "src/kernels/kernels.h"
#include "src/terms.h"

using namespace qd;
using namespace qd::format;

int main() {
  static_assert(kToy == 11 && kTermKinds == 12 && kToyOp == FREE && kOps == FREE + 1, "the rows are in the format");
  Term term = {};
  term.kind = kToy, term.planes = 1, term.group = 32, term.groups = 1;
  uint8_t codes[256];
  float x[128] = {}, scale[8] = {}, fsum[8] = {}, y[16];
  int8_t q[128] = {};
  int32_t sum[8] = {};
  for (int i = 0; i < 256; i++) codes[i] = static_cast<uint8_t>(7 * i);
  for (int i = 0; i < 32; i++) x[i] = static_cast<float>(i - 9);
  const TermRules& rules = *term_rules(kToy);
  if (rules.code_bytes({term, 1, 32, 1, 256}).value() != 256) return 1;
  TermView view = {&term, codes, {codes}, 1, 1, 32, nullptr, nullptr};
  for (const Kernels* const* k = kAllKernels; *k; k++) {
    if (!runs_here(**k)) continue;
    const Kind& kind = (*k)->kinds[kToy];
    (*k)->quantize(x, 32, 32, 1, q, scale, sum, fsum);
    Activations a = {1, 32, 32, 1, 128, x, q, scale, sum, fsum, nullptr, nullptr};
    for (MatVec product : {kind.exact, kind.one, kind.many}) {
      for (float& out : y) out = 0;
      product(view, a, nullptr, y, 16, 0, 1);
      for (uint32_t r = 0; r < 16; r++) {
        float row[32] = {}, want = 0;
        kind.decode_row(view, r, row);
        for (int j = 0; j < 32; j++) want += row[j] * (product == kind.exact ? x[j] : q[j] * scale[0]);
        if (want - y[r] > 0.01f || y[r] - want > 0.01f) return 2;
        if (row[0] != static_cast<float>(15 - (codes[4 * r] & 15))) return 3;
      }
    }
  }
  std::printf("%s\\n", rules.name);
}
"""


def code(path: Path) -> str:
    """A source without its comments."""
    return re.sub(r"//.*", "", path.read_text())


def rows(name: str, macro: str) -> list[tuple[str, ...]]:
    text = code(SOURCE / name)
    for file in re.findall(r'#include "(.+)"', text):
        text += code(SOURCE / file)
    return [tuple(a.strip() for a in row.split(",")) for row in re.findall(rf"^{macro}\((.*)\)", text, re.MULTILINE)]


def test_a_kind_of_term_stands_in_one_file_and_one_row():
    kinds = rows("terms.def", "QD_TERM")
    assert len(kinds) == 10
    for _, constant, _ in kinds:
        file = f"terms/{constant[1:].lower()}.inl"
        users = [p for p in SOURCE.rglob("*") if p.is_file() and re.search(rf"(?<!::)\b{constant}\b", code(p))]
        qualified = [p for p in SOURCE.rglob("*") if p.is_file() and f"format::{constant}" in code(p)]
        assert [str(p.relative_to(SOURCE)) for p in users] == [file], constant
        assert {str(p.relative_to(SOURCE)) for p in qualified} <= {file}, constant
        assert code(SOURCE / "terms.def").count(file) == 1
        assert not [p for p in SOURCE.rglob("*.[ch]*") if file in code(p)]


def test_an_op_is_checked_and_run_by_its_row_alone():
    for row in rows("ops.def", "QD_OP"):
        for function in row[-2:]:
            written = [p.name for p in SOURCE.rglob("*.cpp") if re.search(rf"^(bool|void) {function}\(", code(p), re.M)]
            assert len(written) == 1, function
            assert not re.search(rf"\b{function}\b", code(SOURCE / "walker.cpp") + code(SOURCE / "validate_graph.cpp"))


@pytest.mark.parametrize("name", ["terms.def", "ops.def"])
def test_the_table_says_how_to_add_a_row(name: str):
    assert "To add " in (SOURCE / name).read_text() and "add its row here" in (SOURCE / name).read_text()


def test_a_kind_and_an_op_are_added_by_a_file_and_a_row_each(tmp_path: Path):
    copy = tmp_path / "runtime"
    shutil.copytree(RUNTIME, copy)
    (copy / "src" / "terms" / "toy.inl").write_text(TOY_TERM)
    (copy / "src" / "ops" / "toy.cpp").write_text(TOY_OP)
    free = len(rows("ops.def", "QD_OP")) + 1  # they count from 1
    for name, row in (
        ("terms.def", '#include "terms/toy.inl"\n#undef QD_TERM\n'),
        ("ops.def", f"QD_OP({free}, kToyOp, 1, 1, 1, 0, false, false, toy_fits, run_toy)\n#undef QD_OP\n"),
    ):
        path = copy / "src" / name
        before = path.read_text()
        path.write_text(before.replace(row.splitlines()[-1] + "\n", row))
    (copy / "user.cpp").write_text(USER.replace("FREE", str(free)))
    sources = [copy / line for line in (copy / "sources.txt").read_text().split()] + [copy / "src" / "ops" / "toy.cpp"]
    flags = [flag for flag in FLAGS if not flag.startswith("-I")]
    command = [need("g++"), *flags, "-O0", f"-I{copy}", f"-I{copy / 'include'}", copy / "user.cpp", *sources]
    subprocess.run([*map(str, command), "-o", str(tmp_path / "user")], check=True)
    done = subprocess.run([tmp_path / "user"], capture_output=True, text=True, check=True)
    assert done.stdout == "Toy\n"
