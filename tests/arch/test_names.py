"""Parameter names: both ways, and as the gguf package spells them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import gguf
import pytest

from qdeploy.arch.family import Family, Gguf, family_of, forget, register
from qdeploy.arch.names import Names, layer_of
from qdeploy.errors import BadArgumentError, UnsupportedError

ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "bert": gguf.MODEL_ARCH.BERT,
}
DECODER = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] + [
    f"model.layers.11.{part}.weight"
    for part in (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
]
QK_NORM = ["model.layers.3.self_attn.q_norm.weight", "model.layers.3.self_attn.k_norm.weight"]
BERT = [
    f"embeddings.{part}.weight"
    for part in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
] + [
    f"encoder.layer.11.{part}.bias"
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
]


def names(family: str) -> Names:
    row = family_of(family)
    assert row is not None
    return row.names


CASES = [(family, name) for family in ("llama", "mistral", "qwen2", "qwen3") for name in DECODER]
CASES += [("qwen3", name) for name in QK_NORM] + [("bert", name) for name in BERT]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_gguf_names_are_those_of_the_gguf_package_and_lead_back(family: str, name: str) -> None:
    table = gguf.get_tensor_name_map(ARCH[family], 12)
    assert names(family).to_gguf(name) == table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert names(family).to_hf(names(family).to_gguf(name)) == name


@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "lm_head.scales", "weight", "", "blk.0.attn_q"])
def test_a_name_outside_of_the_table_is_an_error(name: str) -> None:
    with pytest.raises(UnsupportedError):
        names("llama").to_gguf(name)
    with pytest.raises(UnsupportedError):
        names("llama").to_hf("blk.0.ffn_gate_exps.weight")


def test_layers_are_found_in_every_dialect() -> None:
    layers = {
        "model.layers.7.mlp.up_proj.weight": 7,
        "bert.encoder.layer.3.output.dense.bias": 3,
        "encoder.layer.0.x": 0,
        "blk.21.attn_q.weight": 21,
        "lm_head.weight": None,
    }
    assert {name: layer_of(name) for name in layers} == layers


def test_the_stored_name_is_found() -> None:
    name = "embeddings.LayerNorm.weight"
    assert names("bert").locate(name, "hf", ["bert.embeddings.LayerNorm.gamma"]) == "bert.embeddings.LayerNorm.gamma"
    assert names("bert").locate(name, "hf", [name, f"bert.{name}"]) == name
    assert names("bert").locate(name, "gguf", ["token_embd_norm.weight"]) == "token_embd_norm.weight"
    assert names("llama").locate("lm_head.weight", "hf", ["bert.lm_head.weight"]) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "llama"},
        {"name": "twice"},
        {"heads": {"llama": ("LlamaForCausalLM",)}},
        {"gguf": {"llama": Gguf(lambda metadata, shapes, name: {})}},
        {"gguf": {"qwen3moe": Gguf(lambda metadata, shapes, name: {})}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_family_takes_no_name_from_another(changed: dict[str, Any]):
    def refuse(model: object) -> NoReturn:
        raise AssertionError

    mine = Family("mine", {"mine": ("MineForCausalLM",)}, Names(()), refuse)
    register(replace(mine, name="twice"))
    try:
        with pytest.raises(BadArgumentError, match="already"):
            register(replace(mine, **{"heads": {"other": ("OtherForCausalLM",)}, **changed}))
        assert family_of("llama") is not None and family_of("llama").name == "llama"  # type: ignore[union-attr]
    finally:
        forget("twice")
