"""Tokenizers made from metadata cut text as the model's own tokenizer does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qdeploy.formats.gguf import reader
from qdeploy.formats.vocabulary import derive
from qdeploy.store.folder import Folder

SPACE = "\u2581"
TEXTS = [
    "Once upon a time, there was a little girl.",
    "  two  spaces\nand\n\nlines ",
    "naïve ☃ 世界 123456 don't",
    "x = y+1; // code\t\ttabs",
    "",
    " ",
    "ÀÉÎ İ ß",
    "<s> in a text",
]


def made(metadata: dict[str, object]) -> Tokenizer:
    files, notes = derive(metadata, ())
    assert not [note for note in notes if "no tokenizer" in note]
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def vocabulary(kind: str, tokenizer: Tokenizer, control: tuple[str, ...], **more: object) -> dict[str, object]:
    """What a converter writes for a tokenizer of the tokenizers library."""
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    types = np.array([3 if token in control else 1 for token in tokens], np.int32)
    fields = {"model": kind, "tokens": tokens, "token_type": types, **more}
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def corpus(testdata: Path) -> list[str]:
    return (testdata / "text" / "tinystories_a.txt").read_text()[:60000].split("<|endoftext|>")


def test_sentence_piece_equals_the_original_on_text(testdata):
    model = reader.read(Folder(testdata / "quantized" / "gguf" / "stories260K-Q4_0.gguf"))
    files = {file.path: file.data.read().tobytes() for file in model.files if file.role == "derived"}
    result = Tokenizer.from_str(files["tokenizer.json"].decode())
    want = Tokenizer.from_file(str(testdata / "lm" / "stories260K" / "tokenizer.json"))
    for text in [*TEXTS, *corpus(testdata)]:
        ids = result.encode(text).ids
        assert ids == want.encode(text).ids
        assert result.decode(ids) == want.decode(ids)
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"], settings["model_max_length"]) == ("<s>", "</s>", 512)


def test_merges_follow_the_scores():
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc", "bca"]
    fields = {
        "model": "llama",
        "tokens": tokens,
        "token_type": np.array([2, 1, 1, 1, 1, 1, 1, 1], np.int32),
        "scores": np.array([0, -9, -9, -9, -2, -1, -3, -4], np.float32),
        "add_space_prefix": False,
        "add_bos_token": False,
    }
    tokenizer = made({f"tokenizer.ggml.{name}": value for name, value in fields.items()})
    assert tokenizer.encode("abca").tokens == ["abc", "a"]  # "bc" first, then "abc" before "bca"


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", None])
def test_byte_level_equals_the_tokenizer_that_it_was_made_of(testdata, pre):
    original = Tokenizer(models.BPE())
    derived, _ = derive({"tokenizer.ggml.model": "gpt2", **({"tokenizer.ggml.pre": pre} if pre else {})}, ())
    words = json.loads(derived["tokenizer.json"])["pre_tokenizer"]
    cut = next((w["pattern"]["Regex"] for w in words["pretokenizers"] if w["type"] == "Split"), None)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    before = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    before = [pre_tokenizers.Split(Regex(cut), "isolated")] if cut else before
    original.pre_tokenizer = pre_tokenizers.Sequence([*before, level])
    original.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        original.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    original.train_from_iterator(corpus(testdata), trainer)
    merges = [" ".join(pair) for pair in json.loads(original.to_str())["model"]["merges"]]
    more = {"merges": merges, "bos_token_id": 0, "eos_token_id": 1, **({"pre": pre} if pre else {})}
    result = made(vocabulary("gpt2", original, ("<s>", "</s>"), **more))
    start = [0] if pre in ("llama-bpe", "tekken") else []
    for text in [*TEXTS, *corpus(testdata)[:20]]:
        assert result.encode(text).ids == start + original.encode(text).ids
        assert result.decode(result.encode(text).ids) == original.decode(original.encode(text).ids)


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_piece_equals_the_tokenizer_that_it_was_made_of(testdata, lowercase):
    original = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    original.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    original.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    original.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    original.train_from_iterator(
        corpus(testdata), trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    original.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fields = vocabulary("bert", original, tuple(special), cls_token_id=2, seperator_token_id=3, unknown_token_id=1)
    tokens = fields["tokenizer.ggml.tokens"]
    fields["tokenizer.ggml.tokens"] = [
        t if t in special else t.removeprefix("##") if t.startswith("##") else SPACE + t for t in tokens
    ]
    result = made(fields)
    for text in [*TEXTS, *corpus(testdata)[:20]]:
        assert result.encode(text).ids == original.encode(text).ids
        assert result.encode(text, "a pair").ids == original.encode(text, "a pair").ids
        assert result.encode(text, "a pair").type_ids == original.encode(text, "a pair").type_ids


def test_what_is_not_understood_gives_a_note_and_no_tokenizer():
    strange = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "chameleon"}
    for metadata, word in (({}, "no vocabulary"), ({"tokenizer.ggml.model": "rwkv"}, "rwkv"), (strange, "chameleon")):
        files, notes = derive(metadata, ())
        assert files == {}
        assert len(notes) == 1
        assert word in notes[0]


def test_a_tokenizer_that_is_there_is_never_replaced():
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}
    assert derive(metadata, {"tokenizer.json"}) == ({}, [])
    assert list(derive(metadata, {"tokenizer_config.json"})[0]) == ["tokenizer.json"]


def test_a_chat_template_is_carried():
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"], "tokenizer.chat_template": "{{ x }}"}
    assert json.loads(derive(metadata, ())[0]["tokenizer_config.json"])["chat_template"] == "{{ x }}"


@pytest.mark.parametrize(
    "field",
    [
        {"scores": np.zeros(3, np.float32)},
        {"token_type": np.zeros(1, np.int32)},
        {"token_type": ["x", "y"]},
        {"tokens": np.zeros(2, np.int32)},
        {"tokens": 3},
        {"model": "gpt2", "merges": ["a b"]},
        {"model": "gpt2", "merges": ["a"]},
        {"model": "gpt2", "merges": 5},
    ],
)
def test_a_vocabulary_that_contradicts_itself_gives_no_tokenizer_and_a_note(field):
    fields = {"model": "llama", "tokens": ["a", "c"], "pre": "gpt-2", **field}
    files, notes = derive({f"tokenizer.ggml.{name}": value for name, value in fields.items()}, ())
    assert files == {} and len(notes) == 1 and notes[0].startswith("no tokenizer.json: ")


@pytest.mark.parametrize("number", [2, -1, 32000, "a"])
def test_a_special_token_outside_of_the_vocabulary_is_left_out_with_a_note(number):
    fields = {"model": "llama", "tokens": ["a", "c"], "bos_token_id": 1, "padding_token_id": number}
    files, notes = derive({f"tokenizer.ggml.{name}": value for name, value in fields.items()}, ())
    assert "pad_token" not in json.loads(files["tokenizer_config.json"])
    assert len(notes) == 1 and "padding_token_id" in notes[0] and repr(number) in notes[0]


@pytest.mark.parametrize("name", ["deepseek-r1-qwen", "falcon3", "smaug-bpe", "phi-2", "command-r", "megrez"])
def test_names_of_the_ways_to_cut_words_are_those_of_llama_cpp(name):
    fields = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "pre": name}
    files, notes = derive({f"tokenizer.ggml.{key}": value for key, value in fields.items()}, ())
    assert "tokenizer.json" in files and not notes
