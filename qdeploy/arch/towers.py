"""Models of several towers: the text model inside of a multimodal one.

    config.json     {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", ...}, "vision_config": {...}}
    tensors         language_model.model.layers.0. ...     (Gemma 3, Mistral 3, Llama 4, LLaVA)
                    model.language_model.layers.0. ...     (Qwen 3.5, Gemma 4, and others since transformers 4.52)

The text tower alone becomes a graph; a note names the towers that are left out.
"""

from __future__ import annotations

from dataclasses import replace

from qdeploy.arch.family import family_of
from qdeploy.arch.names import TOWER
from qdeploy.ir.model import Model


def text_tower(model: Model) -> Model | None:
    """The text model within a model that has others besides, under the same tensors; None where there is none."""
    config = model.config
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    family = family_of(kind) if isinstance(kind, str) and family_of(config.get("model_type")) is None else None
    if family is None or not isinstance(text, dict) or not isinstance(kind, str) or kind not in family.heads:
        return None
    tied = config.get("tie_word_embeddings")
    usual = {} if tied is None else {"tie_word_embeddings": tied}
    fields = {**usual, **text, "architectures": [family.heads[kind][0]]}
    return replace(model, config=fields, dialect=TOWER)
