"""The method `ladder` and its options: `ladder:profile=low,effort=full,group=128,calibrate=FILE`.

What depends on the data is measured once, on the float model. Without data only weights are looked at, which is far
worse below 4 planes, and said so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Float32, QTensor, Term
from qdeploy.measure import decibels, energy
from qdeploy.options import option
from qdeploy.quantize.contract import Grid, Needs, Statistics, Weight
from qdeploy.quantize.ladder.affine import Affine
from qdeploy.quantize.ladder.fit import PROFILES, Fitted, fit
from qdeploy.quantize.ladder.imported import Imported, has_planes
from qdeploy.quantize.ladder.loops import Loops
from qdeploy.quantize.ladder.metric import DAMPING, Metric
from qdeploy.quantize.ladder.tensor import ladder_tensor, rounded
from qdeploy.store.spill import Spill

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ladder:
    """The method and its settings.

    Attributes:
        profile: Where on the ladder quality is to peak (`fit.PROFILES`).
        effort: "fast": rounding passes alone. "full": and coordinate descent. "best": and targets that make up for what
            the layers before have become at the same level.
        group: Columns that share a scale.
        calibrate: The text, ids or statistics that the inputs of layers are known from; empty: they are not.
        spill: Where finished ladders are kept.
    """

    TYPES = ()

    profile: str = option(
        "low",
        "Where quality peaks: low (2 planes), balanced, high (4 planes), deep (eight planes).",
        choices=tuple(PROFILES),
    )
    effort: str = option(
        "full",
        "fast; full: coordinate descent besides; best: layers make up for those before, level by level.",
        choices=("fast", "full", "best"),
    )
    group: int = option(128, "Columns that share a scale.", least=16, most=1 << 20)
    calibrate: str = option("", "A text, token ids or statistics that inputs of layers are known from.", metavar="FILE")
    spill: Spill = field(default_factory=Spill, compare=False, repr=False)

    @property
    def needs(self) -> Needs:
        """Second moments and means of the inputs; for `best` of every level, in order."""
        streams = PROFILES[self.profile].planes - 1 if self.effort == "best" and self.calibrate else 0
        return Needs(
            frozenset({"moments", "means"}),
            self.calibrate,
            streams=streams,
            integers=True,
            costs=True,
            without="it sees weights alone, and is far worse below four planes; give calibrate=FILE",
        )

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Fits the ladder of one matrix, now; of integers, the levels below the last, which stays what it is.

        Args:
            weight: What to fit. Where the mean of its inputs is known, `weight.shifts` gets what its layer is to add to
                the outputs at the last level; the biases of other levels are against that.
            statistics: Of its inputs; empty: each column is as large as the others. Those of rungs behind the first.
            grid: Has no meaning for ladders.
        """
        if has_planes(weight.tensor):
            return self._imported(weight, statistics)
        values = weight.tensor.decode()
        if not np.isfinite(values).all():
            raise BadFileError(
                "a weight is infinite or not a number", where=weight.name, todo="Leave it out with skip=REGEX."
            )
        group = min(self.group, -(-values.shape[1] // 16) * 16)
        if not statistics or statistics[0].moments is None:
            loops = Loops(Metric.diagonal(np.ones(values.shape[1]), group))
            return self._finished(weight, values, self._fitted(values, loops), None)
        moment = centred(statistics[0])
        rungs = _by_level(statistics[1:], PROFILES[self.profile].planes)
        targets = [made_up(values, moment, statistics[0], rung) for rung in rungs]
        fitted = self._fitted(values, Loops(Metric.of(moment, group)), targets)
        return self._finished(weight, values, fitted, moment, statistics[0], rungs)

    def _fitted(self, values: Float32, loops: Loops, targets: Sequence[Float32] = ()) -> Fitted:
        """Codes and scales by the effort and the profile."""
        profile = PROFILES[self.profile]
        if self.effort == "fast":
            return fit(values, loops, profile, sweeps=0, targets=targets)
        return fit(values, loops, profile, targets=targets)

    def _imported(self, weight: Weight, statistics: Sequence[Statistics]) -> QTensor:
        """The ladder of a source's integers."""
        own, known = Imported(weight.name, weight.tensor), statistics[0] if statistics else None
        if known is not None and known.moments is None:
            known = None
        moment = None if known is None else centred(known)
        affine = Affine(damped(np.eye(own.codes.shape[1]) if moment is None else moment), *own.groups_with_columns)
        rungs = _by_level(statistics[1:], own.planes) if known is not None else ()
        params, lower = [], range(1, own.planes)
        for level in lower:
            target = own.values
            if known is not None and moment is not None and rungs:
                target = made_up(own.values, moment, known, rungs[level - 1])
            params.append(own.refitted(affine, target, level))
        decoded = [own.decoded(level, params[level - 1]) for level in lower]
        biases: list[Float32 | None] = [None] * own.planes
        if known is not None and known.means is not None:
            wanted, means = own.values @ known.means, [_means(rung) for rung in rungs] or [known.means] * own.planes
            biases = [(wanted - values @ means[at]).astype(np.float32) for at, values in enumerate(decoded)] + [None]
        lost = [*relative_errors(own.values, decoded, moment), 0.0]
        return own.tensor([*params, own.top], biases, lost, self.spill)

    def _finished(
        self,
        weight: Weight,
        values: Float32,
        fitted: Fitted,
        moment: Float64 | None,
        known: Statistics | None = None,
        rungs: Sequence[Statistics] = (),
    ) -> QTensor:
        """The tensor: scales as they are stored, errors measured, biases that keep the mean of the outputs.

        Args:
            weight: Whose it is.
            values: Its numbers.
            fitted: Codes and scales.
            moment: About the mean, float64 [K, K]; None: errors are those of the numbers themselves.
            known: Of the inputs; None: there are no biases.
            rungs: Of the inputs at each level, where they differ.
        """
        stored, scales = rounded(fitted)
        planes = len(scales)
        noise = energy(values - stored.decoded(planes - 1))
        weight.losses[weight.name] = decibels(energy(values), noise)
        biases: list[Float32 | None] = [None] * planes
        if known is not None and known.means is not None:
            wanted, own = values @ known.means, [_means(rung) for rung in rungs] or [known.means] * planes
            exact = [wanted - stored.decoded(level) @ own[level] for level in range(planes)]
            weight.shifts[weight.name] = _vector(exact[-1].astype(np.float32))
            biases = [(bias - exact[-1]).astype(np.float32) for bias in exact[:-1]] + [None]
        lost = relative_errors(values, [stored.decoded(level) for level in range(planes)], moment)
        return ladder_tensor(stored, scales, biases, lost, weight.tensor.dtype, self.spill)


def centred(known: Statistics) -> Float64:
    """The second moment about the mean, float64 [K, K]: biases take the mean's part."""
    moment: Float64 = np.asarray(known.moments) - np.outer(_means(known), _means(known))
    return moment


def made_up(values: Float32, moment: Float64, known: Statistics, rung: Statistics) -> Float32:
    """What a weight is to stand for where its inputs are y, so that its outputs are nearest to those of x.

        W (x y' about the means) (y y' about the means, damped) ^ -1

    Args:
        values: float32 [rows, K].
        moment: Of the float model's inputs x, about the mean.
        known: Of x.
        rung: Of y.
    """
    own = centred(rung)
    cross = np.asarray(rung.cross) - np.outer(_means(known), _means(rung))
    change = np.linalg.solve(damped(own), (cross - own).T).T
    target: Float32 = values + (values @ change).astype(np.float32)
    return target


def damped(moment: Float64) -> Float64:
    """A second moment [K, K] with a share of its mean diagonal added."""
    added: Float64 = moment + np.eye(len(moment)) * max(DAMPING * float(np.diag(moment).mean()), 1e-30)
    return added


def _by_level(rungs: Sequence[Statistics], planes: int) -> tuple[Statistics, ...]:
    """The statistics of each level; levels below those that are followed make up for the least of these."""
    return ((rungs[0],) * planes + tuple(rungs))[-planes:] if rungs else ()


def _means(known: Statistics) -> Float64:
    return np.zeros(len(np.asarray(known.moments))) if known.means is None else known.means


def relative_errors(values: Float32, levels: Sequence[Float32], moment: Float64 | None) -> list[float]:
    """Squared error of every level's weight over the energy of the weight, both by a moment where there is one."""
    metric = np.asarray(moment if moment is not None else np.eye(1), np.float32)

    def size(array: Float32) -> float:
        product = array @ metric if moment is not None else array
        return float(np.einsum("ij,ij->", product, array, dtype=np.float64))

    whole = size(values)
    lost = [size(values - own) / whole if whole > 0 else 0.0 for own in levels]
    return [min(max(error, 0.0), 1.0) if math.isfinite(error) else 1.0 for error in lost]


def _vector(values: Float32) -> QTensor:
    buffer = Buffer.of("bias", np.ascontiguousarray(values, np.float32), "F32")
    return QTensor(buffer.shape, "F32", (Term(Codes(buffer.shape, (buffer,), PLAIN, "f32")),))
