"""Configurations that are not understood, damaged, or at odds with the tensors: one clear error each."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "num_local_experts", 8),
        ("llama", "attention_sinks", True),
        ("llama", "sliding_window", 128),
        ("llama", "residual_multiplier", 0.22),
        ("llama", "logits_scaling", 8.0),
        ("llama", "hidden_act", "mish"),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("llama", "kv_lora_rank", 64),
        ("llama", "use_bidirectional_attention", True),
        ("llama", "architectures", ["LlamaForQuestionAnswering"]),
        ("mistral", "attention_bias", True),
        ("mistral", "layer_types", ["full_attention", "full_attention"]),
        ("qwen2", "dual_chunk_attention_config", {"chunk_size": 4}),
        ("qwen2", "num_experts", 60),
        ("qwen2", "layer_types", ["linear_attention", "full_attention"]),
        ("qwen2", "architectures", ["Qwen2ForQuestionAnswering"]),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "embedding_size", 16),
        ("bert", "hidden_act", "mish"),
    ],
)
def test_a_field_that_changes_the_arithmetic_is_refused_by_its_name(
    kind: str, field: str, value: object, make_model: Any
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        _ = make_model(kind, **{field: value}).graph
    assert field in caught.value.where and str(caught.value.found)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "llama",
            {
                "attention_dropout": 0.1,
                "use_cache": False,
                "pretraining_tp": 2,
                "initializer_range": 1,
                "num_local_experts": 0,
                "logits_scaling": 1.0,
                "num_experts": None,
                "unheard_of": 7,
            },
        ),
        ("qwen2", {"attention_dropout": 0.5, "layer_types": ["full_attention", "full_attention"]}),
        ("bert", {"gradient_checkpointing": True, "chunk_size_feed_forward": 8, "position_embedding_type": "absolute"}),
    ],
)
def test_fields_that_change_nothing_are_let_be(kind: str, fields: dict[str, Any], make_model: Any) -> None:
    assert make_model(kind, **fields).graph.nodes == make_model(kind).graph.nodes


def test_an_unknown_architecture_is_refused_by_its_name(make_model: Any) -> None:
    for name in ("mamba", "", None, 7, ["llama"]):
        model = make_model("llama")
        model.config["model_type"] = name
        with pytest.raises(UnsupportedError) as caught:
            _ = model.graph
        assert caught.value.where == "config.json: model_type" and "llama" in caught.value.allowed


@pytest.mark.parametrize(
    ("kind", "lie", "tensor"),
    [
        ("llama", {"hidden_size": 64, "head_dim": 8}, "embed_tokens"),
        ("llama", {"vocab_size": 50}, "embed_tokens"),
        ("llama", {"head_dim": 16}, "q_proj"),
        ("llama", {"num_attention_heads": 2}, "k_proj"),
        ("llama", {"num_key_value_heads": 4}, "k_proj"),
        ("llama", {"intermediate_size": 41}, "gate_proj"),
        ("llama", {"num_hidden_layers": 3}, "layers.2"),
        ("llama", {"num_hidden_layers": 1}, "layers.1"),
        ("llama", {"attention_bias": True}, "q_proj.bias"),
        ("llama", {"mlp_bias": True}, "gate_proj.bias"),
        ("bert", {"max_position_embeddings": 32}, "position_embeddings"),
        ("bert", {"type_vocab_size": 1}, "token_type"),
        ("bert", {"num_hidden_layers": 1}, "layer.1"),
        ("bert", {"intermediate_size": 8}, "intermediate.dense"),
    ],
)
def test_a_config_that_contradicts_the_tensors_names_both(
    kind: str, lie: dict[str, int], tensor: str, make_model: Any
) -> None:
    model = make_model(kind)
    model.config |= lie
    with pytest.raises(BadFileError) as caught:
        _ = model.graph
    field = next(iter(lie))
    assert tensor in caught.value.where and field in caught.value.where + caught.value.allowed


def test_an_absurd_width_of_a_head_costs_no_memory(make_model: Any) -> None:
    model = make_model("llama")
    model.config |= {"head_dim": 1 << 30}
    tracemalloc.start()
    with pytest.raises(BadFileError, match="head_dim"):
        _ = model.graph
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_missing_tensor_is_named(make_model: Any) -> None:
    with pytest.raises(BadFileError, match=r"missing[\s\S]*model\.layers\.1\.mlp\.down_proj\.weight"):
        _ = make_model("llama", drop=("model.layers.1.mlp.down_proj.weight",)).graph


def test_a_bias_that_the_config_denies_is_not_dropped_silently(make_model: Any) -> None:
    with pytest.raises(BadFileError) as caught:
        _ = make_model("llama", arrays={"model.layers.0.mlp.up_proj.bias": np.ones(40)}).graph
    assert "mlp_bias" in caught.value.where and "up_proj.bias" in caught.value.where


@pytest.mark.parametrize("value", [None, 0, -4, 2.5, "4", True, [4], 1 << 30, 1 << 40, float("inf")])
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_damaged_extent_is_an_error_that_names_its_field(field: str, value: object, make_model: Any) -> None:
    for kind in ("llama", "qwen3", "bert"):
        model = make_model(kind)
        model.config[field] = value
        with pytest.raises(BadFileError) as caught:
            _ = model.graph
        assert field in caught.value.where


@pytest.mark.parametrize(
    "fields",
    [
        {"rms_norm_eps": 0},
        {"rms_norm_eps": "x"},
        {"hidden_act": 3},
        {"attention_bias": 1},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 5, "num_key_value_heads": 5},
        {"layer_types": ["full_attention"]},
        {"rope_interleaved": "yes"},
        {"max_position_embeddings": 0},
    ],
)
def test_every_other_damage_is_one_of_the_family(fields: dict[str, Any], make_model: Any) -> None:
    model = make_model("llama")
    model.config |= fields
    with pytest.raises(QdeployError):
        _ = model.graph


def test_sliding_layers_need_a_window(make_model: Any) -> None:
    with pytest.raises(BadFileError, match="contradicts itself"):
        _ = make_model("qwen2", layer_types=["sliding_attention"] * 2).graph


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_weightedmean_tokens": True},
        {},
        {"pooling_mode": "median"},
    ],
)
def test_other_poolings_are_refused_by_name(pooling: dict[str, Any], make_model: Any) -> None:
    files = {"modules.json": json.dumps(MODULES), "1_Pooling/config.json": json.dumps(pooling)}
    with pytest.raises(UnsupportedError) as caught:
        _ = make_model("bert", files=files).graph
    assert caught.value.where == "1_Pooling/config.json: pooling_mode"


def test_other_modules_of_a_sentence_model_are_refused_by_name(make_model: Any) -> None:
    modules = [*MODULES, {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}]
    with pytest.raises(UnsupportedError, match="LSTM"):
        _ = make_model("bert", files={"modules.json": json.dumps(modules)}).graph


@pytest.mark.parametrize("text", ["{}", "[1]", "[", '[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "x"}]'])
def test_damaged_module_files_are_an_error(text: str, make_model: Any) -> None:
    with pytest.raises(BadFileError):
        _ = make_model("bert", files={"modules.json": text}).graph
