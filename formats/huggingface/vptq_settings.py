"""The configuration of VPTQ: the sizes of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.huggingface.known import STORED, Known, because
from qdeploy.formats.huggingface.words import Settings

_MOST = 1 << 16
LAYER = Known(
    (
        *("in_features", "out_features", "group_num", "group_size", "outlier_size", "vector_quant_dim"),
        *("vector_lens", "num_centroids", "num_res_centroids"),
        *("is_indice_packed", "indices_as_float", "enable_perm", "enable_norm"),
    ),
    because(STORED, "bias", "norm_dim"),
)
"""The settings of a layer."""


@dataclass(frozen=True)
class Layout:
    """The sizes of a layer.

    Attributes:
        rows: N.
        columns: K.
        length: Of a vector.
        entries: Of the codebook of each group.
        residuals: Entries of the residual codebook; 0: there is none.
        groups: Of columns, each with codebooks of its own.
        group: Columns of a group.
        outliers: Columns with a codebook of their own.
        outlier_length: Of their vectors.
        outlier_entries: Of their codebook.
        is_packed: Whether codes of both codebooks are one bit stream.
        is_float: Whether codes are stored as floats of the same bits.
        is_permuted: Whether columns are stored in another order.
        is_scaled: Whether columns have a scale and an offset.
    """

    rows: int
    columns: int
    length: int
    entries: int
    residuals: int
    groups: int
    group: int
    outliers: int
    outlier_length: int
    outlier_entries: int
    is_packed: bool
    is_float: bool
    is_permuted: bool
    is_scaled: bool

    @property
    def bits(self) -> int:
        """Of an index into the codebook."""
        return max(1, (self.entries - 1).bit_length()) if self.is_packed else 16

    @property
    def residual_bits(self) -> int:
        """Of an index into the residual codebook; 0: there is none."""
        if not self.residuals:
            return 0
        return max(1, (self.residuals - 1).bit_length()) if self.is_packed else 16

    @property
    def vectors(self) -> int:
        """Vectors down a column."""
        return -(-self.rows // self.length)

    @property
    def outlier_vectors(self) -> int:
        """Vectors down a column of outliers."""
        return -(-self.rows // self.outlier_length)


class Layers:
    """The settings of all layers."""

    def __init__(self, settings: Settings) -> None:
        self.where = settings.where
        self._own, self._shared = (_table(settings, f) for f in ("config_for_layers", "shared_layer_config"))

    def of(self, module: str) -> Layout:
        """The sizes of a layer.

        Raises:
            BadFileError: They are not said, or contradict each other.
            UnsupportedError: Vectors along the rows, or too many entries.
        """
        kinds = [part for part in reversed(module.split(".")) if part in self._shared]
        field = f"config_for_layers.{module}" if module in self._own else f"shared_layer_config.{(kinds or ['?'])[0]}"
        values = self._own.get(module) or (self._shared[kinds[0]] if kinds else None)
        where = f"{self.where}.{field}"
        if not isinstance(values, dict):
            raise BadFileError("the settings of a quantized layer are missing", where=where, found=module)
        return _Reader(values, where).layout()


def _table(settings: Settings, field: str) -> Mapping[str, Any]:
    value = settings.values.get(field) or {}
    if not isinstance(value, dict):
        raise BadFileError("settings of layers are no object", where=f"{settings.where}.{field}")
    return value


class _Reader:
    """The settings of one layer, checked as they are read."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def layout(self) -> Layout:
        LAYER.check(Settings(self.values, self.where))
        if self.values.get("vector_quant_dim", "out") != "out":
            raise UnsupportedError(
                "vectors along the rows are not read", where=f"{self.where}.vector_quant_dim", allowed="out"
            )
        (outlier_length, length), (outlier_entries, entries) = self._pair("vector_lens"), self._pair("num_centroids")
        residual = self._pair("num_res_centroids")
        outliers, coded = self._integer("outlier_size", 0, -1), outlier_length > 1 and outlier_entries > 0
        self._check(outliers <= 0 or coded, "outlier_size", outliers, "0 without a codebook of outliers")
        outliers = max(0, outliers) if coded else 0
        columns, groups = self._integer("in_features"), self._integer("group_num", 1)
        group = self.values.get("group_size")
        group = (columns - outliers) // groups if group in (-1, None) else self._integer("group_size")
        self._check(residual[0] <= 0 or not outliers, "num_res_centroids", residual, "no residual of outliers")
        self._check(outliers + groups * group == columns, "group_size", group, f"{columns - outliers} / {groups}")
        self._check(length >= 1 and 1 <= entries <= _MOST, "num_centroids", entries, f"1 to {_MOST}")
        self._check(residual[1] <= _MOST and outlier_entries <= _MOST, "num_centroids", residual[1], f"to {_MOST}")
        packed = bool(self.values.get("is_indice_packed", True))
        for field, count in (("num_centroids", entries), ("num_res_centroids", max(1, residual[1]))):
            self._check(not packed or count & (count - 1) == 0, field, count, "a power of two")
        return Layout(
            self._integer("out_features"),
            columns,
            length,
            entries,
            max(0, residual[1]),
            groups,
            group,
            outliers,
            max(1, outlier_length),
            outlier_entries,
            packed,
            bool(self.values.get("indices_as_float", False)) and not packed,
            bool(self.values.get("enable_perm", True)),
            bool(self.values.get("enable_norm", True)),
        )

    def _pair(self, field: str) -> tuple[int, int]:
        value = self.values.get(field)
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int for n in value):
            raise BadFileError(
                "a setting is no pair of integers", where=f"{self.where}.{field}", found=repr(value)[:80]
            )
        return (value[0], value[1])

    def _integer(self, field: str, default: int = -1, least: int = 1) -> int:
        value = self.values.get(field, default)
        if type(value) is not int or not least <= value < 1 << 40:
            raise BadFileError("a size is impossible", where=f"{self.where}.{field}", found=repr(value)[:80])
        return value

    def _check(self, fits: bool, field: str, found: object, allowed: str) -> None:
        if not fits:
            raise BadFileError(
                "sizes contradict each other", where=f"{self.where}.{field}", found=found, allowed=allowed
            )
