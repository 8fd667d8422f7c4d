"""The `config_groups` of compressed-tensors: which layers are quantized, and how.

    config_groups   name -> {targets, format, weights, input_activations, output_activations}
    targets         full names of modules, "re:" and a regular expression, or names of classes
    ignore          the same: layers that are not quantized whatever the targets say

A layer belongs to the groups that name it; where none does, to those whose regular expression matches its name; where
none does, to those that name its class. No group wins by standing first: where several remain and say different things,
the checkpoint is ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.huggingface.words import Settings
from qdeploy.patterns import Pattern

Target = str | Pattern
"""A name of modules or of a class, or an expression that names of modules match."""

_EMBEDDINGS = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte")
_MATTERS = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "scale_dtype")


@dataclass(frozen=True)
class Scheme:
    """What a layer is quantized by.

    Attributes:
        group: Name of the group.
        format: How its tensors are packed.
        weights: The settings of its weights.
        version: Of the library that wrote the file; "" where it is not said.
        activations: What is said of its inputs and outputs, in a few words; "" where they stay as they are.
    """

    group: str
    format: str
    weights: Settings
    activations: str
    version: str = ""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.weights.integer("num_bits")

    @property
    def is_float(self) -> bool:
        """Whether codes are floats."""
        kind = self.weights.text("type")
        if kind not in ("int", "float"):
            raise UnsupportedError(
                "this kind of codes is not read", where=f"{self.weights.where}.type", found=kind, allowed="int, float"
            )
        return kind == "float"


_GROUP = ("targets", "format", "weights", "input_activations", "output_activations")
_WEIGHTS = (*_MATTERS, "zp_dtype", "observer", "observer_kwargs", "actorder")
"""Settings that are read, and those of how codes were found, which say nothing of what they mean."""


class Schemes:
    """All groups of a checkpoint."""

    def __init__(self, settings: Settings) -> None:
        groups = settings.values.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise BadFileError("no groups of layers are described", where=f"{settings.where}.config_groups")
        self.where = settings.where
        self._groups = [self._group(settings, str(name), values) for name, values in groups.items()]
        self._ignore = target_names(settings.values.get("ignore"), f"{settings.where}.ignore")

    def of(self, module: str) -> Scheme:
        """The scheme of a layer whose tensors are packed.

        Raises:
            BadFileError: The configuration leaves the layer unquantized.
            AmbiguousError: Groups that say different things mean it equally.
        """
        if rank_of(self._ignore, module) < NEVER:
            raise self._contradiction(module, "ignore")
        ranks = [rank_of(targets, module) for targets, _ in self._groups]
        best = min(ranks)
        if best == NEVER:
            raise self._contradiction(module, "config_groups: no target")
        chosen = [scheme for rank, (_, scheme) in zip(ranks, self._groups, strict=True) if rank == best]
        if len({_meaning(scheme) for scheme in chosen}) > 1:
            raise AmbiguousError(
                "several groups mean one layer and say different things",
                where=f"{self.where}.config_groups: {module}",
                found=", ".join(scheme.group for scheme in chosen),
                todo="Correct the targets of the groups.",
            )
        return chosen[0]

    def _group(self, settings: Settings, name: str, values: object) -> tuple[tuple[Target, ...], Scheme]:
        where = f"config_groups.{name}"
        group = settings.overridden(values, where)
        own: Mapping[str, Any] = values if isinstance(values, dict) else {}
        weights = Settings({}, "").overridden(own.get("weights") or {}, "")
        Settings(own, group.where).refuse_others(_GROUP)
        Settings(weights.values, f"{group.where}.weights").refuse_others(_WEIGHTS)
        form = str(own.get("format") or settings.values.get("format") or "").lower()
        acts = [_activations(which, own.get(f"{which}_activations")) for which in ("input", "output")]
        scheme = Scheme(
            name,
            form,
            Settings(weights.values, f"{group.where}.weights"),
            "; ".join(text for text in acts if text),
            str(settings.values.get("version") or ""),
        )
        return target_names(own.get("targets"), f"{group.where}.targets"), scheme

    def _contradiction(self, module: str, field: str) -> BadFileError:
        return BadFileError(
            "the configuration contradicts the tensors",
            where=f"{self.where}.{field}",
            found=f"{module} is quantized",
            allowed="a plain weight",
            todo="Configuration and tensors are not of one checkpoint; fetch it again.",
        )


_BY_NAME, _BY_PATTERN, _BY_CLASS, NEVER = range(4)
"""How closely targets mean a module; NEVER: not at all."""


def rank_of(targets: Iterable[Target], module: str) -> int:
    """How closely targets mean a module: by name, by a pattern, by its class, or not at all."""
    rank = NEVER
    for target in targets:
        if target == module:
            return _BY_NAME
        if isinstance(target, Pattern):
            rank = min(rank, _BY_PATTERN) if target.match(module) else rank
        elif target == _class(module):
            rank = min(rank, _BY_CLASS)
    return rank


def _class(module: str) -> str:
    return "Embedding" if module.rpartition(".")[2] in _EMBEDDINGS else "Linear"


def target_names(value: object, where: str) -> tuple[Target, ...]:
    """A list of targets; BadFileError where it is none."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadFileError("targets are not a list of names", where=where, found=repr(value)[:100])
    return tuple(Pattern(name[3:], where) if name.startswith("re:") else name for name in value)


def _meaning(scheme: Scheme) -> str:
    return repr((scheme.format, [scheme.weights.values.get(name) for name in _MATTERS], scheme.activations))


def _activations(which: str, values: object) -> str:
    if not isinstance(values, dict):
        return ""
    bits, kind, strategy = (values.get(name) for name in ("num_bits", "type", "strategy"))
    when = "static" if values.get("dynamic") is False else "dynamic"
    return f"{which}s to {bits}-bit {kind} per {strategy}, {when}"
