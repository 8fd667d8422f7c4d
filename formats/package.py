"""A package of this project, read as any other format. The layout stands at the top of `qdeploy/ir/package.py`."""

from __future__ import annotations

from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.ir.model import Model
from qdeploy.ir.package import MANIFEST, Package
from qdeploy.store.folder import Folder

NAME = "package"
TITLE = "qdeploy package (qdeploy.json and safetensors shards)"
WRITES = False


def sniff(folder: Folder) -> Sniff:
    """Declared by the manifest."""
    return Sniff(100, MANIFEST) if not folder.only and folder.has(MANIFEST) else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the package; tensors are described and checked at their first use."""
    return Package(folder).model()
