"""The end of a training that went well: the model's folder, its card, and the job's end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from api_schemas.evaluation import Evaluation
from api_schemas.methods import Method
from encoders import registry
from encoders.loading import AnyEncoder
from storage import attempts, job_files, job_history, models
from storage import files as stored_files
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.manifests import sha256
from storage.settings import StorageSettings
from storage.tables import Job
from workers.data.prepared import Prepared
from workers.evaluation import card
from workers.patience import patiently
from workers.search.job_search import Found
from workers.training import starting
from workers.training.recorder import Attempt
from workers.training.trainer import Trainer


class Publication:
    """What one attempt publishes. Its steps have been recorded."""

    def __init__(self, settings: StorageSettings, database: Database, attempt: Attempt) -> None:
        self._settings = settings
        self._database = database
        self._attempt = attempt
        self._artifacts = ArtifactStore(settings.artifacts_dir)

    def described(
        self,
        job: Job,
        base_model: str,
        trainer: Trainer,
        prepared: Mapping[str, Prepared],
        found: Evaluation | None,
        search: Found | None,
    ) -> card.Run:
        """What the model card is written from."""
        base = registry.available(self._settings.base_models_dir).get(base_model)
        files, losses = patiently(lambda: self._recorded(job, prepared))
        if search is not None:  # the steps of all trials are numbered through
            losses = [(step - search.steps.start + 1, loss) for step, loss in losses if step in search.steps]
        return card.Run(
            job_id=job.id,
            base_model=base_model,
            started_from=job.model,
            license=base.license if base else None,
            dimension=trainer.encoder.dimension,
            max_seq_length=starting.length_read(trainer.encoder),
            loading=starting.usage_of(trainer.encoder),
            notes=starting.notes_of(trainer.encoder),
            files=files,
            method=(Method(**job.method) if search is None else Method(contrastive=search.method)).model_dump(),
            seed=job.seed,
            steps=trainer.step,
            trained_tokens=trainer.trained_tokens,
            losses=losses,
            evaluation=found,
        )

    def _recorded(
        self, job: Job, prepared: Mapping[str, Prepared]
    ) -> tuple[list[card.DataFile], list[tuple[int, float]]]:
        """The files that the job read, and its loss by step."""
        with self._database.session_across_teams() as session:
            read = []
            for param, file_id in job_files.named(job).items():
                file = stored_files.get(session, file_id)
                rows = len(prepared[file_id]) if file_id in prepared else file.rows
                read.append(card.DataFile(card.purpose_of(param), file_id, file.sha256, rows))
            return read, [(step["step"], step["loss"]) for step in job_history.metrics(session, job, max_points=1000)]

    def publish(
        self,
        job: Job,
        encoder: AnyEncoder,
        base_model: str,
        base_folder: Path | None,
        run: card.Run,
        search: Found | None,
    ) -> None:
        """Save the encoder, make its folder visible, and end the job, in this order."""
        name = models.artifact_name(job)
        with self._artifacts.publishing_model(name) as folder:
            starting.save(encoder, folder, base_folder=base_folder, formats=Method(**job.method).contrastive.export)
            card.write(run, folder)
        weights = sha256(self._artifacts.model(name) / "model.safetensors")

        def write() -> None:
            with self._database.session_across_teams() as session:
                attempts.succeed(
                    session, self._attempt.job_id, self._attempt.number, base_model=base_model,
                    weights_sha256=weights, dimension=encoder.dimension, max_seq_length=starting.length_read(encoder),
                    trained_tokens=run.trained_tokens, method=Method(**run.method).stored() if search else None,
                )  # fmt: skip

        try:
            patiently(write)
        except attempts.StaleAttempt:
            # Also what a second try is told when the first was committed and its answer lost.
            if self._is_registered(name):
                return
            self._artifacts.delete_model(name)
            raise

    def _is_registered(self, name: str) -> bool:
        def read() -> bool:
            with self._database.session_across_teams() as session:
                return models.is_registered(session, name)

        return patiently(read)
