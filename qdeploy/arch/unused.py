"""Stored tensors that no node of a graph uses: a few are known to carry nothing, every other one is refused.

A tensor that is left over means that the network computes something else than the checkpoint's authors did: an adapter
that was never merged, a norm that the configuration does not mention, a second head. So nothing is left out but what
stands in the lists below.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from qdeploy.arch.names import TOWER, TOWER_PREFIXES
from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model

BUFFERS = {
    "hf": (
        r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$",  # computed from the configuration
        r"(^|\.)embeddings\.(position_ids|token_type_ids)$",  # 0, 1, 2, ... and zeros
        r"\.(attention|attn)\.masked_bias$",  # GPT-NeoX, GPT-2: the number that masks
        r"(^|\.)embeddings\.mask_token$",  # stands for patches that were left out in training
        r"\.(row_offsets|in_perm)$",  # of compressed-tensors and SpQR: counted from the mask; an order that is none
        r"\.(q_bias|(alpha|beta)_[0-9]+)$",  # AnyBCQ: what its layers have room for, and no width that is stored uses
    ),
    "gguf": (r"^rope_freqs", r"\.rope_freqs", r"attn_rot_embd"),  # read for the frequencies, or computed
}
"""Tensors that hold no parameter, by dialect."""
BUFFERS[TOWER] = BUFFERS["hf"]
_MASK = re.compile(r"\.(attention|attn)\.bias$")
"""GPT-NeoX, GPT-2: the causal mask [1, 1, positions, positions]."""
_HEADS = re.compile(r"^(bert\.)?pooler\.|^cls\.")
"""BERT: the pooler and the heads of pre-training, which a graph of hidden states has no use for; left out with a note.
"""


_ACTIVATIONS = re.compile(
    r"(\.((input|output|k|v|q|prob|kv)_scale|(k|v)_proj\.output_scale)|[._](input|output)_(global_scale|zero_point))$"
)
"""Scales of activations and of caches: outputs compute with weights alone, so they are left out with a note."""


def refuse_unused(model: Model, used: Collection[str]) -> None:
    """Raises UnsupportedError for a tensor that is not used and not in the lists; notes heads that are left out."""
    heads, activations, towers = [], [], dict[str, int]()
    for name in model.tensors:
        if model.dialect == TOWER and not name.startswith((*TOWER_PREFIXES, "lm_head.")):
            tower = ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])
            towers[tower] = towers.get(tower, 0) + 1
            continue
        if name in used or any(re.search(pattern, name) for pattern in BUFFERS.get(model.dialect, ())):
            continue
        if _HEADS.search(name):
            heads.append(name)
        elif _ACTIVATIONS.search(name):
            activations.append(name)
        elif not (_MASK.search(name) and len(model.tensors[name].shape) == 4):
            raise UnsupportedError(
                "a tensor that the architecture does not use",
                where=name,
                found=str(model.config.get("model_type")),
                todo="Merge adapters into the weights first; tensors alone are converted with --to ir.",
            )
    others = ", ".join(f"{tower} ({count} tensors)" for tower, count in towers.items())
    notes = {
        f"left out, since the graph is the text model's: {others}": [others] if towers else [],
        f"left out, since the graph gives hidden states: {', '.join(heads)}": heads,
        f"not applied: activation scales ({len(activations)} tensors: {', '.join(activations[:1])}, ...)": activations,
    }
    model.notes.extend(note for note, names in notes.items() if names and note not in model.notes)
