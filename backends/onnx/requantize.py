"""x"""
from qdeploy.ir.tensor import QTensor
from typing import Any
def requantized(tensor: QTensor) -> Any: return None
