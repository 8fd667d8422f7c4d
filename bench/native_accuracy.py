"""What rounded activations cost: perplexity with int8 activations next to exact arithmetic, same weights, same file.

    QDEPLOY_TESTDATA=DIR python bench/native_accuracy.py [--stories 40] [--json FILE]

stories260K over TinyStories cut to 512 tokens, and a character model of 0.94 M parameters cut to 256; each as float32,
and by round-to-nearest to 8 and to 4 bits in groups of 32. Token by token, so the kernels of one token are measured.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Results, arguments

import qdeploy

LIMIT = 0.005
QUANTIZE = {"float32": (), "int8": ("rtn:int8,group=32",), "int4": ("rtn:int4,group=32",)}
MODELS = {"stories260K": 512, "babyllama-tok105": 256}


def encoder(folder: Path) -> Any:
    """A function from text to ids, with the start token."""
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: [1, *tokenizer.encode(text, add_special_tokens=False).ids]
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: [1, *pieces.encode(text)]


def perplexity(runtime: Any, texts: Iterable[list[int]]) -> float:
    """The exponential of the mean loss per token, weighted by tokens."""
    loss, count = 0.0, 0
    for ids in texts:
        runtime.reset()
        for token, target in itertools.pairwise(ids):
            logits = runtime.decode([token]).astype(np.float64)
            top = logits.max()
            loss += math.log(np.exp(logits - top).sum()) + top - logits[target]
            count += 1
    return math.exp(loss / count)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--stories", type=int, default=40, help="texts per model [%(default)s]")
    options = parser.parse_args()
    data = Path(os.environ.get("QDEPLOY_TESTDATA", ""))
    if not (data / "lm").exists():
        sys.exit("QDEPLOY_TESTDATA does not name the folder of test data")
    stories = (data / "text" / "tinystories_a.txt").read_text().split("<|endoftext|>")
    texts = [s.strip() for s in stories if s.strip()][: options.stories]
    results, rows = Results("native_accuracy.py", options.json), []
    with tempfile.TemporaryDirectory() as folder:
        for name, length in MODELS.items():
            source = data / "lm" / name
            encode = encoder(source)
            ids = [encode(text)[:length] for text in texts]
            for weights, quantize in QUANTIZE.items():
                path = Path(folder) / f"{name}-{weights}.qd"
                qdeploy.convert(source, path, to="native", quantize=list(quantize))
                result = []
                for activations, kv in (("exact", "f32"), ("int8", "f16")):
                    with qdeploy.Runtime(path, activations=activations, kv=kv, threads=1, context=length) as runtime:
                        result.append(perplexity(runtime, ids))
                change = result[1] / result[0] - 1
                rows.append([name, weights, *result, f"{change:+.3%}"])
                results.bar(f"{name}, {weights} weights: perplexity changed by", abs(change), LIMIT, at_least=False)
    columns = ["model", "weights", "exact", "int8 activations, float16 cache", "change"]
    results.table(f"Perplexity over {len(texts)} stories", columns, rows)


if __name__ == "__main__":
    main()
