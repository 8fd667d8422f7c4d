"""Metadata becomes config.json's fields, and what is not understood is refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from qdeploy.errors import UnsupportedError
from qdeploy.formats.gguf.config import describe, sentence_files

SHAPES = {"token_embd.weight": (320, 64), "output.weight": (320, 64), "blk.0.attn_q.bias": (64,)}


def metadata(name: str = "llama", **more: object) -> dict[str, object]:
    own = {
        "block_count": 2,
        "context_length": 2048,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    }
    own |= {key.replace("__", "."): value for key, value in more.items()}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in own.items()}}


def refusal(fields: dict[str, object]) -> str:
    config, build = describe(fields, SHAPES)
    with pytest.raises(UnsupportedError) as caught:
        build(SimpleNamespace(path="m.gguf", config=config, tensors={}))
    return str(caught.value)


def test_llama():
    config, _ = describe(metadata(), SHAPES)
    assert config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-05,
        "vocab_size": 320,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "rope_interleaved": True,
        "is_causal": True,
        "attention_bias": True,
        "mlp_bias": False,
    }


def test_a_window_makes_mistral():
    config, _ = describe(metadata(attention__sliding_window=512), SHAPES)
    assert (config["model_type"], config["sliding_window"], config["rope_interleaved"]) == ("mistral", 512, True)


def test_qwen3_has_a_head_of_its_own_extent_and_no_interleaving():
    fields = metadata("qwen3", attention__key_length=32, attention__value_length=32, rope__freq_base=1e6)
    config, _ = describe(fields, {"token_embd.weight": (320, 64)})
    assert (config["head_dim"], config["rope_theta"], config["rope_interleaved"]) == (32, 1e6, False)
    assert config["tie_word_embeddings"] is True


def test_part_of_a_head_is_rotated():
    assert describe(metadata(rope__dimension_count=8), SHAPES)[0]["partial_rotary_factor"] == 0.5
    assert "partial_rotary_factor" not in describe(metadata(rope__dimension_count=16), SHAPES)[0]


def test_linear_and_yarn_scaling():
    linear = describe(metadata(rope__scaling__type="linear", rope__scaling__factor=4.0), SHAPES)[0]
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    old = describe(metadata(rope__scale_linear=2.0), SHAPES)[0]
    assert old["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    fields = {"type": "yarn", "factor": 8.0, "original_context_length": 256, "attn_factor": 0.5, "finetuned": True}
    yarn = describe(metadata(**{f"rope__scaling__{key}": value for key, value in fields.items()}), SHAPES)[0]
    assert yarn["rope_scaling"]["original_max_position_embeddings"] == 256
    assert yarn["rope_scaling"]["attention_factor"] == pytest.approx(0.5 * (0.1 * np.log(8) + 1))
    assert "rope_scaling" not in describe(metadata(rope__scaling__type="none"), SHAPES)[0]


def test_token_ids_and_the_end_of_a_turn():
    ids = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("bos", "eos", "padding", "eot"))}
    config, _ = describe({**metadata(), **ids}, SHAPES)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, [1, 3], 2)


def test_a_list_of_equal_numbers_is_a_number_and_others_are_refused():
    same = np.array([2, 2], np.int32)
    assert describe(metadata(attention__head_count_kv=same), SHAPES)[0]["num_key_value_heads"] == 2
    assert "llama.feed_forward_length" in refusal(metadata(feed_forward_length=np.array([96, 128], np.int32)))


def test_fields_that_change_the_network_are_refused_by_name():
    assert "llama.expert_count" in refusal(metadata(expert_count=8))
    assert "llama.attn_logit_softcapping" in refusal(metadata(attn_logit_softcapping=30.0))
    assert "qwen2.attention.sliding_window" in refusal(metadata("qwen2", attention__sliding_window=512))
    assert "llama.attention.value_length" in refusal(metadata(attention__value_length=8))
    assert "gemma3" in refusal(metadata("gemma3"))
    assert "llama.embedding_length" in refusal({k: v for k, v in metadata().items() if "embedding" not in k})
    describe(metadata(expert_count=0, use_parallel_residual=False), SHAPES)


def test_bert_is_an_encoder_with_pooling():
    shapes = {"token_embd.weight": (320, 64), "token_types.weight": (2, 64), "position_embd.weight": (128, 64)}
    fields = metadata(
        "bert", attention__layer_norm_epsilon=float(np.float32(1e-12)), attention__causal=False, pooling_type=1
    )
    config, _ = describe(fields, shapes)
    assert (config["layer_norm_eps"], config["type_vocab_size"], config["max_position_embeddings"]) == (1e-12, 2, 128)
    assert b'"pooling_mode": "mean"' in sentence_files(fields)["1_Pooling/config.json"]
    assert sentence_files(metadata("bert", pooling_type=0)) == {} == sentence_files(metadata())


@pytest.mark.parametrize("value", ["text", True, -1, [1, 2], np.array([1, 2]), np.array([]), float("nan"), 2**63])
def test_values_of_a_wrong_kind_never_crash(value):
    for key in metadata():
        config, _ = describe({**metadata(), key: value}, SHAPES)
        assert isinstance(config, dict)
    for key in ("rope.scaling.type", "rope.scaling.factor", "rope.dimension_count", "rope.scaling.attn_factor"):
        yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}
        describe({**metadata(), **yarn, f"llama.{key}": value, "tokenizer.ggml.eos_token_id": value}, SHAPES)
