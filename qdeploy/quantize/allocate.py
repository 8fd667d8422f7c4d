"""Bits per layer: the integer programme of HAWQ-V3 (arXiv 2011.10680, section 3.4), AdaQuant and MixDQ.

    minimize    sum over layers of loss[layer][bits]
    subject to  one choice of bits per layer; sum of cost[layer][bits] <= limit; tied layers choose alike

The cost is a size, a number of bit operations or a measured latency; the loss one of `sensitivity.py`. It is a knapsack
with several choices per item, solved exactly by scipy's HiGHS. Layers that take the same value, as the first
convolution of a block and that of its shortcut, are tied, since one rescaling serves both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.extras import require
from qdeploy.ir.graph import Graph

Widths = tuple[int, int]
"""Of the weights and of the input of a layer, as `qdeploy.integer.plan.Bits.layers` takes them."""
Choices = Mapping[str, Mapping[Widths, float]]
"""A number for each choice of bits of each layer."""
LAYERS = frozenset({"Conv", "Linear", "Gemm"})


@dataclass(frozen=True)
class Allocation:
    """What was found.

    Attributes:
        layers: (weights, activations) by layer.
        loss: The sum of the losses.
        cost: The sum of the costs.
    """

    layers: dict[str, Widths]
    loss: float
    cost: float


def parse_choices(text: str) -> tuple[Widths, ...]:
    """Choices of bits as people write them: `8,4` (weights, inputs of 8), or `8x8,4x4` (weights x inputs).

    Raises:
        BadArgumentError: Another form, bits that no layer can have, or the same twice.
    """
    matches = [re.fullmatch(r"\s*([248])(?:x([2-8]))?\s*", part) for part in text.split(",")]
    choices = [(int(match[1]), int(match[2] or 8)) for match in matches if match]
    if len(choices) != len(matches) or len(set(choices)) != len(choices):
        raise BadArgumentError(
            "not a list of choices of bits",
            found=text,
            allowed="weights of 2, 4 or 8 bits: 8,4; with inputs of 2 to 8: 8x8,4x4",
        )
    return tuple(choices)


def show_choice(bits: Widths) -> str:
    """A choice as `parse_choices` reads it: `4x8`."""
    return f"{bits[0]}x{bits[1]}"


def sizes(weights: Mapping[str, int], options: Sequence[Widths]) -> dict[str, dict[Widths, float]]:
    """Bytes of the codes of each layer; `weights` is how many it has."""
    return {name: {bits: count * bits[0] / 8 for bits in options} for name, count in weights.items()}


def bit_operations(products: Mapping[str, int], options: Sequence[Widths]) -> dict[str, dict[Widths, float]]:
    """BOPS: products of each layer, times the bits of both factors."""
    return {name: {bits: float(count * bits[0] * bits[1]) for bits in options} for name, count in products.items()}


def limit_between(costs: Choices, ratio: float, ties: Sequence[Collection[str]] = ()) -> float:
    """The limit low (1 - ratio) + high ratio between the least and the greatest cost of all layers together."""
    low, high = cost_range(costs, ties)
    return low * (1 - ratio) + high * ratio


def cost_range(costs: Choices, ties: Sequence[Collection[str]] = ()) -> tuple[float, float]:
    """The least and the greatest cost that there is, where tied layers choose alike."""
    groups = _groups(costs, ties)
    totals = [
        [sum(costs[name][bits] for name in group) for bits in common]
        for group, common in zip(groups, _common(costs, groups), strict=True)
    ]
    return sum(min(part) for part in totals), sum(max(part) for part in totals)


def shared_inputs(graph: Graph) -> list[tuple[str, ...]]:
    """Layers of a graph that take the same value, by the names of their weights."""
    takers: dict[str, dict[str, None]] = {}
    for node in graph.nodes:
        if node.op in LAYERS:
            takers.setdefault(node.inputs[0], {})[node.inputs[1]] = None
    return [tuple(names) for names in takers.values() if len(names) > 1]


def allocate(losses: Choices, costs: Choices, limit: float, ties: Sequence[Collection[str]] = ()) -> Allocation:
    """Chooses the bits of every layer so that the loss is least within a limit.

    Args:
        losses: By layer and bits; not negative.
        costs: By layer and bits, the same ones.
        limit: Of the sum of the costs.
        ties: Layers that get the same bits. Names that `losses` does not have are passed over.

    Raises:
        BadArgumentError: Losses and costs do not fit each other, a number is not finite, or no choice meets the limit.
        UnsupportedError: scipy is not installed.
    """
    _check(losses, costs, limit)
    groups = _groups(losses, ties)
    common = _common(losses, groups)
    loss, cost = (
        [
            [sum(part[name][bits] for name in group) for bits in options]
            for group, options in zip(groups, common, strict=True)
        ]
        for part in (losses, costs)
    )
    least = sum(min(part) for part in cost)
    if least > limit:
        raise BadArgumentError("no choice of bits meets the limit", found=limit, allowed=f"{least} or more")
    picked = _solve(loss, cost, limit)
    layers = {name: common[i][picked[i]] for i, group in enumerate(groups) for name in group}
    spent, lost = (sum(row[k] for row, k in zip(part, picked, strict=True)) for part in (cost, loss))
    return Allocation({name: layers[name] for name in losses}, lost, spent)


def _check(losses: Choices, costs: Choices, limit: float) -> None:
    if not losses or losses.keys() != costs.keys():
        raise BadArgumentError(
            "losses and costs of different layers", found=", ".join(costs) or "none", allowed=", ".join(losses)
        )
    for name, choice in losses.items():
        if not choice or choice.keys() != costs[name].keys():
            raise BadArgumentError("losses and costs of different bits", where=name, found=list(costs[name]))
        numbers = [*choice.values(), *costs[name].values(), limit]
        if not all(np.isfinite(n) and n >= 0 for n in numbers):
            raise BadArgumentError("a loss, cost or limit that is negative or not finite", where=name, found=numbers)


def _common(losses: Choices, groups: list[list[str]]) -> list[list[Widths]]:
    """The choices of each group."""
    common = [[bits for bits in losses[group[0]] if all(bits in losses[name] for name in group)] for group in groups]
    if not all(common):
        raise BadArgumentError("tied layers have no choice of bits in common", found=groups[common.index([])])
    return common


def _groups(losses: Choices, ties: Sequence[Collection[str]]) -> list[list[str]]:
    """Layers that choose together, each layer once."""
    group = {name: [name] for name in losses}
    for tie in ties:
        members = [name for name in tie if name in losses]
        for other in members[1:]:
            first, second = group[members[0]], group[other]
            if first is not second:
                first.extend(second)
                group.update((name, first) for name in second)
    return list({id(names): names for names in group.values()}.values())


def _solve(loss: list[list[float]], cost: list[list[float]], limit: float) -> list[int]:
    """The choice of each group: one binary variable per group and choice.

    Costs count from the least of their group, in units of what is left above all of these; a choice that alone takes
    more is left out. So the numbers of the programme lie between 0 and 1, and the solver's tolerances mean something.
    """
    room = limit - sum(min(part) for part in cost)
    extra = [[c - min(part) for c in part] for part in cost]
    allowed = [[e <= room for e in part] for part in extra]
    cheapest = [
        min((k for k in range(len(part)) if part[k] == 0), key=losses.__getitem__)
        for part, losses in zip(extra, loss, strict=True)
    ]
    if room <= 0:
        return cheapest
    # A choice that is not allowed has no share: divided by a room of next to nothing it would not be a number.
    units = [[e / room if e <= room else 0.0 for e in part] for part in extra]
    for slack in (0.0, 1e-6, 1e-5, 1e-4, 1e-3):  # beyond the limit by less than the solver tells apart: once more
        picked = _programme(loss, units, allowed, 1 - slack)
        if picked is not None and sum(part[k] for part, k in zip(cost, picked, strict=True)) <= limit:
            return picked
    return cheapest


def _programme(
    loss: list[list[float]], cost: list[list[float]], allowed: list[list[bool]], limit: float
) -> list[int] | None:
    """Solves it; None where the solver finds nothing."""
    require("scipy", purpose="choosing bits")
    from scipy.optimize import Bounds, LinearConstraint, milp

    counts = [len(part) for part in loss]
    flat_loss, flat_cost = (np.concatenate([np.asarray(p, np.float64) for p in part]) for part in (loss, cost))
    one = np.repeat(np.eye(len(counts)), counts, axis=1)  # [groups, choices]
    may = np.concatenate([np.asarray(part, np.float64) for part in allowed])
    rules = [LinearConstraint(one, 1, 1), LinearConstraint(flat_cost * may, -np.inf, limit)]
    solution = milp(
        flat_loss / max(float(flat_loss.max()), 1e-300),
        integrality=np.ones(flat_loss.size),
        bounds=Bounds(0, may),
        constraints=rules,
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return None
    return [int(np.argmax(part)) for part in np.split(solution.x, np.cumsum(counts)[:-1])]
