"""Experts in the fields of DeepSeek's configurations, which other families took over.

n_routed_experts, num_experts_per_tok, moe_intermediate_size   how many there are, how many a token takes, how wide
n_shared_experts                                               one MLP so many times as wide, for all tokens
n_group, topk_group                                            groups, and how many are left to choose from
norm_topk_prob, routed_scaling_factor, scoring_func            what becomes of scores
first_k_dense_replace, moe_layer_freq, mlp_layer_types         which layers have experts
"""

from __future__ import annotations

from typing import Literal

from qdeploy.arch.builder import ACTIVATIONS
from qdeploy.arch.config import Config
from qdeploy.arch.experts import Experts, Routing
from qdeploy.arch.mlp import Mlp
from qdeploy.arch.prenorm import gated_mlp
from qdeploy.arch.stack import Block
from qdeploy.errors import UnsupportedError

REFUSED: dict[str, tuple[object, ...]] = {"pretraining_tp": (1,), "mlp_bias": (False,)}
"""Fields that would mean something else, with the values that do not."""


def deepseek_layers(
    config: Config, layers: int, *, dense: int, scores: Literal["softmax", "sigmoid"], biased: bool = True
) -> list[Block]:
    """The MLPs of all layers.

    Args:
        config: The whole config.json.
        layers: How many there are.
        dense: Of `first_k_dense_replace`, where it is absent.
        scores: Of `scoring_func`, where it is absent.
        biased: Whether there is a bias for the choice.
    """
    count = config.size("n_routed_experts")
    for name in ("num_experts", "num_local_experts"):  # other spellings of the same number
        config.read.add(name)
        config.refuse({name: (count,)})
    hidden, activation = config.size("hidden_size"), config.choose("hidden_act", ACTIVATIONS, "silu")
    inner, shared = config.size("moe_intermediate_size"), int(config.number("n_shared_experts", 0))
    routing = _routing(config, count, scores, biased)
    wide = Mlp(hidden, inner * shared, activation, module="mlp.shared_experts") if shared else None
    experts = Experts(hidden, inner, count, activation, routing, shared=wide)
    plain = gated_mlp(config)
    return [experts if sparse else plain for sparse in _sparse(config, layers, dense)]


def _routing(config: Config, count: int, scores: Literal["softmax", "sigmoid"], biased: bool) -> Routing:
    spelled: dict[str, Literal["softmax", "sigmoid"]] = {"softmax": "softmax", "sigmoid": "sigmoid"}
    scores = spelled[config.choose("scoring_func", spelled, scores)]
    groups = config.size("n_group", 1)
    method = config.text("topk_method", "noaux_tc" if biased else "greedy")
    allowed = ("noaux_tc",) if biased else ("greedy", "group_limited_greedy")
    if method not in allowed:
        raise UnsupportedError(
            "an unsupported field in the configuration",
            where=f"{config.where}: topk_method",
            found=method,
            allowed=", ".join(allowed),
        )
    kept = config.size("topk_group", groups)
    if count % groups or kept > groups:
        raise config.contradiction("n_routed_experts, n_group, topk_group", f"{count}, {groups}, {kept}", "a multiple")
    normalize = config.flag("norm_topk_prob", True)
    return Routing(
        config.size("num_experts_per_tok"),
        scores,
        normalize=normalize and biased,  # the one without a bias reads the field, and does not use it
        scale=config.number("routed_scaling_factor", 1.0),
        groups=1 if method == "greedy" else groups,
        kept_groups=1 if method == "greedy" else kept,
        group_score="two" if biased else "best",
        epsilon=1e-20 if biased else 0.0,
        bias="gate.e_score_correction_bias" if biased else "",
    )


def _sparse(config: Config, layers: int, dense: int) -> list[bool]:
    """Which layers have experts."""
    step = config.size("moe_layer_freq", 1)
    if config.has("mlp_layer_types"):
        kinds = config.entries("mlp_layer_types", layers, str)
        if set(kinds) - {"dense", "sparse"}:
            raise config.contradiction("mlp_layer_types", sorted(set(kinds)), "dense, sparse")
        return [kind == "sparse" for kind in kinds]
    first = int(config.number("first_k_dense_replace", dense))
    return [i >= first and i % step == 0 for i in range(layers)]
