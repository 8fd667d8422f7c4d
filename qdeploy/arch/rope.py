"""Rotary frequencies: every scaling variant becomes one vector and one factor.

Pair i of a head turns by position * inv_freq[i] with inv_freq[i] = theta^(-2 i / rotary_dim) (arXiv 2104.09864). The
variants change that vector once and for all:

    linear    every frequency divided by `factor` (position interpolation, arXiv 2306.15595)
    dynamic   NTK-aware theta, recomputed for each length beyond `max_position_embeddings`; up to there no scaling
    llama3    wavelengths above a border divided by `factor`, a smooth passage below it (Llama 3.1)
    yarn      a ramp between interpolated and original frequencies, and a factor on cosine and sine (arXiv 2309.00071)
    longrope  one divisor per pair (arXiv 2402.13753), from one of two tables: the short one up to
              `original_max_position_embeddings` tokens, the long one beyond
    proportional  exponents -2 i / head_dim; pairs beyond `partial_rotary_factor` of the head do not turn (Gemma 4)

Both spellings are read: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5). Each
step is rounded to float32 where transformers rounds it, so that the vectors agree; only powers are taken in float64
first, which makes them the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qdeploy.arch.config import Config
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.tensor import Float32

_WIDEST_HEAD = 1 << 16  # no published head has more than 1024; frequencies are computed before tensors are looked at

_FIELDS = frozenset(
    (
        "type",
        "rope_type",
        "rope_theta",
        "factor",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "short_factor",
        "long_factor",
        "finetuned",
        "alpha",
        "max_position_embeddings",
        "llama_4_scaling_beta",
    )
)


@dataclass(frozen=True)
class Rope:
    """Rotary positions as data.

    Attributes:
        inv_freq: Angle per position of each pair, float32 [rotary_dim / 2].
        rotary_dim: How many elements of a head are rotated.
        factor: Multiplied into cosine and sine.
        context: How many positions it is good for.
        note: What a user should know about the choice that was made; "" for nothing.
        long: Frequencies of longer sequences, as `ir/attention.py` takes them; None where there is one vector for all.
    """

    inv_freq: Float32
    rotary_dim: int
    factor: float
    context: int
    note: str = ""
    long: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Source:
    """What a variant is computed from."""

    config: Config  # of the rope dictionary
    theta: float
    dim: int
    context: int
    original: int
    head_dim: int

    def plain(self) -> Float32:
        return np.float32(1) / self.powers()

    def powers(self) -> Float32:
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        powers: Float32 = np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)
        return powers

    def rope(self, inv_freq: Float32, factor: float = 1.0, note: str = "") -> Rope:
        return Rope(inv_freq.astype(np.float32), self.dim, factor, self.context, note)


def read_rope(config: Config, head_dim: int, context: int) -> Rope:
    """Reads the rotary frequencies of a decoder.

    Args:
        config: The whole config.json.
        head_dim: Extent of a head.
        context: `max_position_embeddings`.

    Raises:
        UnsupportedError: An unknown kind, or an unknown field of a known kind.
        BadFileError: A field is missing or out of range.
    """
    if head_dim > _WIDEST_HEAD:
        raise config.contradiction(
            "head_dim, or hidden_size, num_attention_heads", f"a head of {head_dim}", f"at most {_WIDEST_HEAD}"
        )
    scaling = _dictionary(config)
    theta = scaling.positive("rope_theta", config.positive("rope_theta", 10000.0))
    part = scaling.positive("partial_rotary_factor", config.positive("partial_rotary_factor", 1.0))
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    proportional = kind == "proportional"
    dim = int(head_dim * part) // 2 * 2 if proportional else int(head_dim * part)
    if dim % 2 or (proportional and head_dim % 2) or not 2 <= dim <= head_dim or theta == 1:
        raise config.contradiction(
            "head_dim, partial_rotary_factor, rope_theta",
            f"rotary extent {dim}",
            f"an even number up to {head_dim}, and a theta other than 1",
        )
    original = config.size(
        "original_max_position_embeddings", scaling.size("original_max_position_embeddings", context)
    )
    if kind not in _KINDS:
        raise UnsupportedError(
            "an unknown kind of rotary scaling",
            where=f"{scaling.where}: rope_type",
            found=kind,
            allowed=", ".join(_KINDS),
        )
    return _KINDS[kind](_Source(scaling, theta, dim, context, original, head_dim))


def for_layers(config: Config, kind: str) -> Config:
    """The configuration as layers of a kind see it, where `rope_parameters` has an entry per kind of layer."""
    parameters = config.fields.get("rope_parameters")
    if not isinstance(parameters, dict) or not isinstance(parameters.get(kind), dict):
        return config
    return Config({**config.fields, "rope_parameters": parameters[kind], "rope_scaling": None}, config.where)


def with_default_rotations(config: Config, rotations: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration, with the rotations of its kinds of layers where it describes none."""
    if config.has("rope_parameters"):
        return config
    return Config(
        {**config.fields, "rope_parameters": {kind: dict(of) for kind, of in rotations.items()}}, config.where
    )


def with_default_part(config: Config, part: float) -> Config:
    """The configuration, with so much of each head rotated where it does not say how much."""
    parameters = config.fields.get("rope_parameters")
    inside = isinstance(parameters, dict) and parameters.get("partial_rotary_factor") is not None
    if config.has("partial_rotary_factor") or inside:
        return config
    return Config({**config.fields, "partial_rotary_factor": part}, config.where)


def _dictionary(config: Config) -> Config:
    name = "rope_scaling" if config.fields.get("rope_scaling") else "rope_parameters"
    fields = config.fields.get(name) or {}
    if not isinstance(fields, dict):
        raise BadFileError("rotary scaling is not an object", where=f"{config.where}: {name}", found=fields)
    for key, value in fields.items():
        if key not in _FIELDS and value is not None:
            raise UnsupportedError(
                "an unsupported field in the configuration",
                where=f"{config.where}: {name}: {key}",
                found=value,
                allowed=", ".join(sorted(_FIELDS)),
            )
    return Config(fields, f"{config.where}: {name}")


def _default(source: _Source) -> Rope:
    return source.rope(source.plain())


def _linear(source: _Source) -> Rope:
    return source.rope(source.plain() / np.float32(source.config.positive("factor")))


def _dynamic(source: _Source) -> Rope:
    if source.config.fields.get("alpha"):  # HunYuan's: one theta for all lengths
        theta = source.theta * source.config.positive("alpha") ** (source.dim / (source.dim - 2))
        return source.rope(replace(source, theta=theta).plain())
    factor = source.config.positive("factor")
    long = {"beyond": source.context, "theta": source.theta, "factor": factor, "dim": source.dim}
    return replace(source.rope(source.plain()), long=long, context=int(source.context * factor))


def _llama3(source: _Source) -> Rope:
    config, inv_freq = source.config, source.plain()
    factor, low, high = (config.positive(n) for n in ("factor", "low_freq_factor", "high_freq_factor"))
    if low == high:
        raise config.contradiction("low_freq_factor, high_freq_factor", low, "two different numbers")
    wavelength = np.float32(2 * math.pi) / inv_freq
    long, short = np.float32(source.original / low), np.float32(source.original / high)
    scaled = np.where(wavelength > long, inv_freq / np.float32(factor), inv_freq)
    smooth = (np.float32(source.original) / wavelength - np.float32(low)) / np.float32(high - low)
    mixed = (1 - smooth) * scaled / np.float32(factor) + smooth * scaled
    between = (wavelength >= short) & (wavelength <= long)
    return source.rope(np.where(between, mixed, scaled))


def _yarn(source: _Source) -> Rope:
    config = source.config
    factor = config.positive("factor", source.context / source.original)
    powers = source.powers()
    original, interpolated = np.float32(1) / powers, np.float32(1) / (np.float32(factor) * powers)
    keep = 1 - _ramp(*_correction_range(source), source.dim // 2)
    return source.rope(interpolated * (1 - keep) + original * keep, _attention_factor(config, factor))


def _attention_factor(config: Config, factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if config.has("attention_factor"):
        return config.positive("attention_factor")
    if config.fields.get("mscale") and config.fields.get("mscale_all_dim"):
        return magnitude(config.number("mscale")) / magnitude(config.number("mscale_all_dim"))
    return magnitude(1.0)


def _correction_range(source: _Source) -> tuple[float, float]:
    def pair(rotations: float) -> float:  # the pair that turns that often within the original context
        return source.dim * math.log(source.original / (rotations * 2 * math.pi)) / (2 * math.log(source.theta))

    config = source.config
    low = pair(config.number("beta_fast", 32.0) or 32.0)
    high = pair(config.number("beta_slow", 1.0) or 1.0)
    if config.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, source.dim - 1)


def _ramp(low: float, high: float, count: int) -> Float32:
    width = high - low if high != low else 0.001
    ramp = (np.arange(count, dtype=np.float32) - np.float32(low)) / np.float32(width)
    clipped: Float32 = np.clip(ramp, 0, 1).astype(np.float32)
    return clipped


def _longrope(source: _Source) -> Rope:
    config, half = source.config, source.dim // 2
    short, long = (
        np.array(config.entries(f"{kind}_factor", half, (int, float)), np.float32) for kind in ("short", "long")
    )
    for kind, factors in (("short", short), ("long", long)):
        if not np.all(factors > 0):
            raise config.contradiction(f"{kind}_factor", factors.min(), "numbers above 0")
    factor = config.positive("factor", source.context / source.original)
    default = math.sqrt(1 + math.log(factor) / math.log(source.original)) if factor > 1 else 1.0
    rope = source.rope(np.float32(1) / (short * source.powers()), config.positive("attention_factor", default))
    if source.context <= source.original:
        return rope
    beyond = {"beyond": source.original, "inv_freq": np.float32(1) / (long * source.powers())}
    return replace(rope, long=beyond)


def _proportional(source: _Source) -> Rope:
    whole = replace(source, dim=source.head_dim)
    turning = np.arange(source.head_dim // 2) < source.dim // 2
    frequencies = np.where(turning, whole.plain(), np.float32(0)).astype(np.float32)
    return whole.rope(frequencies / np.float32(source.config.positive("factor", 1.0)))


_KINDS: dict[str, Callable[[_Source], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
