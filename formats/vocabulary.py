"""tokenizer.json and tokenizer_config.json, made from the vocabulary in the metadata of a GGUF file.

    tokenizer.ggml.model           "llama": SentencePiece BPE; "gpt2": byte-level BPE; "bert": WordPiece
    tokenizer.ggml.tokens          the vocabulary, by id
    tokenizer.ggml.token_type      1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    tokenizer.ggml.scores          "llama": the piece with the highest score is merged first
    tokenizer.ggml.merges          "gpt2": "left right", the first is merged first
    tokenizer.ggml.pre             "gpt2": which expression cuts the text into words
    tokenizer.ggml.*_token_id, add_bos_token, add_eos_token, add_space_prefix; tokenizer.chat_template

A SentencePiece vocabulary has no merges: a pair may be merged when the result is a piece, in the order of the pieces'
scores, so every way to cut a piece into two others is a merge of that piece's rank. A WordPiece vocabulary is stored
the other way round: what begins a word carries a mark, what continues one does not.

The files are derived: the metadata itself is kept verbatim with the head. A vocabulary of a kind that is not known
gives no tokenizer and a note, never a tokenizer that cuts differently from the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\u2581"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Words:
    """How byte-level BPE cuts text into words.

    Attributes:
        expression: What is a word; "" for GPT-2's own expression.
        begins: A text begins with the BOS token unless the metadata says otherwise.
        whole: A word that is in the vocabulary is taken as it is, without merges.
        digits: Every digit is a word.
        composed: Text is put into Unicode's composed form (NFC) first.
    """

    expression: str = ""
    begins: bool = False
    whole: bool = False
    digits: bool = False
    composed: bool = False


_LLAMA3 = _Words(_CONTRACTIONS + _LETTERS % "{1,3}", begins=True, whole=True)
_WORDS = {
    "default": _Words(),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat"), _Words()),
    **dict.fromkeys(("a.x-4.0", "mellum", "modern-bert", "mpt", "olmo", "jais", "trillion"), _Words()),
    "granite-docling": _Words(),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _LLAMA3),
    "lfm2": _LLAMA3,
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Words(_LLAMA3.expression)),
    "qwen2": _Words(_CONTRACTIONS + _LETTERS % "", composed=True),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "stablelm2"), _Words(_CONTRACTIONS + _LETTERS % "")
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _Words(digits=True)
    ),
    "tekken": _Words(_CASED, begins=True, whole=True),
}


def derive(metadata: Mapping[str, Any], present: Collection[str]) -> tuple[dict[str, bytes], list[str]]:
    """Makes the tokenizer files.

    Args:
        metadata: Of the first file.
        present: Files that are there already; they are never replaced.

    Returns:
        Path -> content, and notes about what could not be made: weights do not wait for a tokenizer.
    """
    kind = str(metadata.get("tokenizer.ggml.model", "none"))
    if "tokenizer.json" in present:
        return {}, []
    if kind in ("none", "no_vocab"):
        return {}, ["no tokenizer.json: the file holds no vocabulary"]
    if kind not in _MAKERS:
        return {}, [f"no tokenizer.json: a vocabulary of the kind {kind!r} is not understood"]
    try:
        vocabulary = _Vocabulary(metadata)
        model = _MAKERS[kind](vocabulary)
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added(), **model}
        files = {"tokenizer.json": _json(whole)}
        if "tokenizer_config.json" not in present:
            files["tokenizer_config.json"] = _json(_settings(vocabulary, kind))
    except QdeployError as error:
        detail = f" ({error.found})" if error.found else ""
        return {}, [f"no tokenizer.json: {error.what}{detail}{', ' + error.where if error.where else ''}"]
    return files, vocabulary.notes


class _Vocabulary:
    """The vocabulary of a file, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens = self.texts("tokens")
        self.types = self._numbers("token_type", _NORMAL)
        self.ids: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            self.ids.setdefault(token, number)
        twice = len(self.tokens) - len(self.ids)
        self.notes = [f"{twice} tokens of the vocabulary occur twice; tokenizer.json has the first"] if twice else []

    def field(self, name: str, default: Any = None) -> Any:
        """A field of the vocabulary."""
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def scores(self) -> list[float]:
        """The score of every token."""
        return self._numbers("scores", 0.0)

    def special(self, name: str) -> str | None:
        """The token that serves as "bos", "eos", ..., if there is one."""
        number = self.field(f"{name}_token_id")
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            note = f"tokenizer.ggml.{name}_token_id: {number!r:.40} is no token of {len(self.tokens)}, and was left out"
            self.notes += [note] if note not in self.notes else []
            return None
        return self.tokens[number]

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are found in a text as they are, before it is cut."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": number, "content": token, **flags, "special": kind != _USER}
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER) and token and self.ids[token] == number
        ]

    def ends(self, begins: bool) -> tuple[str | None, str | None]:
        """The tokens that are put before and behind a text; `begins`: BOS, unless the metadata says otherwise."""
        head = self.special("bos") if self.flag("add_bos_token", begins) else None
        return head, self.special("eos") if self.flag("add_eos_token", False) else None

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        setting = self.field(name)
        return setting if isinstance(setting, bool) else default

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty where the field is absent."""
        entries = self.field(name, [])
        if not isinstance(entries, list):
            raise BadFileError("a field of the vocabulary is not a list of texts", where=f"tokenizer.ggml.{name}")
        return entries

    def _numbers(self, name: str, default: float) -> list[Any]:
        entries = self.field(name)
        numbers = [default] * len(self.tokens) if entries is None else getattr(entries, "tolist", list)()
        if len(numbers) != len(self.tokens):
            raise BadFileError(
                "the vocabulary contradicts itself",
                where=f"tokenizer.ggml.{name}",
                found=len(numbers),
                allowed=f"{len(self.tokens)}, one per token",
            )
        return numbers


def _sentence_piece(vocabulary: _Vocabulary) -> dict[str, Any]:
    prefix = vocabulary.flag("add_space_prefix", True)
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, _replace(" ", _SPACE)]},
        "pre_tokenizer": None,
        "post_processor": _frame(vocabulary, *vocabulary.ends(True)),
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
        },
        "model": _bpe(
            vocabulary,
            _merges(vocabulary),
            unk_token=vocabulary.special("unknown"),
            fuse_unk=True,
            byte_fallback=_BYTE in vocabulary.types,
        ),
    }


def _merges(vocabulary: _Vocabulary) -> list[list[str]]:
    """Every pair of pieces that makes a piece: by falling score, then by id, the longer left part first."""
    scores, ranked = vocabulary.scores(), []
    for number, (piece, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == _NORMAL:
            ranked += [
                (-scores[number], number, -i, [piece[:i], piece[i:]])
                for i in range(1, len(piece))
                if piece[:i] in vocabulary.ids and piece[i:] in vocabulary.ids
            ]
    return [pair for *_, pair in sorted(ranked)]


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    name = str(vocabulary.field("pre", "default"))
    if name not in _WORDS:
        raise UnsupportedError("an unknown way to cut text into words", where="tokenizer.ggml.pre", found=name)
    if name == "default":
        vocabulary.notes.append("tokenizer.ggml.pre is missing: text is cut into words as GPT-2 does")
    words = _WORDS[name]
    merges = [merge.split(" ") for merge in vocabulary.texts("merges")]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.ids.keys():
            raise BadFileError("a merge names no tokens of the vocabulary", where="tokenizer.ggml.merges", found=pair)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not words.expression}
    cuts = [{"type": "Split", "pattern": {"Regex": words.expression}, "behavior": "Isolated", "invert": False}]
    cuts = cuts if words.expression else [{"type": "Digits", "individual_digits": True}] if words.digits else []
    frame = _frame(vocabulary, *vocabulary.ends(words.begins))
    return {
        "normalizer": {"type": "NFC"} if words.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, level]},
        "post_processor": {"type": "Sequence", "processors": [level, frame]} if frame else level,
        "decoder": level,
        "model": _bpe(vocabulary, merges, ignore_merges=words.whole),
    }


def _word_piece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """WordPiece: the mark of a word's beginning goes, `##` comes to what continues one; special tokens stay."""
    plain = [_unmarked(token, kind) for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)]
    cased = any(
        t != t.lower()
        for t, kind in zip(plain, vocabulary.types, strict=True)
        if kind == _NORMAL and not t.startswith("[")
    )
    unknown = vocabulary.special("unknown") or "[UNK]"
    first = vocabulary.special("cls") or vocabulary.special("bos")
    last = vocabulary.special("seperator") or vocabulary.special("eos")  # spelled so in the format
    vocab: dict[str, int] = {}
    for number, token in enumerate(plain):
        vocab.setdefault(token, number)
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": not cased,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _frame(vocabulary, first, last, typed=True),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _unmarked(token: str, kind: int) -> str:
    if kind != _NORMAL or (token.startswith("[") and token.endswith("]")):
        return token
    return token[1:] if token.startswith(_SPACE) else f"##{token}"


_MAKERS: dict[str, Callable[[_Vocabulary], dict[str, Any]]] = {
    "llama": _sentence_piece,
    "gpt2": _byte_level,
    "bert": _word_piece,
}


def _frame(vocabulary: _Vocabulary, head: str | None, tail: str | None, typed: bool = False) -> dict[str, Any] | None:
    """The template that puts tokens around a text, or around a pair of `typed` texts; None where there are none."""
    if head is None and tail is None:
        return None

    def around(*names: str) -> list[dict[str, Any]]:
        template: list[dict[str, Any]] = [{"SpecialToken": {"id": head, "type_id": 0}}] if head is not None else []
        for i, name in enumerate(names):
            template.append({"Sequence": {"id": name, "type_id": i * typed}})
            template += [{"SpecialToken": {"id": tail, "type_id": i * typed}}] if tail is not None else []
        return template

    used = {t: {"id": t, "ids": [vocabulary.ids[t]], "tokens": [t]} for t in (head, tail) if t is not None}
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": used}


def _bpe(vocabulary: _Vocabulary, merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    rest = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **settings}
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **rest,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _settings(vocabulary: _Vocabulary, kind: str) -> dict[str, Any]:
    """tokenizer_config.json."""
    roles = {
        "bos": "bos_token",
        "eos": "eos_token",
        "unknown": "unk_token",
        "padding": "pad_token",
        "cls": "cls_token",
        "seperator": "sep_token",
        "mask": "mask_token",
    }
    tokens = {field: vocabulary.special(name) for name, field in roles.items()}
    settings: dict[str, Any] = {field: token for field, token in tokens.items() if token is not None}
    settings["tokenizer_class"] = "BertTokenizer" if kind == "bert" else "PreTrainedTokenizerFast"
    settings["clean_up_tokenization_spaces"] = kind == "bert"
    architecture = vocabulary.metadata.get("general.architecture", "")
    if context := vocabulary.metadata.get(f"{architecture}.context_length"):
        settings["model_max_length"] = context
    template = vocabulary.metadata.get("tokenizer.chat_template")
    return {**settings, "chat_template": template} if isinstance(template, str) else settings


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=1).encode()
