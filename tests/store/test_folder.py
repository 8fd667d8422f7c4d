"""Nothing outside of the folder is ever opened, and JSON is never more than it may be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.errors import BadFileError
from qdeploy.store.folder import Folder, parse_json


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "file").write_text("hello")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "..",
        "",
        "\0",
        "file\0",
        "a\\b",
        "\ud800",
        "x" * 5000,
        "file/",
        "file/x",
    ],
)
def test_names_that_lead_nowhere_good(inside: Path, name: str) -> None:
    if name == "file/":
        assert Folder(inside).open(name).read(0, 5) == b"hello"  # a trailing slash names the same file
        return
    with pytest.raises(BadFileError) as caught:
        Folder(inside).open(name)
    str(caught.value).encode()


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "link", "missing", "sub"])
def test_links_that_lead_outside_or_nowhere(inside: Path, target: str) -> None:
    (inside / "sub").mkdir()
    (inside / "link").symlink_to(target)
    with pytest.raises(BadFileError):
        Folder(inside).open("link")


def test_a_folder_that_is_a_link_leads_outside(inside: Path) -> None:
    (inside / "away").symlink_to(inside.parent)
    with pytest.raises(BadFileError):
        Folder(inside).open("away/secret")
    assert list(Folder(inside).names()) == ["file"]


def test_links_inside_of_the_folder_are_followed(inside: Path) -> None:
    (inside / "link").symlink_to("file")
    assert Folder(inside).open("link").read(0, 5) == b"hello"


def test_hard_links_are_refused_unless_trusted(inside: Path) -> None:
    os.link(inside.parent / "secret", inside / "link")
    with pytest.raises(BadFileError, match="hard link"):
        Folder(inside).open("link")
    assert Folder(inside, trust_links=True).open("link").read(0, 6) == b"secret"


def test_the_links_of_a_hub_cache_are_followed_to_its_own_border(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "ff").write_text("hello")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "file").symlink_to("../../blobs/ff")
    (snapshot / "bad").symlink_to("../../../secret")
    assert Folder(snapshot).open("file").read(0, 5) == b"hello"
    with pytest.raises(BadFileError):
        Folder(snapshot).open("bad")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused_and_does_not_hang(inside: Path, kind: str) -> None:
    os.mkfifo(inside / "it") if kind == "pipe" else (inside / "it").mkdir()
    with pytest.raises(BadFileError):
        Folder(inside).open("it")


def test_a_file_that_gets_shorter_is_an_error_and_not_a_crash(inside: Path) -> None:
    file = Folder(inside).open("file")
    os.truncate(inside / "file", 2)
    with pytest.raises(BadFileError, match="shorter"):
        file.read(0, 5)
    with pytest.raises(BadFileError, match="shorter"):
        file.read_into(0, np.empty(5, np.uint8))


@pytest.mark.parametrize(("start", "size"), [(0, 6), (5, 1), (-1, 1), (0, -1), (1 << 62, 1)])
def test_ranges_outside_of_the_file(inside: Path, start: int, size: int) -> None:
    with pytest.raises(BadFileError):
        Folder(inside).open("file").read(start, size)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="no such"):
        Folder(tmp_path / "missing")


def test_rows_of_a_file(inside: Path) -> None:
    folder = Folder(inside / "file")
    assert folder.only == "file"
    assert folder.size("file") == 5
    assert folder.rows("file").read(1, 4).tobytes() == b"ell"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a": 1, "a": 2}',
        b"NaN",
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'["' + b"}" * 200_000 + b'\\"", ' + b"[" * 100_000,
        b"1" * 5000,
        b'"\xed\xa0\x80"',
    ],
)
def test_json_that_is_refused(text: bytes) -> None:
    with pytest.raises(BadFileError):
        parse_json(text, "x.json")


@pytest.mark.parametrize("depth", [1, 64])
def test_json_of_a_legal_depth(depth: int) -> None:
    assert parse_json(b"[" * depth + b"]" * depth, "x.json") == json.loads("[" * depth + "]" * depth)


def test_brackets_inside_of_strings_are_no_depth() -> None:
    value = {"tokens": ["[[[[" * 100, '\\"{{{{' * 100, "\\", '"']}
    assert parse_json(json.dumps(value).encode(), "x.json") == value


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.text() | st.integers() | st.booleans() | st.none(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_json_reads_what_was_written(value: object) -> None:
    assert parse_json(json.dumps([value] * 70).encode(), "x.json") == [value] * 70


def test_a_folder_with_too_many_files_is_not_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.store.folder._MOST_FILES", 20)
    for i in range(10):
        (tmp_path / f"folder{i}").mkdir()
        (tmp_path / f"folder{i}" / "file").write_bytes(b"")
    with pytest.raises(BadFileError, match="too many files"):
        list(Folder(tmp_path).names())
    assert len(list(Folder(tmp_path / "folder1").names())) == 1
