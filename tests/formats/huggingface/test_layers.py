"""Every layer of `layers_*.py`: its numbers and bytes, damage to each of its tensors, settings that deny it."""

from __future__ import annotations

from pathlib import Path

import layers_exl
import layers_higgs
import layers_quark
import layers_small
import layers_sparse
import layers_spqr
import layers_vptq
import pytest
from layers import Layer, P
from packed_layers import open_
from published import assert_damage_is_named, assert_matches_oracle, assert_reads_as, oracles, write

import qdeploy
from qdeploy.errors import QdeployError

LAYERS = [
    *layers_small.layers(),
    *layers_quark.layers(),
    *layers_vptq.layers(),
    *layers_sparse.layers(),
    *layers_exl.layers(),
    *layers_higgs.layers(),
    *layers_spqr.layers(),
]
each = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.label)


@each
def test_numbers_and_bytes(tmp_path: Path, layer: Layer) -> None:
    folder = write(tmp_path / "c", layer.tensors, layer.settings, layer.config)
    assert_reads_as(folder, layer.parameter, layer.expected)


@each
def test_damage_is_named(tmp_path: Path, layer: Layer) -> None:
    name = layer.parameter.removesuffix(".weight")
    how = {"settings": layer.settings, "config": layer.config}
    assert_damage_is_named(tmp_path, layer.tensors, name, layer.free, layer.divisors, **how)


@pytest.mark.parametrize("prefix", ["bitnet-", "fbgemm-", "aqlm-", "quark-", "vptq-"])
def test_library_weights_and_bytes(testdata: Path, prefix: str) -> None:
    for folder in oracles(testdata, prefix):
        assert_matches_oracle(folder)


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [(layer, wrong) for layer in LAYERS for wrong in layer.contradictions],
    ids=lambda value: value.label if isinstance(value, Layer) else "-".join(value),
)
def test_settings_that_deny_the_tensors_are_refused(tmp_path: Path, layer: Layer, wrong: dict[str, object]) -> None:
    with pytest.raises(QdeployError) as caught:
        open_(write(tmp_path / "c", layer.tensors, {**layer.settings, **wrong}, layer.config))
    assert P in str(caught.value) or next(iter(wrong)) in str(caught.value)


@each
def test_the_file_comes_back_from_a_package(tmp_path: Path, layer: Layer) -> None:
    folder = write(tmp_path / "c", layer.tensors, layer.settings, layer.config)
    qdeploy.convert(folder, tmp_path / "package", to="ir")
    qdeploy.convert(tmp_path / "package", tmp_path / "source", to="source")
    assert (tmp_path / "source/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
