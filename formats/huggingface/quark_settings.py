"""The configuration of AMD Quark: which settings a layer has, and what they say of its weight."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.huggingface.known import AUTHOR, INPUTS, KERNEL, SEARCH, STORED, Known, because
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.tensor import Shape

_LIMIT = 1000
SETTINGS = Known(
    ("global_quant_config", "layer_quant_config", "layer_type_quant_config", "exclude", "export", "algo_config"),
    {
        **because(AUTHOR, "version"),
        **because(KERNEL, "quant_mode"),
        **because(INPUTS, "kv_cache_quant_config", "kv_cache_post_rope", "softmax_quant_spec"),
    },
)
LAYER = Known(("weight", "input_tensors", "output_tensors"), because(KERNEL, "target_device"))
WEIGHT = Known(
    ("dtype", "qscheme", "ch_axis", "group_size", "block_size", "scale_format", "symmetric"),
    {
        **because(SEARCH, "observer_cls", "round_method", "scale_calculation_mode", "is_dynamic"),
        **because(STORED, "scale_type", "zero_point_type", "is_scale_quant", "mx_element_dtype"),
        **because(KERNEL, "max_input_numel", "enable_buffer_reuse"),
    },
)
EXPORT = Known(
    ("pack_method", "weight_format"),
    {**because(INPUTS, "kv_cache_group", "min_kv_scale"), **because(SEARCH, "weight_merge_groups")},
)
_CLASS = ("Linear", "<class 'torch.nn.modules.linear.Linear'>", "torch.nn.modules.linear.Linear")


def _is_pair(block: object) -> TypeGuard[list[int]]:
    """Whether a setting is rows and columns of a block."""
    return isinstance(block, list) and len(block) == 2 and all(type(n) is int and n >= 1 for n in block)


@dataclass(frozen=True)
class Spec:
    """What is said of a weight.

    Attributes:
        values: The settings of the codes.
        where: Where they stand, for errors.
        is_nested: Whether scales are quantized themselves.
    """

    values: Mapping[str, Any]
    where: str
    is_nested: bool = False

    @property
    def dtype(self) -> str:
        """The number type of the codes, in Quark's spelling."""
        return str(self.values.get("dtype") or "").lower().removeprefix("dtype.")

    @property
    def scheme(self) -> str:
        """What shares a scale."""
        return str(self.values.get("qscheme") or "").lower().removeprefix("qschemetype.")

    @property
    def scale_format(self) -> str:
        """How scales are stored; "" where it is not said."""
        return str(self.values.get("scale_format") or "").lower()

    def tile(self, shape: Shape) -> Shape:
        """Rows and columns that share a scale."""
        if self.scheme == "per_tensor":
            return shape
        if self.scheme == "per_channel" and self.values.get("ch_axis") in (0, -2, None):
            return (1, shape[1])
        if self.scheme == "per_group" and self.values.get("ch_axis") in (1, -1, None):
            group = Settings(self.values, self.where).group(shape[1], "group_size")
            return (1, self._whole(group, shape[1], "group_size"))
        block = self.values.get("block_size")
        if self.scheme == "per_block" and _is_pair(block):
            return (min(block[0], shape[0]), min(block[1], shape[1]))
        raise UnsupportedError(
            "this way to share scales is not read",
            where=f"{self.where}.qscheme",
            found=f"{self.scheme}, ch_axis {self.values.get('ch_axis')}, block_size {block}",
            allowed="per_tensor, per_channel along axis 0, per_group along axis 1, per_block",
        )

    def _whole(self, group: int, columns: int, field: str) -> int:
        if columns % group:
            raise BadFileError(
                "rows are no whole groups",
                where=f"{self.where}.{field}",
                found=group,
                allowed=f"a divisor of {columns}",
            )
        return group


class Layers:
    """The settings of all layers."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.where = settings, settings.where
        SETTINGS.check(settings)
        self._check_export()
        self._check_algorithms()
        self._named = self._table("layer_quant_config")
        self._classes = self._table("layer_type_quant_config")
        exclude = settings.values.get("exclude") or []
        if not isinstance(exclude, list) or not all(isinstance(p, str) and len(p) < _LIMIT for p in exclude):
            raise BadFileError("patterns are no list of texts", where=f"{self.where}.exclude")
        self._exclude: list[str] = exclude

    @property
    def unapplied(self) -> list[str]:
        """What else is said to be quantized, and stays as it is."""
        kinds = {"kv_cache_quant_config": "the cache of keys and values", "softmax_quant_spec": "the softmax"}
        return [what for field, what in kinds.items() if self.settings.values.get(field)]

    def _check_export(self) -> None:
        export = self.settings.values.get("export") or {}
        if not isinstance(export, dict):
            raise BadFileError("settings are no object", where=f"{self.where}.export", found=repr(export)[:100])
        EXPORT.check(Settings(export, f"{self.where}.export"))
        form = export.get("weight_format")
        if form not in (None, "real_quantized"):
            where = f"{self.where}.export.weight_format"
            raise UnsupportedError(
                "weights of this kind are not read", where=where, found=str(form)[:100], allowed="real_quantized"
            )

    def _check_algorithms(self) -> None:
        """Rotations that are not folded into weights change the network; other algorithms only find codes."""
        algorithms = self.settings.values.get("algo_config") or []
        for algorithm in algorithms if isinstance(algorithms, list) else [algorithms]:
            options = algorithm if isinstance(algorithm, dict) else {"name": algorithm}
            name = str(options.get("name")).lower()
            is_rotation = name in ("rotation", "quarot", "spinquant")
            if is_rotation and (options.get("r4", True) or options.get("online_r1_rotation")):
                raise UnsupportedError(
                    "rotations of activations are not read", where=f"{self.where}.algo_config", found=name
                )

    @property
    def reorders(self) -> bool:
        """Whether codes of 4 bits lie in the order 0, 2, 4, 6, 1, 3, 5, 7."""
        export = self.settings.values.get("export")
        way = export.get("pack_method") if isinstance(export, dict) else None
        if way not in (None, "reorder", "order"):
            raise UnsupportedError(
                "this way to pack is not read",
                where=f"{self.where}.export.pack_method",
                found=str(way),
                allowed="reorder, order",
            )
        return way != "order"

    def of(self, module: str) -> tuple[Spec, str]:
        """What is said of a layer's weight, and of its inputs and outputs in a few words.

        Raises:
            BadFileError: The configuration leaves the layer unquantized.
        """
        values, where = self._settings(module)
        LAYER.check(Settings(values, where))
        weight = values.get("weight")
        nested = isinstance(weight, list)
        first = weight[0] if isinstance(weight, list) and weight else weight
        excluded = any(fnmatch.fnmatch(module, pattern) for pattern in self._exclude)
        if excluded or not isinstance(first, dict):
            raise BadFileError(
                "the configuration contradicts the tensors",
                where=f"{self.where}.exclude" if excluded else f"{where}.weight",
                found=f"{module} is quantized",
                allowed="a plain weight",
                todo="Configuration and tensors are not of one checkpoint; fetch it again.",
            )
        for level in weight if isinstance(weight, list) else [first]:
            WEIGHT.check(Settings(level if isinstance(level, dict) else {}, f"{where}.weight"))
        sides = [_activations(side, values.get(f"{side}_tensors")) for side in ("input", "output")]
        return Spec(first, f"{where}.weight", nested), "; ".join(text for text in sides if text)

    def _settings(self, module: str) -> tuple[Mapping[str, Any], str]:
        for field, table in (("layer_quant_config", self._named), ("layer_type_quant_config", self._classes)):
            for pattern, values in table.items():
                if fnmatch.fnmatch(module, pattern) if field == "layer_quant_config" else pattern in _CLASS:
                    return values, f"{self.where}.{field}.{pattern}"
        whole = self.settings.values.get("global_quant_config")
        return (whole if isinstance(whole, dict) else {}), f"{self.where}.global_quant_config"

    def _table(self, field: str) -> dict[str, Mapping[str, Any]]:
        value = self.settings.values.get(field) or {}
        if not isinstance(value, dict) or not all(len(k) < _LIMIT and isinstance(v, dict) for k, v in value.items()):
            raise BadFileError("settings of layers are no object of objects", where=f"{self.where}.{field}")
        return value


def _activations(side: str, values: object) -> str:
    first = values[0] if isinstance(values, list) and values else values
    if not isinstance(first, dict):
        return ""
    when = "dynamic" if first.get("is_dynamic") else "static"
    return f"{side}s to {first.get('dtype')} {first.get('qscheme')}, {when}"
