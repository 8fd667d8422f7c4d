#!/bin/sh
# Fuzzes the reader and the kernels of the native runtime with clang's libFuzzer, from the golden files on.
#
#   runtime/fuzz/run.sh [SECONDS [FOLDER]]
#
# FOLDER keeps the program, its corpus and what it finds (build/fuzz). CLANGXX names the compiler. FUZZ_SEED draws the same
# mutations again.
set -eu
seconds=${1:-60}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${2:-$root/build/fuzz}
compiler=${CLANGXX:-$(command -v clang++ || command -v clang++-14 || true)}
if [ -z "$compiler" ]; then
  echo "fuzz: no clang++ is installed; on Debian: apt-get install clang-14 libclang-rt-14-dev" >&2
  exit 1
fi
mkdir -p "$work/corpus" "$work/found"
sources=$(sed "s|^|$root/runtime/|" "$root/runtime/sources.txt")
# shellcheck disable=SC2086
"$compiler" -std=c++17 -O1 -g -ffp-contract=off -fno-exceptions -fno-rtti -pthread \
  -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  "$root/runtime/fuzz/model_fuzz.cpp" $sources -o "$work/model_fuzz"
# A child of this small shell, not exec: a process inherits the peak of memory of the one that calls exec, and libFuzzer
# holds that against its limit.
"$work/model_fuzz" -seed="${FUZZ_SEED:-0}" -max_total_time="$seconds" -max_len=400000 -timeout=25 -rss_limit_mb=3000 \
  -artifact_prefix="$work/found/" -print_final_stats=1 "$work/corpus" "$root/tests/golden"
