"""How large numbers are, and how large their errors: energies, and signal-to-noise ratios in decibels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def energy(values: npt.NDArray[Any]) -> float:
    """The sum of squares, added up in float64."""
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), of two energies; infinite where there is no noise, or no signal."""
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


def combined_decibels(one: float, two: float) -> float:
    """The signal-to-noise ratio in dB of two steps that each have one, as if their errors were independent."""
    noise = sum(10 ** (-snr / 10) for snr in (one, two))
    return decibels(1.0, noise)
