"""Renders chat templates in a process of their own, in which nothing can be lost: `python chat_child.py`.

A template is a program that comes with a checkpoint. jinja2's sandbox keeps it from reaching anything; that it neither
runs on nor fills the memory is kept by limits of this process, which end it. Requests come line by line as JSON:

    {"template": text, "values": {name: value}}  ->  {"text": ...}, {"refused": ...} or {"failed": ...}

Nothing of the project is imported, so that the process is small and begins at once.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY = 5.0, 1 << 30
"""CPU of one rendering, and bytes of address space of the process."""


class RefusedError(Exception):
    """What a template says by raise_exception."""


def answer(request: dict[str, Any]) -> dict[str, str]:
    """What becomes of a request."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    try:
        return {"text": environment.from_string(request["template"]).render(**request["values"])}
    except RefusedError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"failed": f"it takes more than {MEMORY >> 20} MB"}
    except Exception as error:  # whatever a template does wrong
        return {"failed": f"{error}" or type(error).__name__}


def refuse(text: object) -> None:
    """`raise_exception` of templates."""
    raise RefusedError(str(text))


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter as transformers has it: without the escapes of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form: str) -> str:
    """The time of now, as templates ask for it."""
    return datetime.now().strftime(form)


def main() -> None:
    """Answers until there are no more requests. The system ends the process where a rendering takes too long."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks is interrupted, too, and closes the pipe
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        text = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
