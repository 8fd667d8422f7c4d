"""What the server says of itself, and its memory: models, plan, budget, health, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.errors import BadArgumentError, QdeployError
from qdeploy.native import UnderFloorError
from qdeploy.serve.body import read_fields
from qdeploy.serve.fields import Fields
from qdeploy.serve.metrics import budget_of
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service
from qdeploy.serve.wire import as_json
from qdeploy.sizes import parse_size


async def models(request: Request) -> Response:
    """The one model that is served."""
    service: Service = request.app.state.service
    return as_json({"object": "list", "data": [_model(service)]})


async def model(request: Request) -> Response:
    """The same by its name."""
    service: Service = request.app.state.service
    service.check_name(request.path_params["name"])
    return as_json(_model(service))


def _model(service: Service) -> dict[str, object]:
    facts = {**service.computed(), "context": service.context, "parameters": service.model.parameters}
    return {
        "id": service.name,
        "object": "model",
        "created": service.started,
        "owned_by": "qdeploy",
        "max_model_len": service.context,
        "qdeploy": facts,
    }


async def health(request: Request) -> Response:
    """Whether the process works."""
    service: Service = request.app.state.service
    return as_json(
        {"status": "ok"} if service.ready else {"status": "the scheduler ended"}, 200 if service.ready else 503
    )


async def ready(request: Request) -> Response:
    """Whether a request would be taken now."""
    service: Service = request.app.state.service
    free = service.ready and request.app.state.gate.free
    return as_json({"ready": free}, 200 if free else 503)


async def metrics(request: Request) -> Response:
    """Prometheus's text form."""
    service: Service = request.app.state.service
    return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def plan(request: Request) -> Response:
    """What a budget would give: `?budget=2GB`; without one, what there is now."""
    service: Service = request.app.state.service
    text = request.query_params.get("budget")
    if request.query_params.keys() - {"budget"}:
        raise Refusal(400, "only budget is supported", param="budget")
    return as_json(service.planned(budget_of(service.model.stats) if text is None else _size(text)))


async def memory(request: Request) -> Response:
    """What is held now, by parts."""
    service: Service = request.app.state.service
    return as_json(_memory(service))


async def set_memory(request: Request) -> Response:
    """Moves the budget: {"budget": "2GB"}; takes effect before the next step. Needs the admin token."""
    service: Service = request.app.state.service
    fields: Fields = await read_fields(request, service.limits)
    value = fields.take("budget")
    fields.finish()
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refusal(400, 'budget must be bytes, or a size like "2GB"; 0 lifts the limit', param="budget")
    size = _size(str(value)) if isinstance(value, str) else value
    try:
        service.model.memory = size
    except UnderFloorError as error:
        text = f"the budget is under the floor of {error.floor} bytes"
        raise Refusal(409, text, param="budget", code="floor", more={"floor": error.floor}) from None
    except BadArgumentError as error:
        raise Refusal(400, f"budget: {error.what}", param="budget") from None
    return as_json(_memory(service))


def _size(text: str) -> int:
    try:
        return parse_size(text[:32])
    except QdeployError:
        raise Refusal(400, "budget must be a size like 2GB", param="budget") from None


def _memory(service: Service) -> dict[str, object]:
    stats = service.model.stats
    parts = {name: stats[name] for name in ("weights", "kv", "prompt_cache", "scratch", "fixed")}
    edges = {name: stats[name] for name in ("floor", "ceiling", "peak", "pending")}
    counts = service.metrics.counts()
    return {**service.computed(), **edges, **counts, "parts": parts}
