"""Opening files inside a folder that is not trusted.

Every file of a checkpoint is opened here and nowhere else. A name that leads outside of the folder (`..`, an absolute
path, a symbolic link, a hard link to something else, a device or a pipe) is refused before a byte is read, and an open
file is only ever read by explicit ranges: it is never mapped, so a file that is cut while we read gives an error
instead of a crash.

One layout with links is known and safe: the hub cache of Hugging Face, where `snapshots/<revision>/file` is a link to
`blobs/<hash>` of the same repository folder. There the repository folder is the border.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.options import SourceOptions

JSON_LIMIT = 100 << 20
"""Largest JSON text that is parsed: the limit that safetensors sets for its header."""
_JSON_DEPTH = 64
_MOST_FILES = 1 << 15
"""And folders, that are looked at for what a folder is."""
_HUB = ("models--", "datasets--")
_DATA_SUFFIXES = (
    *(
        ".safetensors",
        ".gguf",
        ".onnx",
        ".onnx_data",
        ".data",
        ".tflite",
        ".litertlm",
        ".task",
        ".bin",
        ".pt",
        ".pth",
        ".qd",
    ),
    *(".npz", ".npy", ".json", ".jinja", ".txt", ".model"),
)
"""Of files that are looked at for what may stand in their place."""


class File:
    """An open file that is read by ranges; safe to use from several threads."""

    def __init__(self, path: Path, name: str, descriptor: int) -> None:
        self.path, self.name = path, name
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """Returns exactly `size` bytes; BadFileError where the file ends before."""
        if start < 0 or size < 0 or start + size > self.size:
            raise BadFileError(
                "a range lies outside of the file",
                where=self.name,
                found=f"bytes {start}..{start + size}",
                allowed=f"0..{self.size}",
            )
        data: bytes = self._at(start, os.pread, size)
        while len(data) < size:  # a single call returns at most 2 GiB
            more = self._at(start + len(data), os.pread, size - len(data))
            if not more:
                raise BadFileError("the file became shorter while it was read", where=self.name)
            data += more
        return data

    def read_into(self, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Fills a contiguous byte array from `start`."""
        done, view = 0, out.reshape(-1).data
        if start < 0 or start + len(view) > self.size:
            raise BadFileError(
                "a range lies outside of the file",
                where=self.name,
                found=f"bytes {start}..{start + len(view)}",
                allowed=f"0..{self.size}",
            )
        while done < len(view):
            count = self._at(start + done, os.preadv, [view[done:]])
            if not count:
                raise BadFileError("the file became shorter while it was read", where=self.name)
            done += count

    def _at(self, start: int, read: Callable[[int, Any, int], Any], what: Any) -> Any:
        """One call of the system; BadFileError where the disk, or whatever the file lies on, fails."""
        try:
            return read(self._descriptor, what, start)
        except OSError as error:
            raise BadFileError(f"a file cannot be read: {error.strerror}", where=str(self.path)) from error

    def close(self) -> None:
        """Closes the file; further reads are an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class Folder:
    """A folder (or a single file in it) whose content is not trusted.

    Attributes:
        path: As the user named it, links resolved.
        only: The one file that was named, where the user named a file.
        options: How its content is to be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], trust_links: bool = False, options: SourceOptions | None = None
    ) -> None:
        self.options = options or SourceOptions(trust_links=trust_links)
        location = Path(path)
        if not location.exists():
            raise BadFileError("no such file or folder", where=str(location), todo="Check the path.")
        location = _hub_revision(location)
        absolute = location.absolute() if location.is_dir() else location.absolute().parent
        self.only = "" if location.is_dir() else location.name
        self.path = absolute.resolve()
        self._looked_at: set[str] = set()
        self._border = _hub_repository(self.path) or self.path
        self._trust_links = trust_links or self.options.trust_links

    def names(self) -> Iterator[str]:
        """Relative names of all regular files below the folder (or the one file), sorted; hidden ones are left out."""
        if self.only:
            yield self.only
            return
        count = 0
        for root, folders, files in os.walk(self.path):
            count += 1 + len(files)
            if count > _MOST_FILES:
                raise BadFileError(
                    "a folder with too many files to be a checkpoint",
                    where=str(self.path),
                    found=f"more than {_MOST_FILES} files and folders",
                    todo="Name the folder of the checkpoint itself.",
                )
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (
                PurePosixPath(Path(root, name).relative_to(self.path)).as_posix()
                for name in sorted(files)
                if not name.startswith(".")
            )

    def inside(self, name: str) -> Folder:
        """A folder inside of this one, with the same rules; BadFileError where its name leads outside."""
        return Folder(self._inside(name), options=self.options)

    def has(self, name: str) -> bool:
        """Whether a file of this name is there (a dangling or refused link counts as there)."""
        return os.path.lexists(self.path / name)

    def open(self, name: str) -> File:
        """Opens a file inside the folder; BadFileError for anything that leads outside or is not a regular file."""
        target = self._inside(name)
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BadFileError(f"cannot open a file: {error.strerror}", where=str(self.path / name)) from error
        status = os.fstat(descriptor)
        problem = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
        if not problem and status.st_nlink > 1 and not self._trust_links and self._border == self.path:
            problem = "a hard link: it may be a file from outside of the folder"
        if problem:
            os.close(descriptor)
            raise BadFileError(
                f"refused to open a file: {problem}",
                where=str(self.path / name),
                todo="Copy the checkpoint to a folder of its own, or pass --trust-links.",
            )
        opened = File(target, name, descriptor)
        if name not in self._looked_at and name.endswith(_DATA_SUFFIXES):
            _refuse_stand_in(opened)
            self._looked_at.add(name)
        return opened

    def json(self, name: str, strict: bool = True) -> Any:
        """Parses a JSON file with the rules of `parse_json`."""
        file = self.open(name)
        try:
            if file.size > JSON_LIMIT:
                raise BadFileError("a JSON file is too large", where=name, found=file.size, allowed=f"<= {JSON_LIMIT}")
            return parse_json(file.read(0, file.size), name, strict)
        finally:
            file.close()

    def rows(self, name: str) -> FileRows:
        """The bytes of a file as rows of a U8 buffer; the file is open only while it is read."""
        return FileRows(self, name)

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        file = self.open(name)
        file.close()
        return file.size

    def _inside(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise BadFileError(
                "a file name leads outside of the folder",
                where=str(self.path),
                found=ascii(name),
                allowed="names relative to the folder, without ..",
            )
        try:
            target = (self.path / pure).resolve()
            os.fsencode(target)
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, half a surrogate pair
            raise BadFileError("a file name cannot be followed", where=str(self.path), found=ascii(name)) from error
        linked = target != self.path / pure
        if linked and not self._trust_links and not target.is_relative_to(self._border):
            raise BadFileError(
                "a link leads outside of the folder",
                where=str(self.path / name),
                found=str(target),
                todo="Copy the checkpoint to a folder of its own, or pass --trust-links.",
            )
        return target


class FileRows:
    """The bytes of a file inside a folder, by range; many of them cost no open files."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Returns bytes [start, stop)."""
        out = np.empty(stop - start, np.uint8)
        file = self._folder.open(self._name)
        try:
            file.read_into(start, out)
        finally:
            file.close()
        return out


def _refuse_stand_in(file: File) -> None:
    """Raises BadFileError where something else was saved under a file's name than the file."""
    head = file.read(0, min(file.size, 64)).lstrip()
    if head.startswith(b"version https://git-lfs"):
        problem, todo = "a pointer of Git-LFS stands in the place of the file", "Run git lfs pull, or fetch the file."
    elif head.lower().startswith((b"<!doctype html", b"<html")):
        problem, todo = "a web page stands in the place of the file", "Fetch the file again: its address gave a page."
    else:
        return
    file.close()
    raise BadFileError(problem, where=file.name, found=f"{file.size} bytes", todo=todo)


def _hub_repository(path: Path) -> Path | None:
    """The folder of a repository in the hub's cache, where a path lies in one of its snapshots."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(_HUB):
            return folder.parent.parent
    return None


def _hub_revision(path: Path) -> Path:
    """The snapshot that a repository folder of the hub's cache means: that of refs/main, or its only one."""
    snapshots = path / "snapshots"
    if not path.name.startswith(_HUB) or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    named = main.read_text(errors="replace").strip()[:200] if main.is_file() and not main.is_symlink() else ""
    names = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
    if named in names or (not named and len(names) == 1):
        return snapshots / (named or names[0])
    raise BadFileError(
        "no snapshot in a repository of the hub's cache is its main revision",
        where=str(path),
        found=", ".join(names) or "no snapshots",
        allowed=named or "refs/main",
        todo="Name the snapshot: .../snapshots/REVISION.",
    )


def parse_json(text: bytes, where: str, strict: bool = True) -> Any:
    """Parses JSON; BadFileError for bad UTF-8, nesting deeper than 64, and with `strict` for duplicate keys and NaN.

    Without `strict`, as Python and transformers read it: the last of several equal keys counts, and NaN is a number,
    which no field of an architecture can be.
    """
    _check_depth(text, where)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if strict and len(mapping) != len(pairs):
            keys = [key for key, _ in pairs]
            raise BadFileError("a JSON key occurs twice", where=where, found=next(k for k in keys if keys.count(k) > 1))
        return mapping

    def constant(name: str) -> float:
        if name == "Infinity" or name == "-Infinity":  # config.json of some models holds it for time limits
            return float(name.replace("Infinity", "inf"))
        if not strict:
            return float("nan")
        raise BadFileError("JSON holds NaN", where=where)

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except ValueError as error:
        raise BadFileError(f"not valid JSON: {error}", where=where) from error


def _check_depth(text: bytes, where: str) -> None:
    if text.count(b"{") + text.count(b"[") <= _JSON_DEPTH:
        return
    # Without its escapes, a quote always begins or ends a string, and what is inside of strings does not count.
    array = np.frombuffer(re.sub(rb"\\.", b"", text, flags=re.DOTALL), np.uint8)
    inside = np.bitwise_xor.accumulate((array == 0x22).view(np.uint8))
    opens = (array == 0x7B) | (array == 0x5B)
    brackets = opens[(inside == 0) & (opens | (array == 0x7D) | (array == 0x5D))]
    depth = int(np.cumsum(np.where(brackets, 1, -1)).max(initial=0))
    if depth > _JSON_DEPTH:
        raise BadFileError("JSON is nested too deeply", where=where, found=depth, allowed=f"<= {_JSON_DEPTH}")
