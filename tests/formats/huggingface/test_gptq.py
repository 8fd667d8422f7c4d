"""GPTQ: the libraries' own numbers, their own bytes, and every way in which a checkpoint may not be what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_layers import Linear, assert_comes_back, assert_rows_agree, gptq, open_, save, words

from qdeploy.errors import AmbiguousError, BadFileError, QdeployError, UnsupportedError
from qdeploy.ir.tensor import buffers

P = "model.layers.0.mlp.up_proj"
BASE = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}


def checkpoint(folder: Path, layer: Linear, v1: bool = True, g_idx: bool = True, **changes: Any) -> Path:
    return save(folder, gptq(P, layer, v1, g_idx), {**BASE, "bits": layer.bits, **changes})


def test_library_weights_are_reproduced(testdata: Path) -> None:
    folders = sorted((testdata / "checkpoints").glob("gptq*"))
    assert folders
    for folder in folders:
        model, oracle = open_(folder), np.load(folder / "oracle.npz")
        for key in (k for k in oracle.files if k.startswith("w:")):
            ours = model.tensors[key[2:]].decode().astype(oracle[key].dtype)
            np.testing.assert_array_max_ulp(ours, oracle[key], maxulp=1)


def test_library_bytes_come_back(testdata: Path) -> None:
    for folder in sorted((testdata / "checkpoints").glob("gptq*")):
        model = open_(folder)
        assert_comes_back(model, folder)
        assert_rows_agree(model)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 6),
    group=st.sampled_from([-1, 8, 24, 32, 64, 1000]),
    v1=st.booleans(),
    shuffled=st.booleans(),
    ragged=st.tuples(st.integers(0, 31), st.integers(0, 31)),
)
def test_every_width_and_variant(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    bits: int,
    rows: int,
    columns: int,
    group: int,
    v1: bool,
    shuffled: bool,
    ragged: tuple[int, int],
) -> None:
    cut_rows, cut_columns = (0, 0) if bits == 3 else ragged
    layer = Linear.random(seed, 32 * rows - cut_rows, 32 * columns - cut_columns, bits, group, shuffled)
    folder = checkpoint(
        tmp_path_factory.mktemp("gptq"),
        layer,
        v1,
        group_size=group,
        desc_act=shuffled,
        checkpoint_format="gptq" if v1 else "gptq_v2",
    )
    model = open_(folder)
    tensor = model.tensors[f"{P}.weight"]
    assert tensor.shape == layer.codes.shape
    assert tensor.dtype == "F16"
    assert np.array_equal(tensor.decode(), layer.weight())
    assert_rows_agree(model)
    assert_comes_back(model, folder)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_v1_zeros_are_added_to_whole_words(tmp_path: Path, bits: int) -> None:
    layer = Linear.random(0, 32, 64, bits, 32)
    layer.zeros[:] = 0  # stored as fields that wrap, each borrowing from the next
    model = open_(checkpoint(tmp_path / "c", layer))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert any("wrap" in note and P in note for note in model.notes)


def test_v1_zeros_of_three_bits_are_masked_fields(tmp_path: Path) -> None:
    layer = Linear.random(1, 32, 64, 3, 32)
    layer.zeros[:, 0] = 0
    stored = gptq(P, layer)[f"{P}.qzeros"].view(np.uint32)
    assert stored[0].tolist() == words([7] * 32, 3)
    model = open_(checkpoint(tmp_path / "c", layer))
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())
    assert any("wrap" in note for note in model.notes)


def test_no_note_where_nothing_wraps(tmp_path: Path) -> None:
    for v1, low in ((True, 1), (False, 0)):
        folder = checkpoint(
            tmp_path / str(v1), Linear.random(2, 32, 64, 4, 32, low=low), v1, format="gptq" if v1 else "gptq_v2"
        )
        model = open_(folder)
        model.tensors[f"{P}.weight"].decode()
        assert model.notes == []


def test_groups_in_order_need_no_index(tmp_path: Path) -> None:
    layer = Linear.random(3, 32, 96, 4, 32)
    with_, without = (open_(checkpoint(tmp_path / str(g), layer, g_idx=g)) for g in (True, False))
    for model in (with_, without):
        tensor = model.tensors[f"{P}.weight"]
        assert "index" not in {b.key for b in buffers(tensor)}
        assert tensor.terms[0].values.scale.tile == (1, 32)  # type: ignore[union-attr]
        assert np.array_equal(tensor.decode(), layer.weight())
    assert_comes_back(with_, tmp_path / "True")
    assert_comes_back(without, tmp_path / "False")


def test_settings_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    layer = Linear.random(4, 32, 64, 4, 32)
    alone = {k: v for k, v in BASE.items() if k != "quant_method"}
    model = open_(save(tmp_path / "c", gptq(P, layer), alone, beside="quantize_config.json"))
    assert model.format == "gptq"
    assert np.array_equal(model.tensors[f"{P}.weight"].decode(), layer.weight())


def test_dynamic_overrides_layer_by_layer(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(4)] + ["lm_head"]
    outputs = [
        Linear.random(0, 32, 64, 4, 32),
        Linear.random(1, 32, 64, 8, 64),
        Linear.random(2, 32, 64, 2, 16, shuffled=True),
        None,
        Linear.random(3, 64, 64, 3, 32),
    ]
    tensors = {
        "model.layers.3.mlp.up_proj.weight": np.ones((32, 64), np.float32),
        f"{names[0]}.bias": np.ones(32, np.float16),
    }
    for name, layer in zip(names, outputs, strict=True):
        tensors |= gptq(name, layer) if layer else {}
    dynamic = {
        r"-:.*layers\.3\.": {},
        r"+:.*layers\.1\.": {"bits": 8, "group_size": 64},
        r".*layers\.[12]\.": {"bits": 2, "group_size": 16, "desc_act": True},
        r"lm_head": {"bits": 3},
    }
    model = open_(save(tmp_path / "c", tensors, {**BASE, "dynamic": dynamic, "lm_head": True}))
    for name, layer in zip(names, outputs, strict=True):
        expected = layer.weight() if layer else np.ones((32, 64), np.float32)
        assert np.array_equal(model.tensors[f"{name}.weight"].decode(), expected), name
    assert model.tensors[f"{names[0]}.bias"].decode().tolist() == [1.0] * 32
    assert_comes_back(model, tmp_path / "c")


def test_a_layer_that_dynamic_leaves_out_is_not_packed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", Linear.random(0, 32, 64, 4, 32), dynamic={"-:model.*": {}})
    with pytest.raises(BadFileError, match="contradicts"):
        open_(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"checkpoint_format": "gptq_p"}, "gptq_p"),
        ({"format": "bitblas"}, "bitblas"),
        ({"format": "exl3"}, "exl3"),
        ({"is_marlin_format": True}, "marlin"),
        ({"quant_method": "marlin"}, "marlin"),
        ({"bits": 5}, "5 bits"),
        ({"bits": 6}, "6 bits"),
        ({"bits": 7}, "7 bits"),
        ({"bits": 16}, "16 bits"),
        ({"pack_dtype": "int64"}, "int64"),
        ({"rotation": "hadamard"}, "hadamard"),
        ({"dynamic": {"model.*": {"format": "marlin"}}}, "marlin"),
    ],
)
def test_other_variants_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    layer = Linear.random(0, 32, 64, 4, 32)
    with pytest.raises(UnsupportedError, match=named):
        open_(save(tmp_path / "c", gptq(P, layer), {**BASE, **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bits": 8}, "bits = 8"),
        ({"bits": 2}, "bits = 2"),
        ({"bits": "4"}, "bits"),
        ({"bits": None}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 16}, "group_size = 16"),
        ({"group_size": -1}, "group_size = -1"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": -2}, "group_size"),
        ({"group_size": 32.0}, "group_size"),
        ({"dynamic": ["x"]}, "dynamic"),
        ({"dynamic": {"(": {}}}, "dynamic"),
        ({"dynamic": {"model": 3}}, "dynamic"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    layer = Linear.random(0, 32, 64, 4, 32)
    with pytest.raises(BadFileError) as caught:
        open_(save(tmp_path / "c", gptq(P, layer), {**BASE, **changes}))
    assert named in caught.value.where
    assert caught.value.found


def test_two_settings_that_disagree_are_not_guessed_between(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", Linear.random(0, 32, 64, 4, 32), format="gptq", checkpoint_format="gptq_v2")
    with pytest.raises(AmbiguousError):
        open_(folder)


@pytest.mark.parametrize("group", [-1, 2, 1 << 30])
def test_an_index_out_of_range(tmp_path: Path, group: int) -> None:
    layer = Linear.random(0, 32, 64, 4, 32)
    layer.groups[5] = group
    tensors = gptq(P, Linear.random(0, 32, 64, 4, 32))
    tensors[f"{P}.g_idx"] = layer.groups.astype(np.int32)
    model = open_(save(tmp_path / "c", tensors, BASE))
    with pytest.raises(BadFileError) as caught:
        model.tensors[f"{P}.weight"].decode()
    assert "g_idx" in caught.value.where
    assert caught.value.found == str(group)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("damage", ["missing", "short", "dtype", "rank", "empty"])
def test_a_damaged_part_is_named(tmp_path: Path, part: str, damage: str) -> None:
    tensors = gptq(P, Linear.random(0, 32, 64, 4, 32, shuffled=True))
    whole = tensors.pop(f"{P}.{part}")
    if damage != "missing":
        tensors[f"{P}.{part}"] = {
            "short": whole[:-8] if part == "g_idx" else whole[:-1],  # up to 7 columns less still fill the words
            "dtype": whole.astype(np.float64),
            "rank": whole.reshape(1, *whole.shape),
            "empty": whole[:0],
        }[damage]
    with pytest.raises(QdeployError) as caught:
        model = open_(save(tmp_path / "c", tensors, {**BASE, "desc_act": True}))
        model.tensors[f"{P}.weight"].decode()
    assert P in str(caught.value)


def test_a_packed_embedding_is_refused(tmp_path: Path) -> None:
    tensors = gptq("model.embed_tokens", Linear.random(0, 32, 64, 4, 32))
    with pytest.raises(UnsupportedError, match="embedding"):
        open_(save(tmp_path / "c", tensors, BASE))


def test_a_weight_that_is_there_twice(tmp_path: Path) -> None:
    tensors = gptq(P, Linear.random(0, 32, 64, 4, 32)) | {f"{P}.weight": np.ones((32, 64), np.float16)}
    with pytest.raises(AmbiguousError):
        open_(save(tmp_path / "c", tensors, BASE))


def test_unused_fields_that_are_not_zero_are_kept_as_residue(tmp_path: Path) -> None:
    tensors = gptq(P, Linear.random(0, 30, 64, 4, 32))
    tensors[f"{P}.qzeros"].view(np.uint32)[:, -1] ^= 0xF << 28
    model = open_(save(tmp_path / "c", tensors, BASE))
    model.tensors[f"{P}.weight"].decode()
    residue = {o.name: len(o.residue()) for o in model.origins}
    assert residue == {f"{P}.qweight": 0, f"{P}.qzeros": 2, f"{P}.scales": 0, f"{P}.g_idx": 0}
