"""A folder with tokenizer.model alone gets a tokenizer.json that gives SentencePiece's own ids."""

import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

import qdeploy
from qdeploy.formats.huggingface.pieces import tokenizer_files
from qdeploy.store.folder import Folder

TINY = Path("examples/models/tiny-llama")
TEXTS = ["hello world", "To be, or not to be: that is the question.", "  two  spaces ", "Zürich 東京 😀", "a\nb\tc"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, testdata: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sp")
    text = folder / "text.txt"
    text.write_text((testdata / "text/tinyshakespeare.txt").read_text()[:200_000])
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(folder / kind),
            vocab_size=500,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return {kind: folder / f"{kind}.model" for kind in ("bpe", "unigram")}


def test_ids_are_those_of_sentencepiece(trained: dict[str, Path], tmp_path: Path):
    shutil.copy(trained["bpe"], tmp_path / "tokenizer.model")
    files, notes = tokenizer_files(Folder(tmp_path))
    output = Tokenizer.from_str(files["tokenizer.json"].decode())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained["bpe"]))
    for text in TEXTS:
        assert output.encode(text, add_special_tokens=False).ids == processor.encode(text), text
    assert output.encode("x").ids[0] == processor.bos_id() and not notes


def test_the_tokenizer_is_carried_to_the_targets(trained: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    shutil.copy(trained["bpe"], folder / "tokenizer.model")
    qdeploy.convert(folder, tmp_path / "out", check="none")
    assert (tmp_path / "out/tokenizer.json").is_file()


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\n\x05abc", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_damaged_model_costs_a_note(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.model").write_bytes(content)
    files, notes = tokenizer_files(Folder(tmp_path))
    assert not files and notes[0].startswith("no tokenizer.json")


def test_a_unigram_model_costs_a_note(trained: dict[str, Path], tmp_path: Path):
    shutil.copy(trained["unigram"], tmp_path / "tokenizer.model")
    files, notes = tokenizer_files(Folder(tmp_path))
    assert not files and "only BPE" in notes[0]
