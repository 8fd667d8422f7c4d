"""Checkpoints of training code: the state_dict of a network, with a side file for what it does not say.

    NAME.safetensors                the tensors, possibly with metadata (strings)
    NAME.pth.tar, NAME.pth, NAME.pt   torch.save of a dict with "state_dict" (and epoch, optimizer, ...), or of the
                                    state_dict itself; keys begin with "module." when it was trained in parallel
    a side file                     JSON beside them, of the reader's own name (apot.json, lsq.json)

A folder holds one file of weights. Stored tensors are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.formats.huggingface.checkpoint import Checkpoint, assemble
from qdeploy.formats.stored import of_torch
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import Folder
from qdeploy.store.pickled import PickledTensor, read_torch

PICKLED = (".pth.tar", ".pth", ".pt")
SUFFIXES = (".safetensors", *PICKLED)


@dataclass(frozen=True)
class State:
    """What a checkpoint of training code holds.

    Attributes:
        model: Its tensors by their names, without a graph.
        file: The file of weights.
        metadata: Strings and numbers that stand beside the tensors.
    """

    model: Model
    file: str
    metadata: Mapping[str, Any]


def weights_file(folder: Folder) -> str:
    """The one file of weights; empty where there is none, or several."""
    names = [n for n in folder.names() if n.endswith(SUFFIXES) and "/" not in n]
    return names[0] if len(names) == 1 else ""


def holds(folder: Folder, suffix: str) -> Mapping[str, Any] | None:
    """Looks into a file of weights, for the sniffing of its format.

    Args:
        folder: A folder with one file of weights, or that file.
        suffix: Of the names of tensors that only this format has.

    Returns:
        The metadata, where there is such a tensor or any metadata; None for anything else, damaged files included.
    """
    name = weights_file(folder)
    if not name or (not folder.only and folder.has("config.json")):
        return None
    try:
        names, metadata = _head(folder, name)
    except QdeployError:
        return None
    shown = any(key.endswith(suffix) for key in names)
    return {"shown": shown, **metadata} if shown or metadata else None


def _head(folder: Folder, name: str) -> tuple[list[str], Mapping[str, Any]]:
    if name.endswith(".safetensors"):
        checkpoint = Checkpoint(folder)
        return list(checkpoint.entries), checkpoint.shards[name].metadata
    return list(_state_dict(read_torch(folder, name), name)), {}


def read_state(folder: Folder, format: str, side: str) -> State:
    """Opens a checkpoint; no tensor is read yet.

    Args:
        folder: A folder with one file of weights, or that file.
        format: The reader's name.
        side: The name of its side file.

    Raises:
        BadFileError: There is no file of weights, or several; or it is damaged, or holds something else.
    """
    name = weights_file(folder)
    if not name:
        raise BadFileError(
            "not one file of weights",
            where=str(folder.path),
            found=", ".join(n for n in folder.names() if n.endswith(SUFFIXES)) or "none",
            allowed=f"one of {', '.join(SUFFIXES)}, and {side}",
        )
    if name.endswith(".safetensors"):
        checkpoint = Checkpoint(folder)
        return State(assemble(checkpoint, format, ()), name, checkpoint.shards[name].metadata)
    return _read_torch(folder, format, name)


def _read_torch(folder: Folder, format: str, name: str) -> State:
    whole, rows = read_torch(folder, name), folder.rows(name)
    parts = [of_torch(name, key, tensor, rows) for key, tensor in _state_dict(whole, name).items()]
    others = [] if folder.only else [n for n in folder.names() if n != name]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in others)
    tensors = {part.name: part.tensor(format) for part in parts}
    metadata = {key: value for key, value in whole.items() if isinstance(value, str | int | float)}
    path = str(folder.path / folder.only)
    return State(Model(format, path, tensors, {}, format, files, tuple(part.origin for part in parts)), name, metadata)


def _state_dict(whole: Any, where: str) -> dict[str, PickledTensor]:
    state = whole.get("state_dict", whole) if isinstance(whole, dict) else None
    if not isinstance(state, dict) or not state:
        raise BadFileError(
            "not a checkpoint of a network",
            where=where,
            found=type(state).__name__,
            allowed='a dict of tensors, or one with "state_dict"',
        )
    wrong = [key for key, tensor in state.items() if not isinstance(key, str) or not isinstance(tensor, PickledTensor)]
    if wrong:
        raise BadFileError("not a tensor", where=f"{where}: {wrong[0]}", found=type(state[wrong[0]]).__name__)
    return state


def read_side(folder: Folder, name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Reads a side file; empty where there is none.

    Raises:
        BadFileError: It is not an object, or holds an unknown key.
    """
    if not folder.has(name):
        return {}
    tree = folder.json(name)
    if not isinstance(tree, dict):
        raise BadFileError(
            "the side file is not an object", where=name, found=type(tree).__name__, allowed=", ".join(allowed)
        )
    unknown = sorted(set(tree) - set(allowed))
    if unknown:
        raise UnsupportedError(
            "the side file holds an unknown key",
            where=name,
            found=", ".join(unknown),
            allowed=", ".join(allowed),
        )
    return tree
