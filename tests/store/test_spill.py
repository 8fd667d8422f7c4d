"""Results on disk come back by rows, from several threads, and leave nothing behind."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qdeploy.errors import OutputError
from qdeploy.store.spill import Spill


def test_arrays_come_back_by_rows_in_their_own_types() -> None:
    spill = Spill()
    arrays = [np.arange(24, dtype=t).reshape(4, 6) for t in (np.uint8, np.float16, np.float32)]
    arrays += [np.zeros((3, 0), np.uint8), np.arange(24.0).reshape(4, 6).T]
    for array, rows in [(a, spill.keep(a)) for a in arrays]:
        np.testing.assert_array_equal(rows.read(0, len(array)), array)
        np.testing.assert_array_equal(rows.read(1, 3), array[1:3])


def test_threads_do_not_write_over_each_other() -> None:
    spill = Spill()
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(lambda i: spill.keep(np.full((50, 100), i, np.uint8)), range(40)))
    assert all((rows.read(0, 50) == i).all() for i, rows in enumerate(kept))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    rows = Spill().keep(np.ones((4, 4)))  # the rows keep the file
    assert not list(tmp_path.iterdir())
    assert rows.read(0, 1).sum() == 4
    del rows
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space"):
        Spill().keep(np.ones(4))
