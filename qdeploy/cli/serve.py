"""`qdeploy serve MODEL.qd --memory 3GB`: the OpenAI API and a page, inside a memory budget."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdeploy.errors import BadArgumentError
from qdeploy.extras import require
from qdeploy.sizes import human

if TYPE_CHECKING:
    import socket

    from qdeploy.serve.limits import Limits
    from qdeploy.serve.service import Service

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_KEYS, _ADMIN = "QDEPLOY_API_KEYS", "QDEPLOY_ADMIN_TOKEN"


@click.command()
@click.argument("model", type=click.Path())
@click.option("-m", "--memory", metavar="SIZE", help="All that may be held for the model and its requests: 3GB.")
@click.option("--follow-pressure", is_flag=True, help="Let Linux move it: cgroup limits and memory stalls.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--name", default="", metavar="NAME", help="By which clients call the model. Default: the file's.")
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False), help="Keys of clients, one a line.")
@click.option("--sequences", type=click.IntRange(1, 64), default=16, show_default=True, help="Answers at once.")
@click.option("--requests", type=click.IntRange(1), default=64, show_default=True, help="Running and waiting at once.")
@click.option("--context", type=click.IntRange(0), default=0, help="Tokens of a request; 0: the model's own.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option("--activations", type=click.Choice(["int8", "exact"]), default="int8", show_default=True)
@click.option("--kv", type=click.Choice(["f16", "int8", "f32"]), default="f16", show_default=True, help="Of the cache.")
def command(
    model: str,
    memory: str | None,
    follow_pressure: bool,
    host: str,
    port: int,
    name: str,
    api_key_file: str | None,
    sequences: int,
    requests: int,
    context: int,
    deadline: float,
    **options: Any,
) -> None:
    """Serve MODEL, a file that `qdeploy convert --to native` wrote.

    Keys of clients come from --api-key-file or from the environment variable QDEPLOY_API_KEYS (commas between them);
    the token that moves the memory from QDEPLOY_ADMIN_TOKEN, else it is drawn anew and printed.

    \b
    Examples:
      qdeploy serve model.qd --memory 3GB
      curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello"}]}'
    """
    require("starlette", "uvicorn", "prometheus_client", "tokenizers", purpose="qdeploy serve")
    from qdeploy.serve.limits import Limits
    from qdeploy.serve.listening import bind
    from qdeploy.serve.opening import open_model
    from qdeploy.serve.service import Service

    keys = _keys(api_key_file)
    if host not in ("127.0.0.1", "::1", "localhost") and not keys:
        click.echo(f"warning: everybody who reaches {host} may use this server: no API key is set", err=True)
    limits = Limits(sequences=sequences, requests=requests, seconds=deadline)
    with bind(host, port) as opened, open_model(model, memory=memory, **options) as runtime:
        runtime.follow_pressure(follow_pressure)
        _serve(Service(runtime, name, limits, context), opened, host, keys, limits)


def _serve(service: Service, opened: socket.socket, host: str, keys: list[str], limits: Limits) -> None:
    """Serves until it is interrupted."""
    import asyncio

    from qdeploy.serve.application import application
    from qdeploy.serve.listening import server

    admin = os.environ.get(_ADMIN) or secrets.token_urlsafe(24)
    local = host in ("127.0.0.1", "::1", "localhost")
    app = application(service, keys=keys, admin=admin, hosts=_LOCAL if local else ())
    shown = "127.0.0.1" if local or host == "0.0.0.0" else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{opened.getsockname()[1]}"
    computed = service.computed()
    click.echo(f"{service.name}: {computed['bits']:.2f} bits per weight, {human(computed['memory'])}", err=True)
    click.echo(f"page  {address}/#admin={admin}" if _ADMIN not in os.environ else f"page  {address}/", err=True)
    click.echo(f"API   {address}/v1", err=True)
    asyncio.run(server(app, limits).serve([opened]))


def _keys(file: str | None) -> list[str]:
    """Keys of clients; BadArgumentError for a file that has none."""
    listed = os.environ.get(_KEYS, "").split(",")
    if file is not None:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        if not any(line.strip() for line in lines):
            raise BadArgumentError("the file of API keys has none", where=file)
        listed += lines
    return [key.strip() for key in listed if key.strip()]
