"""Texts that a model makes up, to calibrate it with where nothing that it was trained on is at hand.

python examples/own_text.py MODEL.qd OUT.txt [--texts 48] [--tokens 120]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qdeploy.native import Runtime


def main() -> None:
    """Parses the command line and writes the texts, parted by <|endoftext|>."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=120)
    args = parser.parse_args()
    beginnings = ("ROMEO:", "The ", "KING:", "What ", "My lord, ", "I ", "To ", "And ")
    with Runtime(args.model, context=256) as model:
        texts = []
        for seed in range(args.texts):
            model.reset()
            prompt = beginnings[seed % len(beginnings)]
            texts.append(prompt + "".join(model.generate(prompt, args.tokens, temperature=0.9, seed=seed)))
    args.out.write_text("<|endoftext|>".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
