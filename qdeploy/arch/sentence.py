"""Sentence models: how sentence-transformers makes one vector of the tokens' vectors.

    modules.json            [{"idx", "name", "path", "type"}]: Transformer, Pooling; then Dense, LayerNorm, Normalize
    <path>/config.json      of Pooling: "pooling_mode_<kind>": true (older files) or "pooling_mode": "<kind>"; where
                            several are chosen, their vectors stand one behind the other
                            of Dense: in_features, out_features, bias, activation_function (a class of torch)
    <path>/model.safetensors   of Dense: linear.weight [out, in] and linear.bias; of LayerNorm: norm.weight, norm.bias

Prompts stand in config_sentence_transformers.json, which is carried as it is. Other modules are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors

from qdeploy.arch import pooling
from qdeploy.arch.builder import Builder
from qdeploy.arch.config import Config
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Float32
from qdeploy.store.folder import JSON_LIMIT, parse_json

_POOLS: Mapping[str, pooling.Pool] = {
    "cls_token": pooling.first_token,
    "max_tokens": pooling.greatest,
    "mean_tokens": pooling.mean,
    "mean_sqrt_len_tokens": pooling.root_mean,
    "lasttoken": pooling.last_token,
}
"""In the order in which several vectors stand behind each other."""
_SHORT = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len": "mean_sqrt_len_tokens"}
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_FLOATS = ("F32", "F16", "BF16")
_LARGEST = 1 << 28
"""Bytes of the weights of one module."""


def add_hidden_states(add: Builder, x: str, hidden: int) -> list[Value]:
    """Adds the output `last_hidden_state` [B, T, hidden], and `sentence_embedding` if the model is a sentence model.

    Args:
        add: The graph.
        x: The hidden states.
        hidden: Their width.

    Returns:
        The outputs of the graph.
    """
    add.node("Identity", x, name="last_hidden_state")
    outputs = [Value("last_hidden_state", "F32", ("batch", "sequence", hidden))]
    if width := _add_sentence_embedding(add, hidden):
        outputs.append(Value("sentence_embedding", "F32", ("batch", width)))
    return outputs


def _add_sentence_embedding(add: Builder, hidden: int) -> int:
    """The width of the embedding; 0 where the model is no sentence model."""
    modules = _json(add.model, "modules.json")
    if modules is None:
        return 0
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise BadFileError("modules.json is not a list of modules", where="modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:1] != ["Transformer"] or set(kinds[2:]) - set(_MODULES) or kinds[1:2] not in ([], ["Pooling"]):
        raise UnsupportedError(
            "unsupported modules of a sentence model",
            where="modules.json",
            found=", ".join(kinds),
            allowed=f"Transformer, Pooling, then {', '.join(_MODULES)}",
        )
    if len(kinds) == 1:
        return 0
    x, width = _pooled(add, str(modules[1].get("path", "")), hidden)
    for kind, module in zip(kinds[2:], modules[2:], strict=True):
        x, width = _MODULES[kind](add, x, width, str(module.get("path", "")))
    add.node("Identity", x, name="sentence_embedding")
    return width


# ---- modules


def _pooled(add: Builder, path: str, hidden: int) -> tuple[str, int]:
    kinds = _pooling(add.model, path, hidden)
    vectors = [_POOLS[kind](add, "last_hidden_state", f"pooled.{kind}" if kinds[1:] else "pooled") for kind in kinds]
    if len(vectors) == 1:
        return vectors[0], hidden
    return add.node("Concat", *vectors, name="pooled", axis=1), hidden * len(vectors)


def _pooling(model: Model, path: str, hidden: int) -> list[str]:
    name = f"{path}/config.json"
    config = _json(model, name)
    if not isinstance(config, dict):
        raise BadFileError("the configuration of the pooling is missing", where=name)
    chosen = [
        k.removeprefix("pooling_mode_") for k, on in config.items() if k.startswith("pooling_mode_") and on is True
    ]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    chosen = [_SHORT.get(kind, kind) for kind in chosen]
    if not chosen or set(chosen) - set(_POOLS):
        raise UnsupportedError(
            "an unsupported kind of pooling",
            where=f"{name}: pooling_mode",
            found=", ".join(chosen) or "none",
            allowed=", ".join(_POOLS),
        )
    size = config.get("word_embedding_dimension", hidden)
    if size != hidden:
        raise BadFileError(
            "the pooling contradicts config.json",
            where=f"{name}: word_embedding_dimension",
            found=size,
            allowed=f"{hidden} (hidden_size)",
        )
    return [kind for kind in _POOLS if kind in chosen]


def _normalized(add: Builder, x: str, width: int, path: str) -> tuple[str, int]:
    return add.node("LpNormalization", x, name=f"{x}.normalized", p=2, axis=-1), width


def _dense(add: Builder, x: str, width: int, path: str) -> tuple[str, int]:
    """X @ weight.T + bias, activated."""
    where = f"{path}/config.json"
    fields = _json(add.model, where)
    if not isinstance(fields, dict):
        raise BadFileError("the configuration of a module is missing", where=where)
    config = Config(fields, where)
    rows, columns = config.size("out_features"), config.size("in_features")
    if columns != width:
        raise BadFileError("a module contradicts the one before it", where=f"{where}: in_features", found=columns)
    act = config.choose("activation_function", _ACTIVATIONS, "torch.nn.modules.activation.Tanh")
    weights = _weights(add.model, path)
    name = f"dense.{path or 'sentence'}"
    shapes = {"linear.weight": (rows, columns)} | ({"linear.bias": (rows,)} if config.flag("bias", True) else {})
    weight, *bias = _constants(add, weights, shapes, name, path)
    transposed = add.node("Transpose", weight, name=f"{name}.transposed", perm=[1, 0])
    out = add.node("MatMul", x, transposed, name=name)
    if bias:
        out = add.node("Add", out, bias[0], name=f"{name}.biased")
    return (add.activation(act, out, f"{name}.act") if act else out), rows


def _layer_norm(add: Builder, x: str, width: int, path: str) -> tuple[str, int]:
    shapes = {"norm.weight": (width,), "norm.bias": (width,)}
    norm = _constants(add, _weights(add.model, path), shapes, f"norm.{path}", path)
    return add.node("LayerNormalization", x, *norm, name=f"norm.{path}", epsilon=1e-5), width


_MODULES: Mapping[str, Callable[[Builder, str, int, str], tuple[str, int]]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalized,
}


# ---- files


def _constants(
    add: Builder, weights: Mapping[str, Float32], shapes: Mapping[str, tuple[int, ...]], name: str, path: str
) -> list[str]:
    """The tensors of a module as constants of the graph; BadFileError where there are others."""
    if {key: array.shape for key, array in weights.items()} != dict(shapes):
        raise BadFileError(
            "the weights of a module contradict its configuration",
            where=f"{path}/model.safetensors",
            found={key: list(array.shape) for key, array in weights.items()},
            allowed=str({key: list(shape) for key, shape in shapes.items()}),
        )
    return [add.constant(f"{name}.{key}", weights[key]) for key in shapes]


def _weights(model: Model, path: str) -> dict[str, Float32]:
    where = f"{path}/model.safetensors"
    for file in model.files:
        if file.path == where and file.data.nbytes <= _LARGEST:
            try:
                tensors = dict(safetensors.deserialize(file.data.read().tobytes()))  # type: ignore[no-untyped-call]
            except safetensors.SafetensorError as error:
                raise BadFileError("not a safetensors file", where=where, found=str(error)) from error
            return {name: _floats(tensor, f"{where}: {name}") for name, tensor in tensors.items()}
    raise BadFileError("the weights of a module are missing", where=where, todo="Fetch the whole repository.")


def _floats(tensor: Mapping[str, Any], where: str) -> Float32:
    if tensor["dtype"] not in _FLOATS:
        raise UnsupportedError("weights of a module of this type", where=where, found=tensor["dtype"])
    stored = np.frombuffer(tensor["data"], element_dtype(tensor["dtype"]))
    return stored.astype(np.float32).reshape(tensor["shape"])


def _json(model: Model, path: str) -> Any:
    for file in model.files:
        if file.path == path and file.role in ("side", "derived"):
            if file.data.nbytes > JSON_LIMIT:
                raise BadFileError("a JSON file is too large", where=path, found=file.data.nbytes)
            return parse_json(file.data.read().tobytes(), path)
    return None
