"""DeepSeek V2 and V3, GLM-4.7-Flash (glm4_moe_lite): latent attention, and experts with groups and shared ones.

    deepseek_v2     softmax scores; a group counts by its best expert
    deepseek_v3     sigmoid scores with a bias for the choice; a group counts by its two best (arXiv 2412.19437)
    glm4_moe_lite   the same

Rotary pairs are neighbours. With yarn, scores are scaled once more: `mscale_all_dim` (arXiv 2309.00071, equation 22).
"""

from __future__ import annotations

import math

from qdeploy.arch.builder import layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder
from qdeploy.arch.experts_config import REFUSED, deepseek_layers
from qdeploy.arch.family import Family
from qdeploy.arch.latent import LatentAttention
from qdeploy.arch.layers import PRE
from qdeploy.arch.names import CHOICE_BIAS, DECODER_ROWS, EXPERT_ROWS, Names
from qdeploy.arch.prenorm import rms_norm
from qdeploy.arch.rope import read_rope
from qdeploy.arch.self_attention import Rotation
from qdeploy.arch.stack import Decoder
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

_CONTEXT = {"deepseek_v2": 2048, "deepseek_v3": 4096, "glm4_moe_lite": 202752}


def build(model: Model) -> Graph:
    """Builds the graph of a DeepseekV2ForCausalLM, a DeepseekV3ForCausalLM or a Glm4MoeLiteForCausalLM."""
    config = Config(model.config)
    kind, layers = config.text("model_type"), layer_count(model, config)
    second = kind == "deepseek_v2"
    attention = _attention(config, config.size("max_position_embeddings", _CONTEXT[kind]))
    mlps = deepseek_layers(
        config,
        layers,
        dense={"deepseek_v2": 0, "deepseek_v3": 3, "glm4_moe_lite": 1}[kind],
        scores="softmax" if second else "sigmoid",
        biased=not second,
    )
    norm = rms_norm(config, 1e-5 if kind == "glm4_moe_lite" else 1e-6)
    placed = PRE.layers([attention] * layers, mlps)
    heads = config.size("num_attention_heads")
    refused = {**REFUSED, "num_key_value_heads": (heads,), "qk_head_dim": (attention.plain + attention.rotated,)}
    return build_decoder(model, config, Decoder(kind, NAMES, placed, attention.capacity, norm, refused=refused))


def _attention(config: Config, context: int) -> LatentAttention:
    rotated, plain = config.size("qk_rope_head_dim", 64), config.size("qk_nope_head_dim", 128)
    absent = "q_lora_rank" not in config.fields
    query = 1536 if absent else config.size("q_lora_rank") if config.has("q_lora_rank") else 0
    config.read |= {"q_lora_rank", "kv_lora_rank"}
    rope = read_rope(config, rotated, context)
    return LatentAttention(
        config.size("hidden_size"),
        config.size("num_attention_heads"),
        plain,
        rotated,
        config.size("v_head_dim", 128),
        config.size("kv_lora_rank", 512),
        query,
        rope.context,
        (plain + rotated) ** -0.5 * _magnitude(config) ** 2,
        Rotation(rope, config.flag("rope_interleave", config.flag("rope_interleaved", True))),
        bias=config.flag("attention_bias", False),
    )


def _magnitude(config: Config) -> float:
    fields = config.fields.get("rope_scaling") or config.fields.get("rope_parameters") or {}
    scaling = Config(fields, f"{config.where}: rope_scaling")
    if scaling.text("rope_type", scaling.text("type", "default")) == "default" or not scaling.has("mscale_all_dim"):
        return 1.0
    factor = scaling.positive("factor")
    return 0.1 * scaling.number("mscale_all_dim") * math.log(factor) + 1.0 if factor > 1 else 1.0


NAMES = Names(
    (
        *(row for row in DECODER_ROWS if ".k_proj" not in row[0] and ".v_proj" not in row[0]),
        ("model.layers.{i}.self_attn.q_a_proj", "blk.{i}.attn_q_a"),
        ("model.layers.{i}.self_attn.q_a_layernorm", "blk.{i}.attn_q_a_norm"),
        ("model.layers.{i}.self_attn.q_b_proj", "blk.{i}.attn_q_b"),
        ("model.layers.{i}.self_attn.kv_a_proj_with_mqa", "blk.{i}.attn_kv_a_mqa"),
        ("model.layers.{i}.self_attn.kv_a_layernorm", "blk.{i}.attn_kv_a_norm"),
        ("model.layers.{i}.self_attn.kv_b_proj", "blk.{i}.attn_kv_b"),
        *EXPERT_ROWS,
    ),
    parameters=(CHOICE_BIAS,),
)
FAMILY = Family(
    name="deepseek",
    heads={
        "deepseek_v2": ("DeepseekV2ForCausalLM",),
        "deepseek_v3": ("DeepseekV3ForCausalLM",),
        "glm4_moe_lite": ("Glm4MoeLiteForCausalLM",),
    },
    names=NAMES,
    build=build,
)
