"""Streamed text is what all tokens decode to at once, for every kind of decoder, and costs a window per token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from qdeploy.streaming import TextStream

WORDS = ["▁Hello", "▁world", "lo", ".", "▁", "ß", "▁naïve", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def sentencepiece() -> Tokenizer:
    """The decoder of Llama: byte fallback, then the first space dropped."""
    vocab = {token: i for i, token in enumerate(["<unk>", *WORDS, *BYTES])}
    output = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    output.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    output.add_special_tokens(["</s>"])
    return output


def byte_level() -> Tokenizer:
    """The decoder of GPT-2: every token is bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, "Ġhello", "Ã©"])}
    output = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    output.decoder = decoders.ByteLevel()
    return output


TOKENIZERS = {"sentencepiece": sentencepiece(), "byte level": byte_level()}


def streamed(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.add(token) for token in ids), stream.end()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_together_are_the_whole_text(kind: str, data: st.DataObject):
    tokenizer = TOKENIZERS[kind]
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    ids = data.draw(st.lists(token, max_size=40))
    assert "".join(streamed(tokenizer, [], ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=25))
def test_characters_of_many_bytes_come_whole(kind: str, text: str):
    tokenizer = TOKENIZERS[kind]
    if kind == "sentencepiece":
        ids = [tokenizer.token_to_id(BYTES[byte]) for byte in text.encode()]
    else:
        from tokenizers.pre_tokenizers import ByteLevel

        shown = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        ids = [tokenizer.token_to_id(letter) for part, _ in shown for letter in part]
    pieces = streamed(tokenizer, [], ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_the_space_before_a_word_is_kept_and_the_first_one_is_not():
    tokenizer = TOKENIZERS["sentencepiece"]
    hello, world = (tokenizer.token_to_id(word) for word in WORDS[:2])
    assert streamed(tokenizer, [], [hello, world, world]) == ["Hello", " world", " world", ""]
    assert streamed(tokenizer, [hello], [world]) == [" world", ""]


def test_a_special_token_does_not_end_a_run_of_bytes():
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(token) for token in ("<0x00>", "</s>", "<0x80>", "lo")]
    assert "".join(streamed(tokenizer, [], ids)) == tokenizer.decode(ids)


def test_a_token_costs_a_window_however_long_the_text_is():
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return "x" * len(ids)

        def id_to_token(self, token: int) -> str:
            return "x"

    tokenizer = Counting()
    pieces = streamed(tokenizer, [0] * 100, [0] * 500)  # type: ignore[arg-type]
    assert "".join(pieces) == "x" * 500
    assert tokenizer.longest < 20
