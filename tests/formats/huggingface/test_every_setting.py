"""Every setting of every checkpoint: another value changes what is read, or is refused, or is known to change nothing.

One layer per reader, written from its layout. Each field of its configuration gets another value, and each level of it
a field that nobody knows.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import layers_exl
import layers_higgs
import layers_quark
import layers_small
import layers_spqr
import layers_vptq
import numpy as np
import pytest
from packed_layers import Linear, awq_gemm, gptq, open_
from published import Stored, fp8, low_first, write

from qdeploy.errors import QdeployError
from qdeploy.formats import BUILT_IN
from qdeploy.formats.huggingface.known import Known

P = "model.layers.0.mlp.up_proj"
W = f"{P}.weight"
Config = dict[str, Any]
Where = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A checkpoint with one layer.

    Attributes:
        config: Of the file that says how the layer is quantized.
        tensors: What is stored.
        metadata: Of the shard's header.
        file: Which file the configuration is.
        named: Levels whose keys are names of layers or patterns.
        parameter: Of the network.
    """

    config: Config
    tensors: Stored
    metadata: Config = field(default_factory=dict)
    file: str = "config.json"
    named: tuple[Where, ...] = ()
    parameter: str = W

    def write(self, folder: Path, config: Config, metadata: Config) -> Path:
        header = {name: json.dumps(row) for name, row in metadata.items()}
        write(folder, self.tensors, None, config if self.file == "config.json" else {}, header)
        if self.file != "config.json":
            (folder / self.file).write_text(json.dumps(config))
        return folder


def _stored(tensors: dict[str, np.ndarray]) -> Stored:
    return {name: ({"int32": "I32", "float16": "F16"}[str(a.dtype)], a) for name, a in tensors.items()}


def _text(values: Config) -> tuple[str, np.ndarray]:
    return ("U8", np.frombuffer(json.dumps(values).encode(), np.uint8))


def _section(**settings: Any) -> Config:
    return {"quantization_config": settings}


def _words(method: str) -> Case:
    layer = Linear.random(0, 64, 96, 4, 32, low=1)
    tensors = awq_gemm(P, layer) if method == "awq" else gptq(P, layer, g_idx=method == "gptq")
    shared = {"quant_method": method, "bits": 4, "group_size": 32, "data_type": "int", "act_bits": 16}
    own: Config = {
        "gptq": {"desc_act": False, "sym": False, "format": "gptq", "dynamic": {P: {"sym": False}}},
        "awq": {"zero_point": True, "version": "gemm"},
        "auto-round": {"packing_format": "auto_round:auto_gptq", "sym": False, "extra_config": {P: {"sym": False}}},
    }[method]
    named = tuple(("quantization_config", name) for name in ("dynamic", "extra_config"))
    return Case(_section(**shared, **own), _stored(tensors), named=named)


def _hqq() -> Case:
    numbers = {"nbits": 4, "axis": 1, "group_size": 16}
    tensors: Stored = {
        "W_q": ("U8", np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)),
        "scale": ("F32", np.ones((32, 1), np.float32)),
        "zero": ("F32", np.ones((32, 1), np.float32)),
        "shape": ("I64", np.array((16, 32))),
        "packing": ("U8", np.frombuffer(b"4bit_u8", np.uint8)),
        **{name: ("I32", np.array(value, np.int32)) for name, value in numbers.items()},
    }
    weights = {**numbers, "channel_wise": True}
    settings = _section(quant_method="hqq", quant_config={"weight_quant_params": weights}, skip_modules=["lm_head"])
    return Case(settings, {f"{P}.{name}": tensor for name, tensor in tensors.items()})


def _bitsandbytes() -> Case:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 16]}
    tensors: Stored = {
        W: ("U8", np.arange(64, dtype=np.uint8)[:, None]),
        f"{W}.absmax": ("F32", np.ones(2, np.float32)),
        f"{W}.quant_map": ("F32", np.arange(16, dtype=np.float32)),
        f"{W}.quant_state.bitsandbytes__nf4": _text(state),
    }
    return Case(_section(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"), tensors)


def _quanto() -> Case:
    tensors: Stored = {
        f"{W}._data": ("I8", np.arange(-64, 64, dtype=np.int8).reshape(4, 32)),
        f"{W}._scale": ("F32", np.ones((4, 1), np.float32)),
    }
    rows = {P: {"weights": "qint8", "activations": "none"}}
    return Case(rows, tensors, file="quanto_qmap.json", named=((),))


def _torchao() -> Case:
    parts: Stored = {
        "qdata": ("I8", np.arange(-6, 6, dtype=np.int8).reshape(3, 4)),
        "scale": ("F32", np.arange(1, 4, dtype=np.float32)[:, None]),
    }
    about = {"block_size": [1, 4], "target_dtype": {"_type": "torch.dtype", "_data": "int8"}, "reduce_range": False}
    row = {"_type": "Int8Tensor", "_data": about}
    stored = {f"{P}._weight_{name}": tensor for name, tensor in parts.items()}
    return Case(_section(quant_method="torchao", quant_type={"default": "int8"}), stored, {W: row}, named=((),))


def _fp8() -> Case:
    random = np.random.default_rng(0)
    tensors: Stored = {
        W: ("F8_E4M3", fp8(random.standard_normal((16, 32)))),
        f"{P}.weight_scale_inv": ("F32", np.ones((2, 2), np.float32)),
    }
    return Case(_section(quant_method="fp8", fmt="e4m3", weight_block_size=[8, 16], dequantize=False), tensors)


def _mxfp4() -> Case:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors: Stored = {
        f"{name}_blocks": ("U8", np.arange(96, dtype=np.uint8).reshape(1, 6, 1, 16)),
        f"{name}_scales": ("U8", np.full((1, 6, 1), 127, np.uint8)),
    }
    return Case(_section(quant_method="mxfp4", modules_to_not_convert=["lm_head"]), tensors, parameter=name)


def _modelopt(file: str) -> Case:
    codes = np.random.default_rng(0).integers(0, 16, (6, 64))
    tensors: Stored = {
        W: ("U8", low_first(codes)),
        f"{P}.weight_scale": ("F8_E4M3", fp8(np.ones((6, 4)))),
        f"{P}.weight_scale_2": ("F32", np.array(0.5, np.float32)),
    }
    if file == "hf_quant_config.json":
        settings = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}
        return Case({"producer": {"name": "modelopt"}, "quantization": settings}, tensors, file=file, named=((),))
    group = {"weights": {"num_bits": 4, "type": "float", "group_size": 16}, "targets": ["Linear"]}
    section = _section(quant_method="modelopt", config_groups={"group_0": group}, ignore=["lm_head"])
    return Case(section, tensors, named=(("quantization_config", "config_groups"),))


_NAMES_OF_LAYERS = ("config_for_layers", "shared_layer_config", "layer_quant_config", "tune_metadata")


def _layer(layer: Any) -> Case:
    config = {**({"quantization_config": layer.settings} if layer.settings is not None else {}), **layer.config}
    named = tuple(("quantization_config", name) for name in _NAMES_OF_LAYERS)
    own = {k: v for k, v in config.items() if k in ("quantization_config", "anyprec", "anybcq")}
    return Case({**config, **own}, layer.tensors, named=((), *named), parameter=layer.parameter)


CASES: dict[str, Case] = {
    **{name: _words(method) for name, method in (("gptq", "gptq"), ("awq", "awq"), ("autoround", "auto-round"))},
    "hqq": _hqq(),
    "bitsandbytes": _bitsandbytes(),
    "quanto": _quanto(),
    "torchao": _torchao(),
    "fp8": _fp8(),
    "mxfp4": _mxfp4(),
    "modelopt": _modelopt("config.json"),
    "modelopt alone": _modelopt("hf_quant_config.json"),
}
for _made in (layers_small, layers_quark, layers_vptq, layers_exl, layers_higgs, layers_spqr):
    for _one in _made.layers():
        CASES.setdefault(_one.label.split()[0].split("-")[0], _layer(_one))
ELSEWHERE = ("safetensors", "bitstack", "mlx", "compressed-tensors")
"""Formats without settings, and those whose settings test_settings.py tests."""


def _levels(config: Config, where: Where = ()) -> Iterator[tuple[Where, Config]]:
    """Every object, by its path."""
    yield where, config
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _levels(value, (*where, name))


def _fields(case: Case) -> list[tuple[bool, Where]]:
    """Every field of the configuration and of the header, by its path."""
    sides = ((False, case.config), (True, case.metadata))
    return [
        (side, (*where, name))
        for side, config in sides
        for where, level in _levels(config)
        for name, value in level.items()
        if not isinstance(value, dict) and (where or side or case.file != "config.json")
    ]


def _changed(config: Config, where: Where, value: object) -> Config:
    config = copy.deepcopy(config)
    level = config
    for name in where[:-1]:
        level = level[name]
    level[where[-1]] = value
    return config


def _others(value: object) -> list[object]:
    """Other values, of which one must matter."""
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, int | float):
        return [value - 1, value + 1, value + 16]
    return [[*value, 7]] if isinstance(value, list) else [f"{value}-other"]


def _numbers(folder: Path, parameter: str) -> np.ndarray:
    return open_(folder).tensors[parameter].decode()


def _neutral(name: str) -> set[str]:
    """All fields that the module's lists say to change no number; each has a reason."""
    path = next(row.target for row in BUILT_IN if row.name == name.split()[0])
    modules = [import_module(path)]
    modules += [import_module(f"{path}_settings")] if name in ("quark", "vptq") else []
    lists = [value for module in modules for value in vars(module).values() if isinstance(value, Known)]
    assert all(reason for known in lists for reason in known.neutral.values())
    return {field for known in lists for field in known.neutral}


def test_every_reader_is_here():
    readers = {row.name for row in BUILT_IN if row.target.startswith("qdeploy.formats.huggingface.")}
    assert readers - set(ELSEWHERE) == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_another_value_of_a_setting_changes_something_or_is_refused(name: str, tmp_path: Path):
    case = CASES[name]
    sound = _numbers(case.write(tmp_path / "sound", case.config, case.metadata), case.parameter)
    assert sound.any()
    neutral, ignored = _neutral(name), []
    for i, (in_header, where) in enumerate(_fields(case)):
        whole = case.metadata if in_header else case.config
        others = (_changed(whole, where, other) for other in _others(_value(whole, where)))
        sides = [(case.config, other) if in_header else (other, case.metadata) for other in others]
        folders = (case.write(tmp_path / f"{i}-{n}", *side) for n, side in enumerate(sides))
        if not any(_makes_a_difference(folder, case.parameter, sound) for folder in folders):
            ignored.append(where)
    assert [where for where in ignored if not neutral & set(where)] == []


def _value(config: Config, where: Where) -> object:
    value: Any = config
    for name in where:
        value = value[name]
    return value


def _makes_a_difference(folder: Path, parameter: str, sound: np.ndarray) -> bool:
    try:
        numbers = _numbers(folder, parameter)
    except QdeployError:
        return True
    return numbers.shape != sound.shape or not np.array_equal(numbers, sound)


@pytest.mark.parametrize("name", CASES)
def test_a_setting_that_nobody_knows_is_refused_by_its_name(name: str, tmp_path: Path):
    case, unknown, taken = CASES[name], "rotation_of_inputs", []
    for in_header, config in ((False, case.config), (True, case.metadata)):
        for i, where in enumerate(_open_levels(case, config, _neutral(name), in_header)):
            changed = _changed(config, (*where, unknown), "hadamard")
            folder = tmp_path / f"{in_header}{i}"
            case.write(folder, case.config if in_header else changed, changed if in_header else case.metadata)
            try:
                _numbers(folder, case.parameter)
                taken.append(where)
            except QdeployError as error:
                assert unknown in str(error), where
    assert taken == []


def _open_levels(case: Case, config: Config, neutral: set[str], in_header: bool) -> Iterator[Where]:
    """Objects in which a field means what its name says, and which the reader looks at."""
    for where, level in _levels(config):
        about_tensor = not in_header or where[-1:] == ("_data",)
        is_config = bool(where) or case.file == "quanto_qmap.json"
        if level and about_tensor and is_config and where not in case.named and not neutral & set(where):
            yield where
