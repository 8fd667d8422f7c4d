"""Text from the runtime: how it ends, conversations, and what one call leaves for the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.chat import render
from qdeploy.cli import main
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.native import Runtime, UnderFloorError
from qdeploy.stopping import StopTexts
from tests.conversing import model_with_template

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}BOT:{% endif %}"
)
SAID = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_template(tmp_path_factory.mktemp("native"), TEMPLATE)


@pytest.fixture
def model(tiny: Path) -> Iterator[Runtime]:
    with Runtime(tiny, threads=1, context=64) as opened:
        yield opened


def test_two_calls_give_the_same_text(model: Runtime):
    first, second = ("".join(model.generate("ROMEO:", 12)) for _ in range(2))
    assert first == second
    once = list(model.generate_ids([5, 6, 7], 4))
    assert list(model.generate_ids([5, 6, 7], 4)) == once


def test_a_session_can_go_on_where_it_was(model: Runtime):
    list(model.generate_ids([5, 6, 7], 4))
    content = model.length
    list(model.generate_ids([5, 6, 7], 4, fresh=False))
    assert model.length > content


def test_the_reason_of_the_end_is_known(model: Runtime):
    text = "".join(model.generate("ROMEO:", 12))
    assert model.finish_reason == "length"
    word = text[5:8]
    cut = "".join(model.generate("ROMEO:", 12, stop=[word, "never said"]))
    assert model.finish_reason == "stop" and cut == text[: text.index(word)]
    long = "".join(model.generate("ROMEO:", 500))
    assert model.finish_reason == "context" and long and model.length == 64


def test_where_nobody_chooses_a_context_it_is_what_fits(tiny: Path):
    with Runtime(tiny, threads=1) as free:
        own, kv = free.context, free.stats["kv"]
    with Runtime(tiny, threads=1, context=64) as model:
        least = model.stats["floor"]
    assert own > 128
    with Runtime(tiny, threads=1, memory=least + kv // 2) as model:
        assert 64 <= model.context < own
        assert model.stats["total"] <= least + kv // 2
    with pytest.raises(UnderFloorError, match="budget"):
        Runtime(tiny, threads=1, memory=least + kv // 2, context=own)
    with pytest.raises(UnderFloorError):
        Runtime(tiny, threads=1, memory=least - 1)


def test_the_stop_tokens_of_c_are_those_of_the_model(tmp_path: Path):
    source = Path(shutil.copytree(TINY, tmp_path / "model"))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0, 300, -1]}))
    qdeploy.convert(source, tmp_path / "tiny.qd", to="native", check="none")
    with Runtime(tmp_path / "tiny.qd", threads=1, context=64) as model:
        known = model.meta["eos_token_id"]
        assert model._ends() == set(known) and {7, 0, 300} <= model._ends()


def test_an_encoder_says_so_where_logits_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path):
    with Runtime(tiny, threads=1, context=64) as model:
        monkeypatch.setattr(Runtime, "encoder", True)
        with pytest.raises(UnsupportedError, match="an encoder gives vectors"):
            model.decode([1])


def test_a_prompt_that_does_not_fit_is_an_error(model: Runtime):
    with pytest.raises(BadArgumentError):
        list(model.generate_ids([5] * 65, 4))


def test_a_full_context_keeps_the_text_on_the_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tiny), "-p", "ROMEO:", "-n", "500", "--context", "32", "--json"])
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] == "context" and result["text"]


def test_messages_are_put_into_words_by_the_models_template(model: Runtime):
    files = {"chat_template.jinja": TEMPLATE.encode(), "tokenizer_config.json": b'{"bos_token": {"content": "<s>"}}'}
    assert render(files, SAID, "m") == "<s>USER: hello\nBOT:"
    prompt = render({"chat_template.jinja": TEMPLATE.encode()}, SAID, "m", bos_token="")
    chat = list(model.generate(messages=SAID, tokens=6))
    assert chat and "USER: hello" in prompt
    with pytest.raises(BadArgumentError, match="not both"):
        list(model.generate("x", messages=SAID))


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", BadFileError),
        ("{{ messages.append(1) }}", BadFileError),
        ("{% for i in range(10**9) %}x{% endfor %}", BadFileError),
        ("{% if %}", BadFileError),
        ("{{ messages[7].content }}", BadFileError),
        ("{{ raise_exception('roles must alternate') }}", BadArgumentError),
    ],
)
def test_a_hostile_template_is_an_error(template: str, kind: type[Exception]):
    with pytest.raises(kind):
        render({"chat_template.jinja": template.encode()}, SAID, "m")


def test_a_model_without_a_template_says_so():
    with pytest.raises(UnsupportedError, match="no chat template"):
        render({}, SAID, "m")


def test_stop_texts_are_found_across_pieces_and_never_shown_in_part():
    stops = StopTexts(["</end>", "STOP"])
    shown = [stops.add(piece) for piece in ("a<", "/e", "x</", "end", ">b")]
    assert "".join(shown) == "a</ex" and stops.stopped
    other = StopTexts(["abc"])
    assert other.add("xxab") + other.add("ab") + other.end() == "xxabab"


@pytest.mark.parametrize("memory", [-5, -1, 1 << 63, 1 << 70])
def test_a_memory_that_cannot_be_is_refused_by_its_value(tiny: Path, memory: int):
    with pytest.raises(BadArgumentError) as caught:
        Runtime(tiny, memory=memory)
    assert caught.value.found == str(memory)


def test_an_encoder_without_a_pooling_gives_the_vectors_of_its_tokens(testdata: Path, tmp_path: Path):
    source = testdata / "architectures/arch-distilbert-a"
    qdeploy.convert(source, tmp_path / "bert.qd", to="native", check="none")
    with Runtime(tmp_path / "bert.qd", activations="exact") as model:
        assert model.outputs == ("last_hidden_state",)
        states = model.run([5, 6, 7])["last_hidden_state"]
        assert np.isfinite(states).all() and states.shape[0] == 3
        with pytest.raises(UnsupportedError, match="vector per token") as caught:
            model.embed(["x"])
        assert "hidden_states" in caught.value.todo


def test_bench_of_an_encoder_says_what_it_measures(testdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    qdeploy.convert(testdata / "architectures/arch-bert-a", tmp_path / "bert.qd", to="native", check="none")
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(tmp_path / "bert.qd"), "--prompt-tokens", "4", "-n", "4"])
    assert ended.value.code == 2 and "an encoder" in capsys.readouterr().err


def test_unrelated_models_are_described_when_they_cannot_be_compared(testdata: Path):
    with pytest.raises(BadArgumentError, match="share no tensor name") as caught:
        qdeploy.diff(TINY, testdata / "architectures/arch-bert-a")
    assert "llama" in caught.value.found and "bert" in caught.value.found


def test_a_template_has_what_transformers_gives_it():
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ '<' | tojson }}"
    )
    messages = [{"role": "user"}, {"role": "user"}]
    text = render({"chat_template.jinja": template.encode()}, messages, "here")
    assert text == '{\n  "role": "user"\n}4"<"'
