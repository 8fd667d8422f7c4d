"""A tokenizer of the wished size in Llama's form: byte-pair encoding with byte fallback.

The vocabulary is made, not trained: three special tokens, 256 bytes, the printable ASCII characters, then pairs and
triples of them, with the merges that lead there. It encodes and decodes every text; that is all a benchmark asks of
it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

SPECIAL = ("<unk>", "<s>", "</s>")
SPACE = "\u2581"
CHARACTERS = [SPACE, *map(chr, range(33, 127))]


def write_tokenizer(folder: Path, size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
        folder: Where to.
        size: Number of tokens, at most about 850,000.
    """
    vocabulary, merges = _vocabulary(size)
    added = [{"id": i, "content": token, **_FLAGS, "special": True} for i, token in enumerate(SPECIAL)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary,
        "merges": merges,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]},
        "pre_tokenizer": None,
        "post_processor": _starts_with_bos(),
        "decoder": {"type": "Sequence", "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": model,
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 4096,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _vocabulary(size: int) -> tuple[dict[str, int], list[str]]:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    pairs = [f"{a} {b}" for a, b in itertools.product(CHARACTERS, repeat=2)]
    triples = (f"{pair.replace(' ', '')} {c}" for pair, c in itertools.product(pairs, CHARACTERS))
    merges = list(itertools.islice(itertools.chain(pairs, triples), size - len(tokens)))
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: i for i, token in enumerate(tokens)}, merges


def _starts_with_bos() -> dict[str, Any]:
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": special,
    }
