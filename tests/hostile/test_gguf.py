"""Damaged and malicious GGUF files: one clear error each, at once, and never more memory than the file has."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.formats.gguf import reader as gguf
from qdeploy.formats.gguf.head import read_head
from qdeploy.store.folder import Folder

U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9
Q8_0 = 8


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str | bytes, extents: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)


NAME = entry("general.architecture", STRING, text("none"))
ROWS = info("w", (32, 2), Q8_0, 0)  # 68 bytes


def file(
    *,
    entries: tuple[bytes, ...] = (NAME,),
    infos: tuple[bytes, ...] = (ROWS,),
    data: int = 96,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    counts = counts or (len(infos), len(entries))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


def read(folder: Path, content: bytes) -> gguf.Model:
    (folder / "m.gguf").write_bytes(content)
    return gguf.read(Folder(folder / "m.gguf"))


def refused(folder: Path, content: bytes, match: str, kind: type[QdeployError] = BadFileError) -> None:
    start = time.perf_counter()
    with pytest.raises(kind, match=match) as caught:
        read(folder, content)
    assert time.perf_counter() - start < 1
    assert caught.value.where


def test_the_file_that_the_others_are_made_of_is_good(tmp_path):
    assert read(tmp_path, file()).tensors["w"].decode().shape == (2, 32)
    assert read(tmp_path, file(version=2)).tensors["w"].shape == (2, 32)


@pytest.mark.parametrize(
    ("version", "name"), [(1, "version 1"), (4, "version 4"), (0, "version 0"), (3 << 24, "version 3, big-endian")]
)
def test_other_versions_are_refused_by_name(tmp_path, version, name):
    refused(tmp_path, file(version=version), name, UnsupportedError)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "beyond the end"),
        (b"GGUF", "beyond the end"),
        (file(magic=b"GGML"), "not a GGUF file"),
        (file(counts=(2**60, 1)), "beyond the end"),
        (file(counts=(1, 2**60)), "beyond the end"),
        (file(counts=(2**64 - 1, 2**64 - 1)), "beyond the end"),
        (file(counts=(2, 1)), "no proper name"),
        (file(counts=(2**19, 1), data=2**25), "too many"),
        (file(counts=(1, 2**17), data=2**24), "too many"),
        (file(entries=(NAME, NAME)), "key occurs twice"),
        (file(infos=(ROWS, ROWS)), "name occurs twice"),
    ],
)
def test_counts_and_names(tmp_path, content, match):
    refused(tmp_path, content, match)


@pytest.mark.parametrize("kind", [U8, STRING])
def test_an_array_of_2_to_the_40_is_refused_at_once(tmp_path, kind):
    for count in (2**40, 2**64 - 1):
        refused(tmp_path, file(entries=(NAME, entry("x", ARRAY, struct.pack("<IQ", kind, count)))), "beyond the end")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (entry("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + struct.pack("<IQ", U8, 0)), "array of an unknown type"),
        (entry("x", ARRAY, struct.pack("<IQ", ARRAY, 2**40)), "beyond the end"),
        (entry("x", ARRAY, struct.pack("<IQ", 99, 1)), "array of an unknown type"),
        (entry("x", 13, b""), "value of an unknown type"),
        (entry("x", BOOL, b"\x02"), "neither 0 nor 1"),
        (entry("x", STRING, struct.pack("<Q", 2**63)), "too long"),
        (entry("x", STRING, struct.pack("<Q", 5000)), "beyond the end"),
        (entry("k" * 70000, U8, b"\0"), "too long"),
    ],
)
def test_metadata(tmp_path, value, match):
    refused(tmp_path, file(entries=(NAME, value)), match)


@pytest.mark.parametrize("value", [0, 3, 48, 2**31, 2**32 - 1])
def test_alignments(tmp_path, value):
    refused(tmp_path, file(entries=(NAME, entry("general.alignment", U32, struct.pack("<I", value)))), "alignment")


def test_an_alignment_that_is_no_integer(tmp_path):
    for kind, value in ((F32, struct.pack("<f", 32)), (STRING, text("32")), (ARRAY, struct.pack("<IQI", U32, 1, 32))):
        refused(tmp_path, file(entries=(NAME, entry("general.alignment", kind, value))), "alignment")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (info("w", (2**32, 2**32), Q8_0, 0), "impossible shape"),
        (info("w", (2**63, 2), Q8_0, 0), "impossible shape"),
        (info("w", (32, 0), Q8_0, 0), "impossible shape"),
        (info("w", (2**40, 2**20), Q8_0, 0), "beyond the end"),
        (info("w", (1,) * 5, Q8_0, 0), "too many axes"),
        (text("w") + struct.pack("<I", 2**31), "too many axes"),
        (info("w", (33, 2), Q8_0, 0), "not a whole number of blocks"),
        (info("w", (), Q8_0, 0), "not a whole number of blocks"),
        (info("w", (32, 2), Q8_0, 4), "not aligned"),
        (info("w", (32, 2), Q8_0, 2**63), "beyond the end"),
        (info("w", (32, 2), Q8_0, 2**64 - 32), "beyond the end"),
        (info("w", (32, 2), Q8_0, 32), "beyond the end"),
        (info("", (32, 2), Q8_0, 0), "no proper name"),
        (info("a\0b", (32, 2), Q8_0, 0), "no proper name"),
        (info("n" * 65, (32, 2), Q8_0, 0), "too long"),
        (info(b"\xff", (32, 2), Q8_0, 0), "not UTF-8"),
    ],
)
def test_tensors(tmp_path, tensor, match):
    refused(tmp_path, file(infos=(tensor,)), match)


def test_tensors_that_overlap(tmp_path):
    refused(tmp_path, file(infos=(ROWS, info("v", (32, 2), Q8_0, 0)), data=192), "overlap")
    refused(tmp_path, file(infos=(info("v", (32, 2), Q8_0, 64), ROWS), data=192), "overlap")


def test_bytes_that_belong_to_no_tensor(tmp_path):
    refused(tmp_path, file(data=160), "belong to no tensor")  # behind the last
    refused(tmp_path, file(infos=(ROWS, info("v", (32, 2), Q8_0, 128)), data=224), "belong to no tensor")
    refused(tmp_path, file(infos=(info("w", (32, 2), Q8_0, 64),), data=160), "belong to no tensor")


def test_a_file_without_tensors(tmp_path):
    refused(tmp_path, file(infos=(), data=0), "without tensors", UnsupportedError)


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    model = read(tmp_path, file(infos=(info("../../etc/x", (32, 2), Q8_0, 0),)))
    assert model.tensors["../../etc/x"].decode().shape == (2, 32)


def test_truncated_at_every_64th_byte(testdata, tmp_path):
    data = (testdata / "quantized" / "gguf" / "stories260K-Q4_0.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data)
    last = max(o.begin + o.nbytes for o in gguf.read(Folder(tmp_path / "m.gguf")).origins)
    step = 64 if len(data) < 1 << 20 else 4096
    for size in [*range(0, min(len(data), 1 << 15), 64), *range(1 << 15, last, step * 16), last - 1]:
        with pytest.raises(BadFileError) as caught:
            read(tmp_path, data[:size])
        assert "truncated" in caught.value.todo


def test_a_file_that_is_cut_after_it_was_opened(tmp_path):
    model = read(tmp_path, file())
    (tmp_path / "m.gguf").write_bytes(file()[:-80])
    with pytest.raises(BadFileError, match="became shorter"):
        model.tensors["w"].decode()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_end_in_a_model_or_in_one_of_our_errors(tmp_path_factory, flips):
    data = np.frombuffer(
        file(entries=(NAME, entry("x", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")))), np.uint8
    ).copy()
    for place, bit in flips:
        data[place % (len(data) - 96)] ^= 1 << bit
    try:
        model = read(tmp_path_factory.mktemp("flip"), data.tobytes())
        for tensor in model.tensors.values():
            tensor.decode()
    except QdeployError as error:
        assert error.what


def test_one_part_that_links_outside_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(file())
    (tmp_path / "inside" / "m-00001-of-00001.gguf").symlink_to(tmp_path / "secret")
    with pytest.raises(BadFileError, match="outside"):
        gguf.read(Folder(tmp_path / "inside"))


def test_metadata_that_is_odd_does_not_stop_the_weights(tmp_path):
    nested = struct.pack("<IQ", ARRAY, 2) + struct.pack("<IQ", STRING, 1) + text("en") + struct.pack("<IQB", U8, 1, 7)
    path = tmp_path / "m.gguf"
    path.write_bytes(
        file(entries=(NAME, entry("x", STRING, text(b"caf\xe9")), entry("general.languages", ARRAY, nested)))
    )
    opened = Folder(path).open("m.gguf")
    head = read_head(opened)
    opened.close()
    assert head.metadata["x"] == "caf\N{REPLACEMENT CHARACTER}"
    assert [list(part) for part in head.metadata["general.languages"]] == [["en"], [7]]
    assert len(head.notes) == 1 and "not UTF-8" in head.notes[0]
