"""Names of parameters in the dialects, one table per family.

The canonical name is that of Hugging Face's module (for BERT without the prefix `bert.`, as sentence-transformers
writes it); a module's parameter is `<module>.weight` or `<module>.bias`. GGUF names are those of its specification,
section "standardized tensor names". `{i}` is the layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from qdeploy.errors import UnsupportedError

Row = tuple[str, str]
"""A module in Hugging Face's spelling and in GGUF's."""

DECODER_ROWS: tuple[Row, ...] = (
    ("model.embed_tokens", "token_embd"),
    ("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
    ("model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
    ("model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
    ("model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
    ("model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
    ("model.layers.{i}.self_attn.q_norm", "blk.{i}.attn_q_norm"),
    ("model.layers.{i}.self_attn.k_norm", "blk.{i}.attn_k_norm"),
    ("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
    ("model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
    ("model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
    ("model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
)
"""The decoder that Llama, Mistral and Qwen share."""

EXPERT_ROWS: tuple[Row, ...] = (
    ("model.layers.{i}.mlp.gate", "blk.{i}.ffn_gate_inp"),
    ("model.layers.{i}.mlp.experts.gate_proj", "blk.{i}.ffn_gate_exps"),
    ("model.layers.{i}.mlp.experts.up_proj", "blk.{i}.ffn_up_exps"),
    ("model.layers.{i}.mlp.experts.down_proj", "blk.{i}.ffn_down_exps"),
    ("model.layers.{i}.mlp.shared_experts.gate_proj", "blk.{i}.ffn_gate_shexp"),
    ("model.layers.{i}.mlp.shared_experts.up_proj", "blk.{i}.ffn_up_shexp"),
    ("model.layers.{i}.mlp.shared_experts.down_proj", "blk.{i}.ffn_down_shexp"),
)
"""Experts in the spelling of most families."""
CHOICE_BIAS: Row = ("model.layers.{i}.mlp.gate.e_score_correction_bias", "blk.{i}.exp_probs_b.bias")
"""A bias that only the choice of experts sees."""


def renamed(rows: tuple[Row, ...], *changes: Row) -> tuple[Row, ...]:
    """Rows with parts of the Hugging Face names replaced."""
    spelled = []
    for name, other in rows:
        for old, new in changes:
            name = name.replace(old, new)
        spelled.append((name, other))
    return tuple(spelled)


ROPE_FACTORS = "rope_freqs.weight"
"""GGUF: F32 [rotary_dim / 2], what each rotary frequency is divided by (how Llama 3's scaling is stored there)."""

_INNER = "model."
TOWER = "tower"
"""The dialect of the text model within a model of several towers."""
TOWER_PREFIXES = ("language_model.", "model.language_model.")
"""What its names begin with; its output projection may stand beside the towers."""
_LAYER = re.compile(r"(?:^|\.)(layers|layer|h|blk)\.(\d{1,9})\.")


@dataclass(frozen=True)
class Names:
    """How a family's parameters are called.

    Attributes:
        rows: Each module in Hugging Face's spelling, which is the canonical one, and in GGUF's.
        prefixes: What a Hugging Face name may begin with besides; the usual one first.
        older: Endings of canonical names, and how older checkpoints spell them.
        transposed: Whether matrices of floats are stored [in, out] in Hugging Face's checkpoints.
        parameters: As `rows`, of whole parameters whose names do not end the same in both spellings.
    """

    rows: tuple[Row, ...]
    prefixes: tuple[str, ...] = ("",)
    older: tuple[tuple[str, str], ...] = ()
    parameters: tuple[Row, ...] = ()
    transposed: bool = False

    def to_gguf(self, name: str) -> str:
        """Returns the GGUF name of a parameter; UnsupportedError for a name outside of the table."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return self._translate(name, 0)

    def to_hf(self, name: str) -> str:
        """Returns the canonical name of a GGUF parameter; UnsupportedError for a name outside of the table."""
        return self._translate(name, 1)

    def spellings(self, name: str, dialect: str) -> list[str]:
        """Every name that a canonical parameter may have in a dialect ("hf", "gguf", `TOWER`), the usual one first."""
        if dialect == "gguf":
            return [self.to_gguf(name)]
        spelled = [prefix + name for prefix in self.prefixes]
        if name.startswith(_INNER):  # a model without its head is stored without the module that holds it
            spelled.append(name.removeprefix(_INNER))
        if dialect == TOWER:
            inner = [prefix + other for prefix in TOWER_PREFIXES for other in spelled]
            spelled = [*inner, *(other for other in spelled if not other.startswith(_INNER))]
        for new, old in self.older:
            if name.endswith(new):
                spelled += [other.removesuffix(new) + old for other in spelled]
        return spelled

    def locate(self, name: str, dialect: str, tensors: Collection[str]) -> str | None:
        """Returns the name under which a canonical parameter is stored among the tensors of a model, or None."""
        return next((spelled for spelled in self.spellings(name, dialect) if spelled in tensors), None)

    def _translate(self, name: str, column: int) -> str:
        template, number = _template(name)
        module, _, parameter = template.rpartition(".")
        for row in self.parameters:
            if row[column] == template:
                return row[1 - column].replace("{i}", number)
        for row in self.rows:
            if row[column] == module and parameter in ("weight", "bias"):
                return row[1 - column].replace("{i}", number) + "." + parameter
        raise UnsupportedError(
            "a parameter has no name in this dialect", found=name, allowed=", ".join(row[column] for row in self.rows)
        )


def _template(name: str) -> tuple[str, str]:
    """A name with `{i}` in the place of the layer, and the layer."""
    layer = _LAYER.search(name)
    return (name, "") if layer is None else (f"{name[: layer.start(2)]}{{i}}{name[layer.end(2) :]}", layer[2])


def layer_of(name: str) -> int | None:
    """Returns the layer that a parameter belongs to, in any dialect; None outside of the layers."""
    layer = _LAYER.search(name)
    return int(layer[2]) if layer else None
