"""A request that is not carried out: one status, one sentence, in the form that clients of the OpenAI API read."""

from __future__ import annotations

from typing import Any

from qdeploy.errors import DefectError, QdeployError
from qdeploy.native import NoMemoryError, UnderFloorError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818
    """Why a request is refused.

    Args:
        status: Of HTTP.
        message: One sentence for the person who wrote the request.
        param: The field that is meant.
        code: A word for programs.
        headers: Further ones of the answer.
        more: Facts beside the message, under the key "qdeploy".
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers, self.more = headers or {}, more

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error} if self.more is None else {"error": error, "qdeploy": self.more}


def refusal_of(error: Exception) -> Refusal:
    """An error as an answer: what the memory does not allow is 503, what the request causes 400, all else 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnderFloorError):
        text = f"the memory budget does not suffice for this request: {error.floor} bytes would"
        return Refusal(503, text, code="memory", headers={"Retry-After": "1"}, more={"floor": error.floor})
    if isinstance(error, NoMemoryError):
        return Refusal(503, "the machine's memory does not suffice for this request", code="memory")
    if isinstance(error, QdeployError) and not isinstance(error, DefectError):
        facts = "; ".join(f"{label} {text}" for label, text in _facts(error) if text)
        return Refusal(400, f"{error.what} ({facts})" if facts else error.what)
    return Refusal(500, "internal error", code="internal")


def _facts(error: QdeployError) -> list[tuple[str, str]]:
    """What an error says beside its sentence, but for paths of this machine."""
    return [("found", error.found), ("allowed", error.allowed)]
