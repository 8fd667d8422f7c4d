"""The native runtime in Python: `Runtime` opens a model file, `Engine` runs many sequences of one."""

from __future__ import annotations

from qdeploy.native.engine import Engine, Sequence
from qdeploy.native.library import NoMemoryError, UnderFloorError, isas
from qdeploy.native.pairs import rank
from qdeploy.native.runtime import Runtime, least_memory

__all__ = ["Engine", "NoMemoryError", "Runtime", "Sequence", "UnderFloorError", "isas", "least_memory", "rank"]
