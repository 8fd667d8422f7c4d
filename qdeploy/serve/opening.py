"""A model file opened as it is served: a decoder without a session of its own, which an engine needs none of."""

from __future__ import annotations

import os
from typing import Any

from qdeploy.errors import UnsupportedError
from qdeploy.extras import require
from qdeploy.native import Runtime


def open_model(path: str | os.PathLike[str], *, memory: int | str | None = None, **options: Any) -> Runtime:
    """The runtime of a model file.

    Args:
        path: What `qdeploy convert --to native` wrote.
        memory: All that may be held for the model, the keys and values of requests included.
        options: As for `Runtime`.
    """
    require("starlette", "uvicorn", "prometheus_client", "tokenizers", purpose="qdeploy serve")
    model = Runtime(path, memory=memory, session=False, **options)
    if model.encoder:
        model.close()
        model = Runtime(path, memory=memory, **options)
    try:
        _ = model.tokenizer
    except UnsupportedError:
        model.close()
        raise
    return model
