"""Rows that a test adds are taken away again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qdeploy import registry
from qdeploy.quantize import QUANTIZERS


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    tables = (registry.FORMATS, registry.BACKENDS, QUANTIZERS)
    before = [set(table.rows()) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        for name in set(table.rows()) - names:
            table.remove(name)
