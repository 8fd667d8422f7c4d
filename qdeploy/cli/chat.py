"""`qdeploy chat MODEL.qd`: a conversation in the terminal, inside a memory budget that can be moved."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from qdeploy.errors import BadArgumentError, QdeployError
from qdeploy.extras import require
from qdeploy.sizes import human

if TYPE_CHECKING:
    from qdeploy.native import Engine

_HELP = """/memory SIZE   moves the budget (2GB); without a size, shows what is held
/reset         forgets the conversation
/quit          ends the program, as Ctrl-D does; Ctrl-C stops an answer"""


@click.command()
@click.argument("model", type=click.Path())
@click.option("--system", default="", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("-m", "--memory", metavar="SIZE", help="All that may be held for the model: 3GB. Default: everything.")
@click.option("-n", "--tokens", type=click.IntRange(1), default=1024, show_default=True, help="Of an answer at most.")
@click.option("-t", "--temperature", type=click.FloatRange(0), default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="1: off.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="0: off.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option("--kv", type=click.Choice(["f16", "int8", "f32"]), default="f16", show_default=True, help="Of the cache.")
def command(model: str, system: str, memory: str | None, tokens: int, threads: int, kv: Any, **sampling: Any) -> None:
    """Talk with MODEL, a file that `qdeploy convert --to native` wrote.

    \b
    Examples:
      qdeploy chat model.qd --memory 2GB
      > Hello
      > /memory 1GB
    """
    require("jinja2", "tokenizers", purpose="a conversation")
    from qdeploy.native import Engine, Runtime

    with Runtime(model, memory=memory, threads=threads, kv=kv, session=False) as runtime, Engine(runtime) as engine:
        _ = runtime.tokenizer  # what is missing is said before the conversation
        talk = Talk(engine, system, tokens, sampling)
        talk.ids()
        if sys.stdin.isatty():  # lines can be edited, and come back by the arrow keys
            import readline  # noqa: F401

            click.echo(f"{human(runtime.stats['total'])} held; /help shows what else there is", err=True)
        while (line := _line()) is not None and line != "/quit":
            _obey(talk, line)


def _line() -> str | None:
    """What a person wrote; None at the end of the input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo("\n/quit or Ctrl-D ends the program", err=True)
            continue
        if line:
            return line


def _obey(talk: Talk, line: str) -> None:
    """Carries out a command, or answers; an error is shown, and the conversation goes on."""
    name, _, argument = line.partition(" ")
    commands: dict[str, Callable[[str], None]] = {"/memory": talk.move, "/reset": talk.reset, "/help": _help}
    try:
        if name in commands:
            commands[name](argument.strip())
        elif name.startswith("/"):
            raise BadArgumentError("no such command", found=name, allowed=", ".join((*commands, "/quit")))
        else:
            _say(talk, line)
    except QdeployError as error:
        click.echo("\n".join(error.lines()), err=True)


def _help(argument: str) -> None:
    click.echo(_HELP, err=True)


def _say(talk: Talk, line: str) -> None:
    """Writes the answer as it comes; an interruption keeps what has come."""
    try:
        for piece in talk.answer(line):
            click.echo(piece, nl=False)
        click.echo()
        if talk.reason == "context":
            click.echo("the context is full: /reset begins anew", err=True)
    except KeyboardInterrupt:
        click.echo("\nstopped", err=True)


@dataclass
class Talk:
    """A conversation with a model.

    Args:
        engine: Of the model.
        system: What it is told first.
        tokens: Of an answer at most.
        sampling: As for `Sequence.sample`.
    """

    engine: Engine
    system: str
    tokens: int
    sampling: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    reason: str = ""

    def __post_init__(self) -> None:
        self.reset()

    def reset(self, argument: str = "") -> None:
        """Forgets what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def move(self, argument: str) -> None:
        """Moves the budget to a size, or shows what is held."""
        model = self.engine.model
        if argument:
            model.memory = argument
            model.wait()
        stats = model.stats
        click.echo(
            f"{human(stats['total'])} held, of which weights {human(stats['weights'])}, keys and values "
            f"{human(stats['kv'])}; rung {stats['rung']} of {stats['rungs']}",
            err=True,
        )

    def ids(self) -> list[int]:
        """The conversation as tokens; UnsupportedError where the model has no chat template."""
        from qdeploy.chat import rendered

        model = self.engine.model
        messages = self.messages or [{"role": "user", "content": ""}]
        text = rendered(model.metadata, messages, model.path)
        ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def answer(self, line: str) -> Iterator[str]:
        """The model's answer, piece by piece; what came of it stays in the conversation even where it is stopped."""
        self.messages.append({"role": "user", "content": line})
        text = ""
        try:
            for piece in self._pieces(self.ids()):
                text += piece
                yield piece
        finally:
            if text:
                self.messages.append({"role": "assistant", "content": text})
            else:
                self.messages.pop()

    def _pieces(self, ids: list[int]) -> Iterator[str]:
        from qdeploy.streaming import TextStream

        model = self.engine.model
        context = int(model.meta.get("context") or 4096)
        room = min(context, len(ids) + self.tokens)
        if len(ids) >= context:
            self.reason = "context"
            return
        ends = model.meta.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [ends]
        stream, sequence = TextStream(model.tokenizer, ids), self.engine.open(ids, room)
        try:
            self.reason = "context" if room == context else "length"
            for _ in range(room - len(ids)):
                while not self.engine.step():
                    pass  # a part of the prompt was taken
                token = sequence.sample(**self.sampling)
                if token in ends:
                    self.reason = "stop"
                    break
                yield stream.add(token)
                sequence.push([token])
            yield stream.end()
        finally:
            sequence.close()
