"""The rule table: no combination that falls off a speed cliff, and blocks that fit their groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_forms import affine_tensor, packed, scales, tensor_of

from qdeploy.backends.onnx.blocks import BLOCKS, blocking
from qdeploy.backends.onnx.proto import GraphBuilder
from qdeploy.backends.onnx.rules import rule
from qdeploy.ir.views import view

FAST = {
    0: {4: {16, 32, 64, 128, 256}},
    4: {2: {32, 64, 128}, 4: {16, 32, 64, 128, 256}, 8: {16, 32, 64, 128, 256}},
}
"""accuracy_level -> bits -> block sizes with a fast kernel; measured on ONNX Runtime 1.31."""


def emitted(tensor, activations):
    builder = GraphBuilder()
    ruling = rule("w", tensor, activations)
    ruling.form.linear(builder, builder.input("x", 1, (1, "tokens", tensor.shape[1])), "y")
    return ruling, builder.graph


@settings(max_examples=120, deadline=None)
@given(
    width=st.integers(1, 8),
    group=st.integers(2, 300),
    columns=st.integers(1, 600),
    zero=st.booleans(),
    offset=st.booleans(),
    activations=st.sampled_from(["exact", "int8"]),
)
def test_no_cliff_is_ever_emitted(width, group, columns, zero, offset, activations):
    tensor = affine_tensor(1, 4, columns, width, min(group, columns), "codes" if zero else "float", offset)
    ruling, graph = emitted(tensor, activations)
    stored = {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            attrs = {a.name: a.i for a in node.attribute}
            assert attrs["block_size"] in FAST[attrs["accuracy_level"]][attrs["bits"]]
            assert node.input[1] in stored and node.input[2] in stored  # constant, so that they are packed at load
            assert len(node.input) < 4 or stored[node.input[3]] == 2  # zero points are integers
    assert "slow" not in ruling.reason


@settings(max_examples=60, deadline=None)
@given(group=st.integers(2, 300), columns=st.integers(1, 600))
def test_blocks_keep_to_their_groups_and_cover_every_column_once(group, columns):
    grouped = view(affine_tensor(1, 2, columns, 4, min(group, columns))).grouped
    result = blocking(grouped, BLOCKS, 4)
    place = np.arange(result.count * result.block) if result.columns is None else result.columns
    content = place[place < columns]
    assert sorted(content) == list(range(columns))
    per_block = np.where(place < columns, place // grouped.group, -1).reshape(result.count, result.block)
    for block, of in enumerate(result.group):
        assert set(per_block[block]) <= {of, -1}


@pytest.mark.parametrize(
    ("group", "block"),
    [(16, 16), (32, 32), (128, 128), (256, 256), (512, 256), (1024, 256), (48, 16), (96, 32), (1536, 256)],
)
def test_the_sources_group_is_kept_where_a_kernel_has_it(group, block):
    result = blocking(view(affine_tensor(1, 2, 3072, 4, group)).grouped, BLOCKS, 4)
    assert (result.block, result.columns) == (block, None)


def test_the_stored_bytes_are_copied_where_they_already_fit():
    """Four-bit streams whose rows are whole blocks: the reader of the file is the reader of the buffer."""
    tensor = affine_tensor(1, 8, 256, 4, 128)
    _, graph = emitted(tensor, "exact")
    assert [n.op_type for n in graph.node] == ["MatMulNBits"]
    builder = GraphBuilder()
    rule("w", tensor, "exact").form.linear(builder, "x", "y")
    codes = builder.places()["w.codes"].blob.rows(2, 5)
    assert np.shares_memory(codes, tensor.terms[0].values.data[0].read())


def test_zero_points_that_all_are_the_implied_one_are_left_out():
    names = [t.name for t in emitted(affine_tensor(1, 8, 256, 4, 128, "middle"), "exact")[1].initializer]
    assert "w.zero" not in names
    names = [t.name for t in emitted(affine_tensor(1, 8, 256, 4, 128, "codes"), "exact")[1].initializer]
    assert "w.zero" in names


def test_codes_move_up_where_that_spares_the_zero_points(rng):
    for tensor in (
        affine_tensor(1, 8, 256, 3, 128, "middle"),  # zero 4 of 8 levels: 8 in the four-bit container
        affine_tensor(1, 8, 256, 6, 128, "middle"),  # zero 32 of 64 levels: 0x88, so both nibbles spare it
        tensor_of(
            packed(rng.integers(0, 3, (8, 256), dtype=np.uint8), 2, "ternary", scale=scales(rng, 8, 1, (1, 256)))
        ),
    ):
        assert not [t.name for t in emitted(tensor, "exact")[1].initializer if t.name.endswith(".zero")]


def test_ternary_takes_two_bits_with_int8_activations(rng):
    codes = packed(rng.integers(0, 3, (8, 256), dtype=np.uint8), 2, "ternary", scale=scales(rng, 8, 1, (1, 256)))
    ruling, graph = emitted(tensor_of(codes), "int8")
    attrs = {a.name: a.i for a in next(n for n in graph.node if n.op_type == "MatMulNBits").attribute}
    assert (attrs["bits"], attrs["block_size"], attrs["accuracy_level"]) == (2, 128, 4)
    assert ruling.lossless


@pytest.mark.parametrize(
    ("width", "activations", "label"),
    [
        (8, "exact", "int8 in nibbles block 32 + nibble zeros"),
        (8, "int8", "int8 block 32"),
        (4, "exact", "int4 block 32"),
    ],
)
def test_a_form_is_called_what_it_holds(width, activations, label):
    """Codes of 8 bits are never called int4, and a symmetric weight has no zero points of its own."""
    assert rule("w", affine_tensor(1, 4, 64, width, 32, "middle"), activations).form.label == label
