"""`qdeploy bench MODEL.qd`: tokens per second, memory, and how near decoding comes to the speed memory is read at.

`qdeploy bench MODEL --layers`: how long each layer of a float network takes in integers, for `allocate --latency`.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table
from qdeploy.cli.values import axis_sizes
from qdeploy.errors import UnsupportedError
from qdeploy.sizes import human

if TYPE_CHECKING:
    from qdeploy.native import Runtime


@click.command("bench", short_help="Measure a native model, or single layers.")
@click.argument("model", type=click.Path())
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("-n", "--tokens", type=click.IntRange(1), default=32, show_default=True, help="Decoded per run.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("-m", "--memory", metavar="SIZE", help="Budget. Default: everything is loaded.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option("--isa", metavar="NAME", help="Force the kernels of an instruction set.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--layers", is_flag=True, help="Measure the layers of a float network, compiled by TVM; the options below."
)
@click.option("--choices", metavar="LIST", help="Bits: 8,4 (the default), or weights x inputs: 8x8,4x8,4x4.")
@click.option("--target", metavar="NAME", help="The processor, as for convert --to tvm; one that this machine is.")
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=EXTENT",
    callback=axis_sizes,
    help="The extent of a free axis, such as sequence=64 (128 if not given; a batch is 1).",
)
@click.option("--out", metavar="FILE", help="Write the table, for allocate --latency.")
@click.option("--force", is_flag=True, help="Replace FILE.")
def command(
    model: str,
    prompt_tokens: int,
    tokens: int,
    runs: int,
    memory: str | None,
    threads: int,
    isa: str | None,
    as_json: bool,
    layers: bool,
    force: bool,
    **more: Any,
) -> None:
    """Measure MODEL, a decoder that `qdeploy convert --to native` wrote: medians over the runs.

    With --layers, MODEL is a float network: each of its convolutions and linear layers is compiled alone in integers by
    TVM at each choice of bits, layers of one shape once, and all are timed in turns; the least time counts.

    \b
    Examples:
      qdeploy bench model.qd --threads 1
      qdeploy bench model.qd --memory 300MB --json
      qdeploy bench resnet.onnx --layers --threads 1 --choices 8,4 --out table.json
    """
    options = {name: value for name, value in more.items() if value}
    if layers:
        _layers(model, as_json, threads=threads, force=force, **options)
        return
    if options or force:
        raise click.UsageError(
            f"--{'/--'.join([*options, *(['force'] if force else [])])} measures layers: pass --layers."
        )
    from qdeploy.native import Runtime

    with Runtime(model, memory=memory, threads=threads, isa=isa, context=prompt_tokens + tokens) as runtime:
        if runtime.encoder:
            raise UnsupportedError(
                "bench measures how fast a decoder writes text, and this model is an encoder",
                where=model,
                todo="Time Runtime.embed in Python, or measure a decoder.",
            )
        speeds = _measure(runtime, prompt_tokens, tokens, runs)
    if as_json:
        click.echo(json.dumps(speeds))
        return
    rows = [
        ["prefill", f"{speeds['prefill']:.1f} tokens/s"],
        ["decode", f"{speeds['decode']:.1f} tokens/s"],
        ["weights read", f"{speeds['read_gb_s']:.2f} GB/s, {speeds['of_bound']:.0%} of what one thread of numpy reads"],
        ["memory", f"{human(speeds['total'])}, rung {speeds['rung']} of {speeds['rungs']}, {speeds['isa']}"],
    ]
    console().print(table(["", speeds["path"]], rows))


def _layers(path: str, as_json: bool, **how: Any) -> None:
    from qdeploy.latency import latency_table

    with Bar(hidden=as_json) as bar:
        timings = latency_table(path, progress=bar, **how)
    if as_json:
        click.echo(json.dumps(timings))
        return
    choices = list(next(iter(timings["layers"].values())))
    rows = [[key, *(f"{1e6 * row[c]:.1f}" for c in choices)] for key, row in timings["layers"].items()]
    heads = ["layer", *(f"{c}, us" for c in choices)]
    console().print(table(heads, rows, right=tuple(range(1, len(heads)))))
    machine = timings["machine"]
    click.echo(f"{timings['target']}, threads: {timings['threads']}; {machine['cpu']}, {machine['cores']} cores")
    if how.get("out"):
        click.echo(f"{how['out']}: for qdeploy allocate --latency")


def _measure(runtime: Runtime, prompt: int, tokens: int, runs: int) -> dict[str, Any]:
    ids = [1 + i % max(1, runtime.vocab - 1) for i in range(prompt)]
    prefill, decode = [], []
    for _ in range(runs):
        runtime.reset()
        prefill.append(prompt / _seconds(lambda: runtime.decode(ids)))
        decode.append(tokens / _seconds(lambda: [runtime.decode(ids[:1]) for _ in range(tokens)]))
    stats, speed = runtime.stats, statistics.median(decode)
    read = stats["weights"] * speed / 1e9
    return {
        "path": runtime.path,
        "prefill": statistics.median(prefill),
        "decode": speed,
        "read_gb_s": read,
        "of_bound": read / _read_speed(),
        "isa": runtime.isa,
        **stats,
    }


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _read_speed(size: int = 1 << 28) -> float:
    """GB/s at which one thread sums memory that no cache holds."""
    import numpy as np

    data = np.ones(size // 8, np.int64)
    return max(size / _seconds(data.max) / 1e9 for _ in range(5))
