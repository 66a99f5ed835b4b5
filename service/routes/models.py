"""/v1/models: the base encoders and the team's tuned ones."""

import re

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.models import Model, RefusedMode, ServingMode
from api_schemas.pages import Deleted, Page
from service.keys import Caller, CallerDep
from service.model_names import NamedModel, base_models, find_model_itself, model_not_found
from service.routes.paging import page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute
from storage import models, tables
from storage.archives import Archive
from storage.artifacts import failing_disk_is_told
from storage.model_folders import ModelFolders

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)

# Base models came with the installation, at no particular time.
_NO_TIME = 0
_TAR = "application/x-tar"


@router.get("")
def list_models(caller: CallerDep, state: StateDep) -> Page[Model]:
    """The team's tuned models, newest first, then the base models of this installation."""
    with state.database.session(caller.team_id) as session:
        tuned = [_tuned(row, state) for row in models.list_models(session)]
    bases = base_models(state.settings.base_models_dir).values()
    listed = [*tuned, *(_base(base, state) for base in bases)]
    return page_of(listed, [model.id for model in listed], has_more=False)


# Before the route of a model itself, whose name may hold any `/`.
@router.get("/{model:path}/card", response_class=Response, responses={200: {"content": {"text/markdown": {}}}})
def get_card(model: str, caller: CallerDep, state: StateDep) -> Response:
    """The model card in Markdown: data, configuration, figures with their intervals, limits and licence."""
    found = _tuned_model(model, caller, state)
    try:
        with failing_disk_is_told():
            return Response(state.artifacts.card(found.artifact), media_type="text/markdown; charset=utf-8")
    except FileNotFoundError as gone:
        raise LikenessError("not_found", f"The model {model!r} has no card.", param="model") from gone


@router.get("/{model:path}/download", response_class=StreamingResponse, responses={200: {"content": {_TAR: {}}}})
def download_model(model: str, caller: CallerDep, state: StateDep) -> StreamingResponse:
    """A tar of the model's folder; unpacked, it opens in SentenceTransformer. Checked against its checksums before."""
    found = _tuned_model(model, caller, state)
    folders = ModelFolders(state.database, state.artifacts)
    with failing_disk_is_told():
        folder = folders.verified(found.id, found.artifact, weights_sha256=found.weights_sha256)
    archive = Archive.of_folder(folder)
    filename = re.sub(r"[^A-Za-z0-9._-]+", "-", model)
    headers = {"Content-Length": str(archive.size), "Content-Disposition": f'attachment; filename="{filename}.tar"'}
    return StreamingResponse(archive.chunks(), media_type=_TAR, headers=headers)


@router.get("/{model:path}")
def get_model(model: str, caller: CallerDep, state: StateDep) -> Model:
    """One model. A `/` in its name may be sent as it is or as %2F."""
    with state.database.session(caller.team_id) as session:
        row = models.find(session, model)
        if row is not None:
            return _tuned(row, state)
        return _base(_base_model(session, state, model), state)


@router.delete("/{model:path}")
def delete_model(model: str, caller: CallerDep, state: StateDep) -> Deleted:
    """Delete a tuned model, unless a job trains it further or an alias stands for it.

    Nobody finds it from now on; its files are removed some minutes later, when no request can be reading them. Base
    models belong to the installation and stay.
    """
    with state.database.session(caller.team_id) as session:
        models.delete(session, model)
    state.catalogue.forget()
    return Deleted(id=model, object="model")


def _tuned_model(model: str, caller: Caller, state: ServiceState) -> tables.Model:
    """A tuned model by name. Raises LikenessError `model_not_found`."""
    with state.database.session(caller.team_id) as session:
        row = models.find(session, model)
        if row is not None:
            return row
        _base_model(session, state, model)
    raise LikenessError(
        "model_not_found",
        f"{model!r} is a base model, which this service did not make; it has cards and downloads of tuned models.",
        param="model",
    )


def _base_model(session: Session, state: ServiceState, model: str) -> NamedModel:
    """A base model by name. Raises LikenessError `model_not_found`, also for an alias, which is no model itself."""
    found = find_model_itself(session, state.settings, model)
    if found is None:
        raise model_not_found(model)
    return found


def _base(base: NamedModel, state: ServiceState) -> Model:
    return Model(
        id=base.name,
        created=_NO_TIME,
        owned_by="likeness",
        kind="base",
        base_model=base.name,
        reads=base.reads,
        dimension=base.dimension,
        max_seq_length=base.max_seq_length,
        weights_sha256=base.weights_sha256,
        mode=_mode(base.name, state),
    )


def _tuned(row: tables.Model, state: ServiceState) -> Model:
    return Model(
        id=row.id,
        created=int(row.created_at.timestamp()),
        owned_by=row.team_id,
        kind="fine_tuned",
        base_model=row.base_model,
        reads=row.reads,
        dimension=row.dimension,
        max_seq_length=row.max_seq_length,
        weights_sha256=row.weights_sha256,
        fine_tuning_job=row.job_id,
        training_file=row.training_file,
        evaluation_split=row.evaluation_split,
        damage=row.damage,
        mode=_mode(row.id, state),
    )


def _mode(name: str, state: ServiceState) -> ServingMode | None:
    """How this process computes a model, if it has it in memory."""
    if state.inference is None or (forward := state.inference.pool.in_memory(name)) is None:
        return None
    choice = forward.choice
    refused = [RefusedMode(mode=mode, reason=why) for mode, why in choice.refused]
    return ServingMode(single=choice.single, several=choice.several, chosen=forward.has_chosen, refused=refused)
