"""How the branches of a decoder's layers stand: the placements of norms that families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qdeploy.arch.stack import Block, Branch, Layer


@dataclass(frozen=True)
class Placement:
    """Names of a layer's norms.

    Attributes:
        before_mixer: Before attention, or whatever mixes tokens; "" for none.
        after_mixer: Behind it.
        before_mlp: Before the MLP.
        after_mlp: Behind it.
        after_sum_of_mixer: Behind the addition of what the mixer gives (the first transformers).
        after_sum_of_mlp: Behind the addition of what the MLP gives.
        parallel: Whether both read the same value and are added up.
    """

    before_mixer: str = ""
    after_mixer: str = ""
    before_mlp: str = ""
    after_mlp: str = ""
    after_sum_of_mixer: str = ""
    after_sum_of_mlp: str = ""
    parallel: bool = False

    def layer(self, mixer: Block, mlp: Block) -> Layer:
        """One layer."""
        branches = (
            Branch(mixer, self.before_mixer, self.after_mixer, self.after_sum_of_mixer),
            Branch(mlp, self.before_mlp, self.after_mlp, self.after_sum_of_mlp),
        )
        return Layer(branches, self.parallel)

    def layers(self, mixers: Sequence[Block], mlps: Block | Sequence[Block]) -> tuple[Layer, ...]:
        """Layers with the same MLP, or with one each."""
        each = mlps if isinstance(mlps, Sequence) else [mlps] * len(mixers)
        return tuple(self.layer(mixer, mlp) for mixer, mlp in zip(mixers, each, strict=True))


PRE = Placement(before_mixer="input_layernorm", before_mlp="post_attention_layernorm")
"""Llama: a norm before each branch."""
POST = Placement(after_mixer="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
"""OLMo 2: a norm behind each branch."""
BOTH = Placement(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
"""Gemma 2: norms before and behind."""
PARALLEL = replace(PRE, parallel=True)
"""GPT-NeoX: both branches read the same value, each behind a norm of its own."""
PARALLEL_ONE_NORM = Placement(before_mixer="input_layernorm", before_mlp="input_layernorm", parallel=True)
"""Cohere: both branches read the same norm."""
