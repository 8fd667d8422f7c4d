"""The tokenizer that comes with a model, opened: what it carries may be damaged, or of a kind that nobody knows."""

from __future__ import annotations

from typing import Any

from qdeploy.errors import BadFileError
from qdeploy.extras import require


def open_tokenizer(data: bytes, where: str, purpose: str) -> Any:
    """A tokenizer.json as a Tokenizer of the package tokenizers.

    Args:
        data: The file.
        where: Whose it is, for errors.
        purpose: What needs it.

    Raises:
        BadFileError: It is no tokenizer.
        UnsupportedError: The package is not installed.
    """
    require("tokenizers", purpose=purpose)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the package raises nothing more exact
        raise _damaged("tokenizer.json", where, error) from error


def open_pieces(data: bytes, where: str, purpose: str) -> Any:
    """The same of a tokenizer.model, by the package sentencepiece."""
    require("sentencepiece", purpose=purpose)
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=data)
    except Exception as error:  # a RuntimeError of the library, or what its wrapper makes of it
        raise _damaged("tokenizer.model", where, error) from error


def _damaged(file: str, where: str, error: Exception) -> BadFileError:
    return BadFileError(
        f"the model's {file} cannot be read", where=where, found=error, todo="Fetch the file again, and convert again."
    )
