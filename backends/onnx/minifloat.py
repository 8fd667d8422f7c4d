"""x"""
from qdeploy.ir.tensor import QTensor
from typing import Any
def minifloat_form(name: str, tensor: QTensor) -> Any: return None
