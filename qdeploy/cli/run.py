"""`qdeploy run MODEL.qd --prompt TEXT`: text from the native runtime, in a budget that may move while it is written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from qdeploy.errors import BadArgumentError, QdeployError
from qdeploy.extras import require
from qdeploy.sizes import human, parse_size

if TYPE_CHECKING:
    from qdeploy.native import Runtime


_ENDED = {
    "": "an error",
    "stop": "a stop token or text",
    "length": "the number of tokens asked for (-n)",
    "context": "a full context (--context)",
}


def parse_trace(text: str) -> list[tuple[float, int]]:
    """Parses "0s:400MB,2s:250MB" into (seconds, bytes), in order of time; BadArgumentError for anything else."""
    steps = []
    for part in filter(None, text.split(",")):
        when, _, size = part.partition(":")
        try:
            seconds = float(when.strip().removesuffix("s"))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise BadArgumentError("not a memory trace", found=part, allowed="SECONDS:SIZE,... as in 0s:400MB,2s:250MB")
        steps.append((seconds, parse_size(size)))
    return sorted(steps)


@contextmanager
def moving(model: Runtime, trace: list[tuple[float, int]]) -> Iterator[list[str]]:
    """Moves the model's budget along a trace in a thread of its own; gives what was refused on the way."""
    stop, refused = threading.Event(), list[str]()

    def follow() -> None:
        start = time.monotonic()
        for seconds, size in trace:
            if stop.wait(max(0.0, start + seconds - time.monotonic())):
                return
            try:
                model.memory = size
            except BadArgumentError as error:
                refused.append(f"{seconds:g}s: {error.what} {error.todo}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield refused
    finally:
        stop.set()
        thread.join()


@click.command("run", short_help="Write text with a native model inside a memory budget.")
@click.argument("model", type=click.Path())
@click.option("-p", "--prompt", required=True, help="What the text begins with; for encoders, the text to embed.")
@click.option("--chat", is_flag=True, help="The prompt is what a user says, put into words by the chat template.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End the text before this one; may be repeated.")
@click.option("-n", "--tokens", type=click.IntRange(1), default=128, show_default=True, help="How many at most.")
@click.option("-m", "--memory", metavar="SIZE", help="All that may be held for the model: 350MB. Default: everything.")
@click.option("--memory-trace", metavar="TRACE", default="", help="Move the budget: 0s:400MB,2s:250MB,4s:500MB.")
@click.option("--follow-pressure", is_flag=True, help="Let Linux move it: cgroup limits and memory stalls.")
@click.option("-t", "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="0: off.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, help="1: off.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, help="0: off.")
@click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), default=1.0, help="1: off.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option(
    "--context",
    type=click.IntRange(0),
    default=0,
    help="Tokens that the cache holds; 0: what fits, at most the model's own and 4096.",
)
@click.option("--isa", metavar="NAME", help="Force the kernels of an instruction set.")
@click.option("--activations", type=click.Choice(["int8", "exact"]), default="int8", show_default=True)
@click.option("--kv", type=click.Choice(["f16", "int8", "f32"]), default="f16", show_default=True, help="Of the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print text and figures as JSON at the end.")
def command(
    model: str,
    prompt: str,
    tokens: int,
    memory: str | None,
    memory_trace: str,
    follow_pressure: bool,
    threads: int,
    context: int,
    isa: str | None,
    activations: Any,
    kv: Any,
    as_json: bool,
    chat: bool,
    stops: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Continue a text with MODEL, a file that `qdeploy convert --to native` wrote.

    \b
    Examples:
      qdeploy run model.qd -p "Once upon a time" --memory 350MB
      qdeploy run model.qd -p "Once upon a time" --memory-trace 0s:400MB,2s:250MB,4s:500MB
    """
    if chat:
        require("jinja2", "tokenizers", purpose="a conversation")
    from qdeploy.native import Runtime

    trace = parse_trace(memory_trace)
    with Runtime(
        model, memory=memory, threads=threads, context=context, isa=isa, activations=activations, kv=kv
    ) as runtime:
        runtime.follow_pressure(follow_pressure)
        if runtime.encoder:
            sentence = "sentence_embedding" in runtime.outputs
            vectors = runtime.embed([prompt])[0] if sentence else runtime.hidden_states(prompt)
            click.echo(json.dumps(vectors.tolist()))
            return
        if chat:
            sampling["messages"] = [{"role": "user", "content": prompt}]
        _write(runtime, "" if chat else prompt, tokens, trace, {**sampling, "stop": stops}, as_json)


def _write(
    runtime: Runtime, prompt: str, tokens: int, trace: list[tuple[float, int]], sampling: dict[str, Any], as_json: bool
) -> None:
    start, pieces = time.monotonic(), []
    rungs = []
    with moving(runtime, trace) as refused:
        _ = runtime.tokenizer  # what is missing is said before anything is written
        if not as_json:
            click.echo(prompt, nl=False)
        try:
            for piece in runtime.generate(prompt, tokens, **sampling):
                pieces.append(piece)
                rungs.append(runtime.stats["rung"])
                if not as_json:
                    click.echo(piece, nl=False)
        except QdeployError:
            click.echo()  # what went wrong begins on a line of its own
            raise
    seconds, stats = time.monotonic() - start, runtime.stats
    if as_json:
        report = {"text": "".join(pieces), "seconds": seconds, "rungs": rungs, "refused": refused, **stats}
        report |= {"finish_reason": runtime.finish_reason, "context": runtime.context}
        click.echo(json.dumps(report))
        return
    click.echo()
    for line in refused:
        click.echo(line, err=True)
    click.echo(
        f"{len(pieces)} pieces in {seconds:.2f} s; {human(stats['total'])} now, {human(stats['peak'])} at most; "
        f"rung {stats['rung']} of {stats['rungs']}; "
        f"context {runtime.context}; {runtime.isa}; ended by {_ENDED[runtime.finish_reason]}",
        err=True,
    )
