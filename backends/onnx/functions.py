"""Model-local functions of the domain `qdeploy` (to come)."""
from qdeploy.ir.tensor import QTensor
from typing import Any
def function_form(name: str, tensor: QTensor) -> Any: return None
