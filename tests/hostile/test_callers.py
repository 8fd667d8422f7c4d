"""What callers and users hand in beside a checkpoint: arrays of tokens, statistics, prompts, numbers, templates."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdeploy
from qdeploy.chat import render
from qdeploy.errors import BadArgumentError, BadFileError, QdeployError
from qdeploy.evaluation import evaluate
from qdeploy.native import Engine, Runtime
from tests.hostile import attacks_files as files
from tests.hostile.attacks_safetensors import GPTQ, ROOT

FLOATS = ROOT / "examples/models/tiny-llama"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "tiny.qd"
    qdeploy.convert(GPTQ, path, to="native", check="none")
    return path


@pytest.fixture(scope="module")
def runtime(native: Path) -> Iterator[Runtime]:
    with Runtime(native, threads=1, context=64) as opened:
        yield opened


# ---- arrays of tokens


def _saved(array: np.ndarray, **how: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path, array, **how)


ARRAYS: dict[str, Callable[[Path], object]] = {
    "negative ids.npy": _saved(-np.ones((2, 8), np.int64)),
    "ids beyond the vocabulary.npy": _saved(np.full((2, 8), 512)),
    "ids that wrap around.npy": _saved(np.full((2, 8), (1 << 32) + 5)),
    "ids of 64 bits.npy": _saved(np.full((2, 8), (1 << 64) - 1, np.uint64)),
    "three axes.npy": _saved(np.zeros((1, 1, 8), np.int64)),
    "floats.npy": _saved(np.ones((2, 8))),
    "objects.npy": _saved(np.array([{"a": 1}], object), allow_pickle=True),
    "promise of 2^43 bytes.npy": lambda path: path.write_bytes(files._npy((1 << 40,), "<i8")),
    "Git-LFS pointer.npy": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "FIFO.npy": os.mkfifo,
    "no archive.npz": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "mask of another length.npz": lambda path: np.savez(
        path, input_ids=np.ones((2, 8), int), attention_mask=np.ones((3, 8), int)
    ),
    "mask of another width.npz": lambda path: np.savez(
        path, input_ids=np.ones((2, 8), int), attention_mask=np.ones((2, 9), int)
    ),
    "bomb.npz": lambda path: files._zip(path, {"input_ids.npy": files._npy((1 << 27,), "<i8", bytes(1 << 29))}),
    "nothing.npy": _saved(np.zeros((0, 8), np.int64)),
    "a folder.txt": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("attack", ARRAYS)
@pytest.mark.parametrize("which", ["checkpoint", "native file"])
def test_tokens_that_are_none_are_an_error(attack: str, which: str, native: Path, tmp_path: Path):
    path = tmp_path / attack
    ARRAYS[attack](path)
    start = time.process_time()
    with pytest.raises(QdeployError):
        evaluate(GPTQ if which == "checkpoint" else native, str(path))
    assert time.process_time() - start < 5


def test_two_arrays_of_one_name_are_an_error(tmp_path: Path):
    import zipfile

    from qdeploy.store.archives import read_arrays

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for value in (b"\1", b"\2"):
            archive.writestr("x.npy", files._npy((16,), data=value * 64))
    with pytest.raises(BadFileError, match="two arrays"):
        read_arrays(str(tmp_path / "a.npz"))


# ---- statistics


def _described(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        described = json.loads((folder / "statistics.json").read_text())
        change(described)
        (folder / "statistics.json").write_text(json.dumps(described))

    return damage


STATISTICS: dict[str, Callable[[Path], object]] = {
    "no archive": lambda folder: (folder / "0.npz").write_bytes(b"PK\x03\x04" + bytes(100)),
    "another width": lambda folder: np.savez(folder / "0.npz", moments=np.eye(3), means=np.ones(3), norms=np.ones(3)),
    "no moments": lambda folder: np.savez(folder / "0.npz", means=np.ones(128), norms=np.ones(128)),
    "a file outside": _described(lambda d: d["inputs"][0].update(file="../../secret.npz")),
    "inputs that are a number": _described(lambda d: d.update(inputs=5)),
    "JSON without end": lambda folder: (folder / "statistics.json").write_text("[" * 100_000),
}


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qdeploy.calibrate.layers import calibrate_layers

    folder = tmp_path_factory.mktemp("statistics")
    (folder / "text.txt").write_text("To be, or not to be, that is the question. " * 20)
    calibrate_layers(qdeploy.load(FLOATS), str(folder / "text.txt"), folder / "all", tokens=128)
    return folder / "all"


@pytest.mark.parametrize("attack", STATISTICS)
def test_statistics_that_are_none_are_an_error(attack: str, statistics: Path, tmp_path: Path):
    folder = Path(shutil.copytree(statistics, tmp_path / "statistics"))
    STATISTICS[attack](folder)
    with pytest.raises(QdeployError):
        qdeploy.convert(
            FLOATS, tmp_path / "out", to="ir", quantize=f"gptq:int4,group=32,calibrate={folder}", check="none"
        )
    assert not (tmp_path / "out").exists()


# ---- the runtime's arguments

CALLS: dict[str, Callable[[Runtime], object]] = {
    "ids of 2^40": lambda r: r.decode([1 << 40]),
    "negative ids": lambda r: r.decode([-1]),
    "ids that are floats": lambda r: r.decode([1.5]),  # type: ignore[list-item]
    "ids that are texts": lambda r: r.decode(["a"]),  # type: ignore[list-item]
    "ids in a matrix": lambda r: r.decode(np.ones((2, 2), int)),
    "no ids": lambda r: r.decode([]),
    "logits of nothing": lambda r: r.logits([]),
    "logits that are too short": lambda r: r.sample(np.ones(3, np.float32)),
    "logits of float64": lambda r: r.sample(np.ones(r.vocab)),  # type: ignore[arg-type]
    "an option that is misspelt": lambda r: list(r.generate("a", 2, temprature=1.0)),
    "a temperature that is a text": lambda r: list(r.generate("a", 2, temperature="hot")),  # type: ignore[arg-type]
    "a temperature that is NaN": lambda r: list(r.generate("a", 2, temperature=float("nan"))),
    "a seed of 2^70": lambda r: list(r.generate("a", 2, seed=1 << 70)),
    "a prompt of half characters": lambda r: list(r.generate("\udcff", 2)),
    "a prompt that is none": lambda r: list(r.generate(None, 2)),  # type: ignore[arg-type]
    "memory that is NaN": lambda r: setattr(r, "memory", float("nan")),
    "memory without end": lambda r: setattr(r, "memory", float("inf")),
    "memory of 10^400": lambda r: setattr(r, "memory", "9" * 400),
    "memory that is None": lambda r: setattr(r, "memory", None),
    "a rung of 10^30": lambda r: r.set_rung(10**30),
    "a negative rung": lambda r: r.set_rung(-1),
    "a length of -1": lambda r: r.reset(-1),
    "a time of -1": lambda r: r.wait(-1),
    "a time that is NaN": lambda r: r.wait(float("nan")),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_argument_that_cannot_be_is_an_error_and_the_runtime_lives_on(call: str, runtime: Runtime):
    with pytest.raises(BadArgumentError):
        CALLS[call](runtime)
    assert len(list(runtime.generate("ROMEO:", 2))) >= 1


@pytest.mark.parametrize(
    "options", [{"threads": -1}, {"threads": 10**12}, {"context": -1}, {"context": 10**30}, {"memory": "-1"}], ids=str
)
def test_a_runtime_that_cannot_be_is_an_error(options: dict[str, Any], native: Path):
    with pytest.raises(BadArgumentError):
        Runtime(native, **options)


def test_a_runtime_that_is_closed_says_so(native: Path):
    closed = Runtime(native, threads=1, context=64)
    closed.close()
    for call in (lambda: closed.decode([1]), lambda: closed.length, closed.reset, closed.cancel, lambda: closed.stats):
        with pytest.raises(BadArgumentError, match="closed"):
            call()


def test_an_engine_judges_tokens_and_options_as_the_runtime_does(native: Path):
    with Runtime(native, threads=1, session=False) as model, Engine(model) as engine:
        for ids in ([1.5], [1 << 40], [-1]):
            with pytest.raises(BadArgumentError):
                engine.open(ids, 8)
        sequence = engine.open([1, 2], 8)
        while not engine.idle:
            engine.step()
        with pytest.raises(BadArgumentError, match="no such option"):
            sequence.sample(temprature=1.0)


# ---- what a model file says of itself


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("meta", b"[1]"),
        ("meta", b"{"),
        ("meta", b'{"kind":"decoder","context":"x"}'),
        ("meta", b'{"kind":"decoder","eos_token_id":[2,"y"]}'),
        ("tokenizer.json", b'{"model": 3}'),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_documents_of_a_model_file_that_are_none_are_an_error(key: str, text: bytes, native: Path, tmp_path: Path):
    data = native.read_bytes()
    with Runtime(native, threads=1, context=64) as model:
        stored = model.metadata(key)
    assert stored is not None
    changed = np.frombuffer(data.replace(stored, text.ljust(len(stored))), np.uint8).copy()
    (tmp_path / "m.qd").write_bytes(files.mended(changed))
    with Runtime(tmp_path / "m.qd", threads=1, context=64) as model, pytest.raises(BadFileError):
        _ = model.meta, model.tokenizer


def test_a_tokenizer_that_is_none_is_an_error_wherever_it_is_needed(tmp_path: Path):
    source = Path(shutil.copytree(GPTQ, tmp_path / "m"))
    (tmp_path / "t.txt").write_text("To be, or not to be")
    for name, data in (("tokenizer.json", b"{"), ("tokenizer.json", b"\xff\xfe"), ("tokenizer.model", b"\x0a\xff")):
        (source / "tokenizer.json").unlink(missing_ok=True)
        (source / name).write_bytes(data)
        with pytest.raises(BadFileError, match="cannot be read"):
            evaluate(source, str(tmp_path / "t.txt"))


# ---- chat templates

TEMPLATES = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x",
    "a text of 10^10 characters": "{{ 'a' * 10**10 }}",
    "a text that doubles": "{% set n = namespace(a='x') %}{% for i in range(40) %}{% set n.a = n.a ~ n.a %}{%endfor%}",
    "a padded text": "{{ 'a' | center(10**10) }}",
    "a padded text, by a method": "{{ 'a'.ljust(10**10) }}",
    "a format of 10^10 characters": "{{ '%10000000000d' % 1 }}",
    "a power of powers": "{{ 9 ** (9 ** 9) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "attributes of classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a file": "{% include '/etc/passwd' %}",
    "syntax that is none": "{% for %}",
}


@pytest.mark.parametrize("attack", TEMPLATES)
def test_a_template_that_runs_on_is_ended_and_the_next_one_is_rendered(attack: str):
    messages = [{"role": "user", "content": "hello"}]
    start = time.monotonic()
    with pytest.raises(BadFileError, match="does not take"):
        render({"chat_template.jinja": TEMPLATES[attack].encode()}, messages, "the model")
    assert time.monotonic() - start < 60
    assert render({"chat_template.jinja": b"{{ messages[0].content }}"}, messages, "the model") == "hello"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat_template.jinja", b"\xff{{ messages }}"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 7}]}'),
        ("tokenizer_config.json", b'{"chat_template": [3]}'),
        ("tokenizer_config.json", b'{"chat_template": 3}'),
    ],
)
def test_a_template_that_is_no_text_is_an_error(name: str, data: bytes):
    with pytest.raises(BadFileError):
        render({name: data}, [{"role": "user", "content": "hello"}], "the model")


def test_messages_that_are_no_json_values_are_an_error():
    with pytest.raises(BadArgumentError, match="JSON"):
        render({"chat_template.jinja": b"x"}, [{"role": "user", "content": {1, 2}}], "the model")
