"""genai_config.json: what onnxruntime-genai needs to load the folder as it is, and the tokenizer's files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdeploy.arch.family import family_of
from qdeploy.arch.generation import TOKENS, generation_of
from qdeploy.backends.onnx.attention import padded_head
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.passes.experts import with_matrices

CONFIG = "genai_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""Files of the source that belong beside the model."""


def genai_config(model: Model, graph: Graph) -> Mapping[str, Any]:
    """Returns the content of genai_config.json for a decoder."""
    meta: Mapping[str, Any] = graph.meta
    generation = generation_of(model, int(meta["vocab"]))
    tokens = {key: generation.tokens.get(key, meta.get(key)) for key in TOKENS}
    eos = tokens["eos_token_id"]
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    pad = tokens["pad_token_id"] if tokens["pad_token_id"] is not None else first_eos
    known = {"bos_token_id": tokens["bos_token_id"], "eos_token_id": eos, "pad_token_id": pad}
    return {
        "model": {
            **{key: value for key, value in known.items() if value is not None},
            "context_length": meta["context"],
            "decoder": _decoder(graph, _hidden_size(model)),
            "type": _model_type(str(meta["model_type"])),
            "vocab_size": meta["vocab"],
        },
        "search": _search(generation.sampling, int(meta["context"])),
    }


def _model_type(model_type: str) -> str:
    """The type that onnxruntime-genai knows; any decoder of this form runs as "decoder"."""
    family = family_of(model_type)
    return family.genai.get(model_type, "decoder") if family is not None else "decoder"


def write_side_files(model: Model, target: Path, config: Mapping[str, Any] | None) -> list[str]:
    """Writes genai_config.json (for a decoder) and the tokenizer's files; returns their names."""
    written = []
    for file in model.files:
        if file.path in TOKENIZER_FILES and file.role in ("side", "derived"):
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data.read().tobytes())
            written.append(file.path)
    if config is not None:
        (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        written.append(CONFIG)
    return written


def _decoder(graph: Graph, hidden: int) -> Mapping[str, Any]:
    state = graph.states[0]
    attention = next(node for node in graph.nodes if node.op == "Attention")
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": padded_head(state.head_dim),
        "hidden_size": hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": attention.attrs["heads"],
        "num_hidden_layers": len(graph.states),
        "num_key_value_heads": state.heads,
    }


def _hidden_size(model: Model) -> int:
    """Columns of the embedding."""
    model = with_matrices(model)
    gather = next(node for node in model.graph.nodes if node.op == "Gather")
    return model.tensors[gather.inputs[0]].shape[1]


def _search(generation: Mapping[str, Any], context: int) -> Mapping[str, Any]:
    return {
        "diversity_penalty": 0.0,
        "do_sample": bool(generation.get("do_sample", False)),
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": context,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": float(generation.get("repetition_penalty", 1.0)),
        "temperature": float(generation.get("temperature", 1.0)),
        "top_k": int(generation.get("top_k", 50)),
        "top_p": float(generation.get("top_p", 1.0)),
    }
