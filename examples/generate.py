"""Generates text with a converted decoder in ONNX Runtime, token by token, with its key/value cache.

python examples/generate.py OUTPUT_FOLDER "Once upon a time" [--tokens 60]

Greedy: the most likely token each time. Only numpy, tokenizers and onnxruntime are needed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


def generate(folder: Path, prompt: str, count: int) -> str:
    """Greedy text from the decoder in `folder`: prompt and continuation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    cache = {
        f"past_key_values.{i}.{kind}": np.zeros(shape, np.float32)
        for i in range(decoder["num_hidden_layers"])
        for kind in ("key", "value")
    }
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    ids = tokenizer.encode(prompt).ids
    fresh = np.array([ids], np.int64)
    for _ in range(count):
        feeds = {
            "input_ids": fresh,
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids) - fresh.shape[1], len(ids), dtype=np.int64)[None],
            **cache,
        }
        result = dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in wanted}), strict=True))
        cache = {k.replace("present.", "past_key_values."): v for k, v in result.items() if k.startswith("present.")}
        ids.append(int(result["logits"][0, -1].argmax()))
        fresh = np.array([[ids[-1]]], np.int64)
    return tokenizer.decode(ids)


def main() -> None:
    """Parses the command line and prints the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=60)
    args = parser.parse_args()
    print(generate(args.folder, args.prompt, args.tokens))


if __name__ == "__main__":
    main()
