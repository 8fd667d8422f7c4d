"""What a family of models is: one row, which stands at the end of the file that builds the family's graph.

A row holds all that the product knows of a family: its `model_type`s and heads, how its parameters are called in each
dialect, what its metadata is called in GGUF files, and which type onnxruntime-genai gives it. A family is found by the
`model_type` of config.json or by `general.architecture` of a GGUF file. Only the file of the family at hand is
imported: `BUILT_IN` says which one that is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qdeploy.arch.names import Names
from qdeploy.catalog.extensions import load_extensions
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model

Metadata = Mapping[str, Any]
"""GGUF metadata below `<architecture>.`: name -> value."""
Shapes = Mapping[str, tuple[int, ...]]
"""GGUF tensor name -> shape."""


@dataclass(frozen=True)
class Gguf:
    """How GGUF files describe a family.

    Attributes:
        config: The fields of config.json that only this family has, from the metadata and the tensors' shapes.
        model_type: Which of the family's types a file is; None: the family's first.
        fields: Further metadata and the field of config.json that each becomes.
        understood: Further metadata that `config` reads, or that changes nothing.
    """

    config: Callable[[Metadata, Shapes, str], dict[str, Any]]
    model_type: Callable[[Metadata], str] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    understood: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: As in `BUILT_IN`.
        heads: model_type -> names of the classes in `architectures` whose graph is built; the first is the usual one.
        names: How parameters are called in each dialect.
        build: Makes the graph; raises UnsupportedError and BadFileError as `build_graph` says.
        gguf: `general.architecture` -> how such files describe the family; empty: none does.
        genai: model_type -> the type that onnxruntime-genai knows; absent: it runs as "decoder".
    """

    name: str
    heads: Mapping[str, tuple[str, ...]]
    names: Names
    build: Callable[[Model], Graph]
    gguf: Mapping[str, Gguf] = field(default_factory=dict)
    genai: Mapping[str, str] = field(default_factory=dict)


BUILT_IN = {
    "apertus": ("apertus",),
    "bert": ("bert",),
    "bitnet": ("bitnet", "gguf:bitnet-b1.58", "gguf:bitnet-25"),
    "clip": (
        "clip",
        "clip_text_model",
        "clip_vision_model",
        "siglip",
        "siglip_text_model",
        "siglip_vision_model",
    ),
    "cohere": ("cohere", "cohere2"),
    "convnext": ("convnext",),
    "deberta": ("deberta-v2",),
    "deepseek": ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"),
    "distilbert": ("distilbert",),
    "electra": ("electra",),
    "ernie": ("ernie4_5_moe", "gguf:ernie4_5-moe"),
    "eurobert": ("eurobert",),
    "falcon": ("falcon_h1",),
    "gemma": ("gemma2", "gemma3_text"),
    "gemma3n": ("gemma3n_text",),
    "gemma4": ("gemma4_text",),
    "glm": ("glm4",),
    "glm_moe": ("glm4_moe", "gguf:glm4moe"),
    "gpt2": ("gpt2",),
    "gpt_oss": ("gpt_oss", "gguf:gpt-oss"),
    "granite": ("granite", "granitemoe"),
    "granite_hybrid": ("granitemoehybrid",),
    "hunyuan": ("hunyuan_v1_dense", "hunyuan_v1_moe"),
    "kimi": ("kimi_linear",),
    "lfm2": ("lfm2", "lfm2_moe"),
    "lfm3": ("lfm3",),
    "llama": ("llama", "mistral", "ministral", "ministral3", "smollm3", "arcee", "ernie4_5", "seed_oss"),
    "llama4": ("llama4_text", "gguf:llama4"),
    "mamba": ("mamba2",),
    "minimax": ("minimax_m2",),
    "mixtral": ("mixtral", "phimoe"),
    "modernbert": ("modernbert",),
    "mpnet": ("mpnet",),
    "nemotron": ("nemotron_h",),
    "neox": ("gpt_neox",),
    "nomic": ("nomic_bert",),
    "olmo": ("olmo2", "olmo3", "exaone4"),
    "olmoe": ("olmoe",),
    "opt": ("opt",),
    "phi": ("phi3",),
    "qwen": ("qwen2", "qwen3"),
    "qwen_moe": ("qwen2_moe", "qwen3_moe", "gguf:qwen2moe", "gguf:qwen3moe"),
    "qwen_next": ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    "roberta": ("roberta", "xlm-roberta", "camembert"),
    "stablelm": ("stablelm",),
    "starcoder": ("starcoder2",),
    "swin": ("swin",),
    "t5": ("t5", "mt5"),
    "vit": ("vit", "deit", "dinov2"),
    "whisper": ("whisper",),
}
"""File in arch/families/ -> the model types that it builds; "gguf:" GGUF's names of architectures that are no types."""

_GGUF = "gguf:"
_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family at run time; BadArgumentError where its name, a model type or a name in GGUF is taken."""
    if family.name in BUILT_IN or family.name in _REGISTERED:
        raise BadArgumentError("a family of this name is there already", found=family.name)
    taken = set(family.heads) & set(model_types())
    if family.gguf:
        taken |= set(family.gguf) & {*gguf_architectures(), *model_types()}
    if taken:
        raise BadArgumentError("a model type has a family already", found=", ".join(sorted(taken)))
    _REGISTERED[family.name] = family


def forget(name: str) -> None:
    """Takes back what `register` added."""
    _REGISTERED.pop(name, None)


def model_types() -> tuple[str, ...]:
    """Every model type that has a family."""
    added = [kind for family in _REGISTERED.values() for kind in family.heads]
    built_in = (kind for kinds in BUILT_IN.values() for kind in kinds if not kind.startswith(_GGUF))
    return (*built_in, *added)


def family_of(model_type: object) -> Family | None:
    """The family of a `model_type` or of a GGUF architecture, here or in an extension; None where there is none."""
    family = _listed(model_type)
    if family is None and isinstance(model_type, str) and model_type:
        load_extensions()
        family = _listed(model_type)
    return family


def _listed(model_type: object) -> Family | None:
    for family in _REGISTERED.values():
        if model_type in family.heads or model_type in family.gguf:
            return family
    for file, kinds in BUILT_IN.items():
        if model_type in kinds or f"{_GGUF}{model_type}" in kinds:
            row: Family = importlib.import_module(f"qdeploy.arch.families.{file}").FAMILY
            return row
    return None


def gguf_architectures() -> tuple[str, ...]:
    """Every `general.architecture` that a family describes."""
    families = {family.name: family for kind in model_types() if (family := family_of(kind)) is not None}
    return tuple(name for family in families.values() for name in family.gguf)


_CAUSAL = "ForCausalLM"
_HEADLESS = ("Model", "ForSequenceClassification", "ForTokenClassification")
"""What follows a causal decoder's name in classes that hold it without its output projection."""


def is_headless(class_name: str) -> bool:
    """Whether a class holds a causal decoder without its output projection, alone or behind scores of classes."""
    return class_name.endswith(_HEADLESS) and not class_name.endswith("LMHeadModel")


def _with_headless(heads: tuple[str, ...]) -> tuple[str, ...]:
    """Of causal language models, those without a head and those that score sequences or tokens, too."""
    stems = [name.removesuffix(_CAUSAL) for name in heads if name.endswith(_CAUSAL)]
    return tuple(dict.fromkeys((*heads, *(stem + other for stem in stems for other in _HEADLESS))))


def check_head(model_type: str, config: Mapping[str, Any], family: Family) -> None:
    """Refuses a model with another head: every entry of `architectures` must be the family's."""
    named = config.get("architectures") or []
    allowed = _with_headless(family.heads[model_type])
    for name in named if isinstance(named, list) else [named]:
        if name not in allowed:
            raise UnsupportedError(
                "an unsupported architecture",
                where="config.json: architectures",
                found=name,
                allowed=", ".join(allowed),
            )
