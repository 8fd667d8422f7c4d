"""One process of `onnx_decode.py`: loads a folder in onnxruntime-genai, prefills, decodes; prints what it took as JSON.

    python decode.py FOLDER THREADS

Batch 1, key-value cache of 256 tokens, greedy; decode is 64 tokens after a prompt of 16 (the median token counts),
prefill is a prompt of 128 (the faster of two).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

LENGTH, PROMPT, TOKENS, PREFILL = 256, 16, 64, 128


def generator(og: Any, model: Any) -> Any:
    """A new sequence that no end token ends."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH, min_length=LENGTH, do_sample=False)
    return og.Generator(model, parameters)


def decode(og: Any, model: Any) -> float:
    """Tokens per second after the prompt."""
    sequence = generator(og, model)
    sequence.append_tokens(prompt(PROMPT))
    sequence.generate_next_token()  # its logits came with the prompt
    times = []
    for _ in range(TOKENS):
        begin = time.perf_counter()
        sequence.generate_next_token()
        times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times)


def prefill(og: Any, model: Any) -> float:
    """Prompt tokens per second."""
    times = []
    for _ in range(2):
        sequence = generator(og, model)
        begin = time.perf_counter()
        sequence.append_tokens(prompt(PREFILL))
        sequence.generate_next_token()
        times.append(time.perf_counter() - begin)
    return PREFILL / min(times)


def prompt(length: int) -> list[int]:
    """The same tokens for every model; none is special."""
    return [1, *((7919 * i) % 31000 + 500 for i in range(1, length))]


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    begin = time.perf_counter()
    import onnxruntime_genai as og  # type: ignore[import-untyped]

    config = og.Config(folder)
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    loaded = time.perf_counter() - begin
    results = {"decode": decode(og, model), "prefill": prefill(og, model), "load": loaded, "version": og.__version__}
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps(results | {"peak": peak}))


if __name__ == "__main__":
    main()
