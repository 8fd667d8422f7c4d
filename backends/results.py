"""What a backend gives back; the dataclasses are those of the contract."""

from __future__ import annotations

from qdeploy.contracts.results import CheckResult, Choice, Lowered, Row

__all__ = ["CheckResult", "Choice", "Lowered", "Row"]
