"""The `transform_config` of compressed-tensors: activations turned in front of layers and behind them.

    config_groups   name -> {type, apply, head_dim, randomize, precision}
    type            hadamard: Sylvester's matrix; random-hadamard: another one, stored; random-matrix: any, stored
    apply           [{targets, location, inverse, ignore}]; targets as those of `config_groups` (`schemes.py`)
    head_dim        columns of a block; without it a block is a whole row
    location        input: before the layer        weight_input, weight_output: in the weights already
                    output: behind it              q_attn, k_cache: on queries and keys

    x -> x M, with M = matrix / sqrt(columns of a block) for Hadamard's, the transpose where `inverse`
    X.NAME_LOCATION.weight [m, m]   the matrix of layer X; one that several layers share is stored with one of them

Queries and keys that are turned by the same orthogonal matrix have the same products as without it, so that a pair of
both changes nothing while the cache is not rounded: it is named in a note. (Layout: compressed-tensors 0.12 to 0.20,
transform/.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.arch.turned import Step, Turn
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.huggingface.checkpoint import Checkpoint
from qdeploy.formats.huggingface.schemes import NEVER, Target, rank_of, target_names
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.ops.hadamard import sylvester

Shapes = Mapping[str, tuple[int, ...]]
"""[N, K] of linear layers by name."""

_TYPES = ("hadamard", "random-hadamard", "random-matrix")
_FUSED, _ONLINE, _HEADS = ("weight_input", "weight_output"), ("input", "output"), ("q_attn", "k_cache")


@dataclass(frozen=True)
class _Place:
    """One entry of `apply`."""

    where: str
    location: str
    inverse: bool
    targets: tuple[Target, ...]
    ignore: tuple[Target, ...]

    def means(self, module: str) -> bool:
        """Whether a layer is turned."""
        return rank_of(self.targets, module) < NEVER and rank_of(self.ignore, module) == NEVER


class Transforms:
    """All transforms of a checkpoint; none where the configuration has none.

    Attributes:
        turns: By the name of a weight.
        notes: What is not carried out, and why that changes nothing.
        stored: Names of the tensors that hold their matrices.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, layers: Callable[[], Shapes]) -> None:
        """Reads them.

        Args:
            checkpoint: Whose.
            settings: `quantization_config`.
            layers: Gives the shape [N, K] of every linear layer by its name.
        """
        self.checkpoint, self.turns = checkpoint, dict[str, Turn]()
        self.notes: list[str] = []
        self.stored: tuple[str, ...] = ()
        section = settings.values.get("transform_config")
        where = f"{settings.where}.transform_config"
        if not section:
            return
        groups = section.get("config_groups") if isinstance(section, dict) else None
        if not isinstance(groups, dict):
            raise BadFileError("transforms without groups", where=where, found=repr(section)[:100])
        for name, values in groups.items():
            self._add(str(name), _object(values, f"{where}.config_groups.{name}"), layers(), where)

    def _add(self, name: str, group: Mapping[str, Any], layers: Shapes, where: str) -> None:
        where = f"{where}.config_groups.{name}"
        kind = group.get("type")
        if kind not in _TYPES:
            raise UnsupportedError(
                "a transform of this type is not read", where=f"{where}.type", found=kind, allowed=", ".join(_TYPES)
            )
        if group.get("randomize"):
            raise UnsupportedError(
                "a transform in an order of its own is not read", where=f"{where}.randomize", found=True
            )
        places = list(_places(group, where))
        self._check_heads(name, kind, [place for place in places if place.location in _HEADS], where)
        matrices = [
            n for n in self.checkpoint.entries if any(f".{name}_{at}.weight" in n for at in (*_ONLINE, *_HEADS))
        ]
        self.stored += tuple(matrices)
        for place in places:
            for module, shape in layers.items() if place.location in _ONLINE else ():
                if place.means(module):
                    step = self._step(name, kind, group, place, module, shape, matrices)
                    self._turn(f"{module}.weight", place.location, step)

    def _check_heads(self, name: str, kind: str, places: list[_Place], where: str) -> None:
        """Refuses what is done to queries and keys unless it takes itself back."""
        if not places:
            return
        both = {place.location for place in places} == set(_HEADS) and len({place.inverse for place in places}) == 1
        if kind == "random-matrix" or not both:
            raise UnsupportedError(
                "queries or keys that are turned are not built",
                where=f"{where}.apply",
                found=", ".join(place.location for place in places),
                allowed="both by one orthogonal matrix",
            )
        self.notes.append(f"not applied: {name} turns queries and keys alike, which leaves their products as they are")

    def _turn(self, weight: str, location: str, step: Step) -> None:
        before = self.turns.get(weight, Turn())
        if location == "input":
            self.turns[weight] = Turn((*before.before, step), before.after, before.behind)
        else:
            self.turns[weight] = Turn(before.before, before.after, (*before.behind, step))

    def _step(
        self,
        name: str,
        kind: str,
        group: Mapping[str, Any],
        place: _Place,
        module: str,
        shape: tuple[int, ...],
        matrices: list[str],
    ) -> Step:
        columns = shape[1] if place.location == "input" else shape[0]
        size = columns if group.get("head_dim") is None else group["head_dim"]
        if type(size) is not int or size < 1 or columns % size:
            raise BadFileError(
                "a transform does not divide a layer",
                where=f"{place.where}: {module}",
                found=size,
                allowed=str(columns),
            )
        stored = self._matrix(module, f"{name}_{place.location}", size, matrices)
        if kind == "hadamard" and (not stored or self._is_sylvester(stored, size)):
            if size & (size - 1):
                raise UnsupportedError(
                    "a Hadamard matrix of this size is not known", where=f"{place.where}: {module}", found=size
                )
            return Step("Hadamard", size=size)
        if not stored:
            raise BadFileError(
                "the matrix of a transform is not stored", where=f"{module}.{name}_{place.location}.weight", found=kind
            )
        factor = 1 / math.sqrt(size) if kind != "random-matrix" else 1.0
        turned = place.inverse and kind != "random-matrix"  # of a matrix that is no rotation its inverse is stored
        return Step("MatMul", stored, size, factor, turned)

    def _matrix(self, module: str, suffix: str, size: int, matrices: list[str]) -> str:
        """The name of the matrix of a layer: its own, or the one that it shares."""
        own = f"{module}.{suffix}.weight"
        if own in matrices:
            return own
        fits = [n for n in matrices if self.checkpoint.entries[n].shape == (size, size)]
        same = [n for n in fits if n.endswith(f".{suffix}.weight")]
        return next(iter(same or fits), "")

    def _is_sylvester(self, name: str, size: int) -> bool:
        if size & (size - 1):
            return False
        return np.array_equal(self.checkpoint.plain(name).decode(), sylvester(size))


def _object(values: object, where: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise BadFileError("a transform is no object", where=where, found=repr(values)[:100])
    return values


def _places(group: Mapping[str, Any], where: str) -> Iterator[_Place]:
    entries = group.get("apply") or []
    if not isinstance(entries, list):
        raise BadFileError("where a transform is applied is no list", where=f"{where}.apply", found=repr(entries)[:100])
    for i, values in enumerate(entries):
        entry, place = _object(values, f"{where}.apply[{i}]"), f"{where}.apply[{i}]"
        location = entry.get("location")
        if location not in (*_FUSED, *_ONLINE, *_HEADS):
            raise UnsupportedError(
                "a transform is applied where nothing is known to be",
                where=f"{place}.location",
                found=location,
                allowed=", ".join((*_FUSED, *_ONLINE, *_HEADS)),
            )
        targets, ignore = (_listed(entry.get(key), f"{place}.{key}") for key in ("targets", "ignore"))
        yield _Place(place, location, bool(entry.get("inverse")), targets, ignore)


def _listed(value: object, where: str) -> tuple[Target, ...]:
    return target_names([value] if isinstance(value, str) else value, where)
