"""Names of parameters in the dialects: one table per family, canonical name on the left.

The canonical name is that of Hugging Face's module (for BERT without the prefix `bert.`, as sentence-transformers
writes it); a module's parameter is `<module>.weight` or `<module>.bias`. GGUF names are those of its specification,
section "standardized tensor names". `{i}` is the layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from qdeploy.errors import UnsupportedError

_DECODER = (
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
_BERT = (
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.{i}.attention.self.query", "blk.{i}.attn_q"),
    ("encoder.layer.{i}.attention.self.key", "blk.{i}.attn_k"),
    ("encoder.layer.{i}.attention.self.value", "blk.{i}.attn_v"),
    ("encoder.layer.{i}.attention.output.dense", "blk.{i}.attn_output"),
    ("encoder.layer.{i}.attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
    ("encoder.layer.{i}.intermediate.dense", "blk.{i}.ffn_up"),
    ("encoder.layer.{i}.output.dense", "blk.{i}.ffn_down"),
    ("encoder.layer.{i}.output.LayerNorm", "blk.{i}.layer_output_norm"),
)
_FAMILIES = {"llama": _DECODER, "mistral": _DECODER, "qwen2": _DECODER, "qwen3": _DECODER, "bert": _BERT}
_PREFIXES = {"bert": ("", "bert.")}
_OLD_NORM = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}

ROPE_FACTORS = "rope_freqs.weight"
"""GGUF: F32 [rotary_dim / 2], what each rotary frequency is divided by (how Llama 3's scaling is stored there)."""


def to_gguf(name: str, family: str) -> str:
    """Returns the GGUF name of a canonical parameter name; UnsupportedError for a name outside of the table."""
    return _translate(name.removeprefix("bert.") if family == "bert" else name, family, 0)


def to_hf(name: str, family: str) -> str:
    """Returns the canonical name of a GGUF parameter name; UnsupportedError for a name outside of the table."""
    return _translate(name, family, 1)


def locate(name: str, family: str, dialect: str, tensors: Collection[str]) -> str | None:
    """Returns the name under which a canonical parameter is stored among the tensors of a model, or None."""
    return next((spelled for spelled in spellings(name, family, dialect) if spelled in tensors), None)


def spellings(name: str, family: str, dialect: str) -> list[str]:
    """Every name that a canonical parameter may have in a dialect ("hf" or "gguf"), the usual one first."""
    if dialect == "gguf":
        return [to_gguf(name, family)]
    made = [prefix + name for prefix in _PREFIXES.get(family, ("",))]
    for new, old in _OLD_NORM.items():  # BERT checkpoints that were converted from TensorFlow
        if family == "bert" and name.endswith(new):
            made += [other.removesuffix(new) + old for other in made]
    return made


def layer_of(name: str) -> int | None:
    """Returns the layer that a parameter belongs to, in any dialect; None outside of the layers."""
    found = re.match(r"(?:bert\.)?(?:model\.layers|encoder\.layer|blk)\.(\d{1,9})\.", name)
    return int(found[1]) if found else None


def _translate(name: str, family: str, column: int) -> str:
    module, _, parameter = name.rpartition(".")
    found = re.match(r"(model\.layers|encoder\.layer|blk)\.(\d+)\.", module)
    template = f"{found[1]}.{{i}}.{module[found.end() :]}" if found else module
    for row in _FAMILIES.get(family, ()):
        if row[column] == template and parameter in ("weight", "bias"):
            return row[1 - column].replace("{i}", found[2] if found else "") + "." + parameter
    raise UnsupportedError(
        "a parameter has no name in this dialect",
        where=family,
        found=name,
        allowed=", ".join(row[column] for row in _FAMILIES.get(family, ())),
    )
