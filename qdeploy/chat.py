"""A conversation as the text that a model was trained on: its chat template, rendered in a sandbox.

Templates are Jinja programs that come with a checkpoint (`tokenizer_config.json`, `chat_template.jinja`). They run in
jinja2's immutable sandbox, which lets them read what they are given and nothing else, and in a process whose time and
memory are bounded (`chat_child.py`); what they raise is an error here.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qdeploy.arch.generation import chat_templates
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.extras import require
from qdeploy.store.folder import parse_json

Messages = Sequence[Mapping[str, Any]]
FILES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
_LIMIT = 1 << 20
_SECONDS = 5
"""Of CPU, which the rendering process has (`chat_child.py`)."""


def rendered(metadata: Callable[[str], bytes | None], messages: Messages, where: str, prompt: str = "") -> str:
    """As `render`, with the files that a model carries; BadArgumentError where there is a prompt as well."""
    if prompt:
        raise BadArgumentError("a prompt or messages, not both", found=prompt)
    return render({name: data for name in FILES if (data := metadata(name)) is not None}, messages, where)


def render(files: Mapping[str, bytes], messages: Messages, where: str, **more: Any) -> str:
    """The text of a conversation, up to where the model is to speak.

    Args:
        files: Contents of FILES, as far as the model has them.
        messages: {"role": "user", "content": "..."} and so on.
        where: The model, for errors.
        more: Further variables of the template (tools, enable_thinking, ...).

    Raises:
        UnsupportedError: There is no template, or jinja2 is not installed.
        BadFileError: The template is damaged, or fails on these messages.
        BadArgumentError: Messages are no list of objects with a role.
    """
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise BadArgumentError(
            "messages are a list of objects", found=messages, allowed='{"role": ..., "content": ...}'
        )
    templates = chat_templates(files)
    template = templates.get("default") or next(iter(templates.values()), "")
    if not template:
        raise UnsupportedError("the model has no chat template", where=where, todo="Give the prompt as text.")
    if len(template) > _LIMIT:
        raise BadFileError("a chat template is too large", where=where, found=len(template), allowed=str(_LIMIT))
    require("jinja2", purpose="a chat template")
    values = {**_special(files), "add_generation_prompt": True, **more, "messages": [dict(m) for m in messages]}
    try:
        request = json.dumps({"template": template, "values": values})
    except (TypeError, ValueError, RecursionError) as error:
        raise BadArgumentError("messages are no JSON values", found=error) from error
    reply = _RENDERER.ask(request)
    if "refused" in reply:
        raise BadArgumentError("the chat template refuses these messages", found=reply["refused"])
    if "text" not in reply:
        raise BadFileError("the chat template does not take these messages", where=where, found=reply["failed"])
    return reply["text"]


class _Renderer:
    """The process that renders (`chat_child.py`); begun at the first template, and anew where one was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock, self._owner = threading.Lock(), 0

    def ask(self, request: str) -> dict[str, str]:
        """What the process answers, or that it was ended over this request."""
        with self._lock:
            process = self._running()
            try:
                process.stdin.write(request + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                line = process.stdout.readline()  # type: ignore[union-attr]
            except OSError:
                line = ""
            except BaseException:  # an interruption: what is still answered belongs to nobody
                self.close()
                raise
            if not line.endswith("\n"):
                self.close()
                return {"failed": f"it takes more than {_SECONDS} s of CPU, or more memory than there is"}
            reply: dict[str, str] = json.loads(line)
            return reply

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():
            child = os.path.join(os.path.dirname(__file__), "chat_child.py")
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [sys.executable, "-P", child], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


_RENDERER = _Renderer()
atexit.register(_RENDERER.close)


def _special(files: Mapping[str, bytes]) -> dict[str, str]:
    """bos_token, eos_token and so on, as tokenizer_config.json has them."""
    name = "tokenizer_config.json"
    loaded = parse_json(files[name], name, strict=False) if name in files else {}
    tokens = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens
