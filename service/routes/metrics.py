"""/metrics: what Prometheus reads."""

from fastapi import APIRouter, Response

from service.metrics import CONTENT_TYPE
from service.state import StateDep

router = APIRouter(tags=["platform"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(state: StateDep) -> Response:
    """The numbers of this process. It wants a key, which Prometheus sends as `authorization: {credentials: …}`."""
    # On the event loop, to which all of them belong.
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)
