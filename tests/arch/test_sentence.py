"""Sentence models: each module against its arithmetic, written out behind the hidden states."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from qdeploy.errors import BadFileError
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer

HIDDEN = 32
IDS = np.array([[5, 9, 2, 31, 7], [1, 3, 8, 2, 2]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LEFT = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
Array = npt.NDArray[Any]


def described(modules: dict[str, dict[str, Any] | None]) -> dict[str, str]:
    """The JSON files of modules: `<place>_<kind>` -> config.json."""
    rows = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    rows += [{"path": path, "type": f"sentence_transformers.models.{path.split('_')[1]}"} for path in modules]
    configs = {f"{path}/config.json": json.dumps(fields) for path, fields in modules.items() if fields is not None}
    return {"modules.json": json.dumps(rows), **configs}


def pooling(*kinds: str) -> dict[str, Any]:
    return {"word_embedding_dimension": HIDDEN, **{f"pooling_mode_{kind}": True for kind in kinds}}


def with_weights(model: Model, path: str, **arrays: Array) -> Model:
    data = np.frombuffer(safetensors.numpy.save({name.replace("_", "."): a for name, a in arrays.items()}), np.uint8)
    file = SourceFile(f"{path}/model.safetensors", Buffer.of(path, data, "U8"))
    model.files = (*model.files, file)
    return model


def run(model: Model, mask: Array = MASK) -> tuple[Array, Array]:
    outputs = model.run(input_ids=IDS, attention_mask=mask)
    return outputs["last_hidden_state"], outputs["sentence_embedding"]


def expected(kind: str, hidden: Array, mask: Array) -> Array:
    kept = [row[keep == 1] for row, keep in zip(hidden, mask, strict=True)]
    if kind == "cls_token":
        return hidden[:, 0]
    rules = {
        "max_tokens": lambda x: x.max(axis=0),
        "mean_tokens": lambda x: x.mean(axis=0),
        "mean_sqrt_len_tokens": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
        "lasttoken": lambda x: x[-1],
    }
    return np.stack([rules[kind](row) for row in kept])


@pytest.mark.parametrize("mask", [MASK, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "lasttoken"])
def test_a_pooling_takes_of_the_tokens_that_are_no_padding(make_model: Any, kind: str, mask: Array):
    hidden, vector = run(make_model("bert", files=described({"1_Pooling": pooling(kind)})), mask)
    np.testing.assert_allclose(vector, expected(kind, hidden, mask), rtol=1e-5, atol=1e-6)


def test_vectors_of_several_poolings_stand_one_behind_the_other(make_model: Any):
    kinds = ("cls_token", "max_tokens", "mean_tokens")
    hidden, vector = run(make_model("bert", files=described({"1_Pooling": pooling(*reversed(kinds))})))
    together = np.concatenate([expected(kind, hidden, MASK) for kind in kinds], axis=1)
    np.testing.assert_allclose(vector, together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dense_layers_project_and_activate(make_model: Any, dtype: Any):
    random = np.random.default_rng(3)
    first, bias, second = (random.normal(size=shape).astype(dtype) for shape in ((20, HIDDEN), (20,), (8, 20)))
    files = described(
        {
            "1_Pooling": pooling("mean_tokens"),
            "2_Dense": {"in_features": HIDDEN, "out_features": 20},
            "3_Dense": {
                "in_features": 20,
                "out_features": 8,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
            "4_Normalize": None,
        }
    )
    model = with_weights(make_model("bert", files=files), "2_Dense", linear_weight=first, linear_bias=bias)
    hidden, vector = run(with_weights(model, "3_Dense", linear_weight=second))
    widened = [array.astype(np.float64) for array in (first, bias, second)]
    x = np.tanh(expected("mean_tokens", hidden, MASK) @ widened[0].T + widened[1]) @ widened[2].T
    np.testing.assert_allclose(vector, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arrays", [{}, {"linear_weight": (3, 4)}, {"linear_weight": (20, HIDDEN), "linear_bias": (20,), "more": (1,)}]
)
def test_weights_of_a_module_that_contradict_its_configuration_are_an_error(make_model: Any, arrays: dict[str, Any]):
    config = {"in_features": HIDDEN, "out_features": 20}
    model = make_model("bert", files=described({"1_Pooling": pooling("mean_tokens"), "2_Dense": config}))
    if arrays:
        with_weights(model, "2_Dense", **{name: np.zeros(shape, np.float32) for name, shape in arrays.items()})
    with pytest.raises(BadFileError) as caught:
        _ = model.graph
    assert caught.value.where == "2_Dense/model.safetensors"
