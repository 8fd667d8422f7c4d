"""Zip archives that are not trusted: how much they hold is known before any of it is read or made room for."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.store.folder import File, Folder

ENTRIES = 1 << 16
_DIRECTORY = 32 << 20
_GROWTH, _FLOOR = 20, 100 << 20
_ERRORS = (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError)


class _Raw(io.RawIOBase):
    """A file as a stream that standard readers take."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._file.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._file.size - self._at))
        buffer[:size] = self._file.read(self._at, size)
        self._at += size
        return size


class Stream(io.BufferedReader):
    """A file as a stream that never makes room for more than there is: a damaged length only reads to the end."""

    def __init__(self, file: File) -> None:
        super().__init__(_Raw(file))
        self._size = file.size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_zip(file: File) -> zipfile.ZipFile:
    """Opens an archive whose directory is of a sensible size.

    Raises:
        BadFileError: It has too many entries.
        zipfile.BadZipFile: It is no archive.
    """
    count, size = _directory(file)
    if count > ENTRIES or size > _DIRECTORY:
        raise BadFileError(
            "an archive with too many entries", where=file.name, found=f"{count} entries", allowed=f"<= {ENTRIES}"
        )
    return zipfile.ZipFile(Stream(file))


def _directory(file: File) -> tuple[int, int]:
    """Entries and bytes of the directory, as the end of an archive says; of 64-bit archives what their record says."""
    begin = max(0, file.size - (1 << 16) - 22)
    tail = file.read(begin, file.size - begin)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        return 0, 0
    count, size = struct.unpack_from("<HI", tail, at + 10)
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if wide >= 0 and wide + 48 <= len(tail):
        count, size = struct.unpack_from("<QQ", tail, wide + 32)
    return int(count), int(size)


def read_arrays(path: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file.

    Raises:
        BadFileError: It is none, is no regular file, holds objects or complex numbers, or unfolds to far more than its
            own size.
    """
    folder = Folder(path, trust_links=True)
    file = folder.open(folder.only or "")
    try:
        with open_zip(file) as archive:
            entries = archive.infolist()
            total, most = sum(entry.file_size for entry in entries), _GROWTH * file.size + _FLOOR
            if total > most:
                raise BadFileError(
                    "an archive that unfolds to far more than its size",
                    where=file.name,
                    found=f"{total} bytes in {file.size}",
                    allowed=f"<= {most}",
                )
            return dict(_arrays(archive, entries, file.name))
    except (*_ERRORS, zipfile.BadZipFile) as error:
        raise BadFileError(f"not an .npz file: {error}", where=file.name) from error
    finally:
        file.close()


def read_array(path: str) -> npt.NDArray[Any]:
    """The array of an .npy file.

    Raises:
        BadFileError: It is none, is no regular file, is cut short, or holds objects or complex numbers.
    """
    folder = Folder(path, trust_links=True)
    file = folder.open(folder.only or "")
    try:
        return _array(Stream(file), file.size, file.name)
    except _ERRORS as error:
        raise BadFileError(f"not an .npy file: {error}", where=file.name) from error
    finally:
        file.close()


def _arrays(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], where: str
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    names: set[str] = set()
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in names:
            raise BadFileError("an archive holds two arrays of one name", where=where, found=name)
        names.add(name)
        with archive.open(entry) as stream:
            yield name, _array(stream, entry.file_size, f"{where}: {entry.filename}")


def _array(stream: IO[bytes], size: int, where: str) -> npt.NDArray[Any]:
    """The array that a stream of so many bytes holds."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or dtype.kind not in "biuf":
        raise BadFileError("an array of this type is no data", where=where, found=dtype, allowed="numbers")
    if wanted > size:
        raise BadFileError("an array ends early", where=where, found=shape)
    data = np.frombuffer(stream.read(wanted), dtype)
    return data.reshape(shape, order="F" if fortran else "C").copy()
