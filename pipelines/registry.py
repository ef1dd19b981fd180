"""MLflow, and the only file that imports it: runs, model versions with signature and lineage, aliases.

Data in: metrics, tags, files, bundles. Data out: run ids, version numbers, aliases, tags. SQLite beside
`mlruns/` unless a server's URI is given. A version's source is the run's `model/` folder: `MLmodel`
(signature only, no code, no pickle) and `bundle/`. Invariants: MLflow records, the ledger decides; a version
carries its bundle's sha256 as a tag; every MLflow failure comes out as RegistryError. Importing this module
is cheap, opening a registry takes seconds.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.bundle import Bundle
from serving.errors import StrikeforgeError
from serving.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
BUNDLE_TAG = "bundle_sha256"
RUN_KEY_TAG = "strikeforge.run_key"
PARENT_TAG = "mlflow.parentRunId"
MODEL_FOLDER = "model"
BATCH = 100  # params per request; metrics may be 1000
COPY_ATTEMPTS = 20
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}


class RegistryError(StrikeforgeError):
    """MLflow refused, can't be reached, or holds other versions than the ledger."""


def open_registry(tracking_uri: str = DEFAULT_TRACKING_URI) -> Registry:
    """Connect, creating the SQLite schema if there is none; safe to call from several processes at once."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    artifact_root: Path | None = None
    if tracking_uri.startswith("sqlite:///"):
        database = ROOT / tracking_uri.removeprefix("sqlite:///")  # a relative one lies in the project's root
        tracking_uri = f"sqlite:///{database}"
        artifact_root = database.parent / "mlruns"
        artifact_root.mkdir(parents=True, exist_ok=True)
    with _translated("opening"), _schema_lock(artifact_root):
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return Registry(client, artifact_root)


class LoggedMetric(NamedTuple):
    """A value with its time (ms since 1970) and step; MLflow keeps one of several equal ones."""

    name: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True)
class Registry:
    """An open MLflow; `artifact_root` is None where a server decides."""

    client: MlflowClient
    artifact_root: Path | None

    def log_run(
        self,
        experiment: str,
        run_name: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Path] = (),
        run_key: str | None = None,
    ) -> str:
        """Record a finished run and return its id.

        With a `run_key`, a run of that key is completed, or left alone if complete, instead of made anew.
        """
        from mlflow.entities import Metric, Param

        with _translated(f"logging run {run_name!r}"):
            run_id, finished = self._open_run(experiment, run_name, dict(tags or {}), run_key)
            if finished:
                return run_id
            all_params = [Param(name, str(value)) for name, value in (params or {}).items()]
            for start in range(0, len(all_params), BATCH):
                self.client.log_batch(run_id, params=all_params[start : start + BATCH])
            all_metrics = [Metric(name, value, 0, 0) for name, value in (metrics or {}).items()]
            for start in range(0, len(all_metrics), BATCH):
                self.client.log_batch(run_id, metrics=all_metrics[start : start + BATCH])
            for path in artifacts:
                if path.is_dir():
                    self.client.log_artifacts(run_id, str(path), path.name)
                else:
                    self.client.log_artifact(run_id, str(path))
            self.client.set_terminated(run_id)
        return run_id

    def open_run(
        self, experiment: str, run_name: str, run_key: str, tags: Mapping[str, str], *, parent: str | None = None
    ) -> str:
        """The run of that key, made if there is none, a child of the run `parent`; it is RUNNING (again)."""
        with _translated(f"opening run {run_name!r}"):
            below = {PARENT_TAG: parent} if parent else {}
            run_id, finished = self._open_run(experiment, run_name, {**tags, **below}, run_key)
            if finished:
                self.client.update_run(run_id, status="RUNNING")
        return run_id

    def close_run(
        self,
        run_id: str,
        status: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Sequence[LoggedMetric] = (),
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """Record everything of a run and end it: FINISHED, FAILED or KILLED. Twice is as once."""
        from mlflow.entities import Metric, Param, RunTag

        with _translated(f"closing run {run_id}"):
            self.client.log_batch(
                run_id,
                params=[Param(name, str(value)) for name, value in (params or {}).items()],
                tags=[RunTag(name, value) for name, value in (tags or {}).items()],
            )
            for start in range(0, len(metrics), BATCH):
                self.client.log_batch(run_id, metrics=[Metric(*one) for one in metrics[start : start + BATCH]])
            for path in artifacts:
                self.client.log_artifact(run_id, str(path))
            self.client.set_terminated(run_id, status)

    def child_runs(self, experiment: str, parent: str) -> dict[str, str]:
        """Status of every child run, by run key."""
        children: dict[str, str] = {}
        token = None
        with _translated(f"searching children of run {parent}"):
            experiment_id = self._ensure_experiment(experiment)
            while True:
                page = self.client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'", page_token=token)
                children |= {run.data.tags.get(RUN_KEY_TAG, run.info.run_id): run.info.status for run in page}
                token = page.token
                if not token:
                    return children

    def register_version(
        self,
        model: str,
        run_id: str,
        bundle: Bundle,
        tags: Mapping[str, str],
        *,
        version: int | None = None,
        description: str = "",
    ) -> int:
        """A new version whose source is the bundle, as artifacts of the run, with the manifest's signature.

        With `version`, exactly that number (for rebuilding); RegistryError if MLflow has gone past it.
        """
        from mlflow.models import Model

        with _translated(f"registering a version of {model}"):
            self._ensure_model(model)
            mlmodel = Model(
                artifact_path=MODEL_FOLDER,
                run_id=run_id,
                signature=signature_of(bundle.manifest),
                flavors={"strikeforge": {"bundle": "bundle", BUNDLE_TAG: bundle.sha256}},
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "MLmodel"
                mlmodel.save(str(path))
                self.client.log_artifact(run_id, str(path), MODEL_FOLDER)
            self._log_bundle(run_id, bundle)
            source = f"{self.client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
            all_tags = {**tags, BUNDLE_TAG: bundle.sha256}
            while True:
                made = self.client.create_model_version(
                    model, source, run_id=run_id, tags=all_tags, description=description, await_creation_for=0
                )
                number = int(made.version)
                if version is None or number == version:
                    return number
                self.client.delete_model_version(model, str(number))
                if number > version:
                    raise RegistryError(
                        f"{model}: version {version} can't be made again, MLflow is at {number}; "
                        "rebuild into an empty MLflow"
                    )

    def _log_bundle(self, run_id: str, bundle: Bundle) -> None:
        """Copy the bundle into the run.

        Another process may be at it (MLflow then trips over its folder): the same files, so copying them again does no
        harm.
        """
        for _ in range(COPY_ATTEMPTS):
            try:
                self.client.log_artifacts(run_id, str(bundle.directory), f"{MODEL_FOLDER}/bundle")
            except FileExistsError:
                continue
            return
        raise RegistryError(f"run {run_id}: others kept copying bundle {bundle.sha256} into it; run again")

    def versions(self, model: str) -> dict[int, dict[str, str]]:
        """All versions with their tags; empty if the model is unknown."""
        return {int(found.version): dict(found.tags) for found in self._search(f"name='{model}'")}

    def find_version_by_bundle(self, model: str, sha256: str) -> int | None:
        """The first version made from this bundle."""
        found = self._search(f"name='{model}' and tag.{BUNDLE_TAG}='{sha256}'")
        return min((int(version.version) for version in found), default=None)

    def run_of_version(self, model: str, version: int) -> str:
        with _translated(f"reading {model} version {version}"):
            return str(self.client.get_model_version(model, str(version)).run_id)

    def version_tags(self, model: str, version: int) -> dict[str, str]:
        with _translated(f"reading {model} version {version}"):
            return dict(self.client.get_model_version(model, str(version)).tags)

    def delete_version(self, model: str, version: int) -> None:
        with _translated(f"deleting {model} version {version}"):
            self.client.delete_model_version(model, str(version))

    def aliases(self, model: str) -> dict[str, int]:
        """Aliases and the versions they point at; empty if the model is unknown."""
        from mlflow.exceptions import MlflowException

        with _translated(f"reading aliases of {model}"):
            try:
                found = self.client.get_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {name: int(version) for name, version in found.aliases.items()}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        with _translated(f"setting alias {alias} of {model} to version {version}"):
            self.client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        with _translated(f"deleting alias {alias} of {model}"):
            self.client.delete_registered_model_alias(model, alias)

    def _open_run(self, experiment: str, run_name: str, tags: dict[str, str], run_key: str | None) -> tuple[str, bool]:
        experiment_id = self._ensure_experiment(experiment)
        if run_key is not None:
            found = self.client.search_runs(
                [experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", order_by=["start_time"], max_results=1
            )
            if found:
                return found[0].info.run_id, found[0].info.status == "FINISHED"
            tags = {**tags, RUN_KEY_TAG: run_key}
        return self.client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id, False

    def _ensure_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = (self.artifact_root / name).as_uri() if self.artifact_root else None
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(f"experiment {name!r} was deleted in MLflow; restore it there")
        return str(found.experiment_id)

    def _ensure_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _search(self, query: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = None
        with _translated(f"searching versions, {query}"):
            while True:
                page = self.client.search_model_versions(query, max_results=200, page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    return found


def signature_of(manifest: Manifest) -> ModelSignature | None:
    """What goes into the whole model and comes out of its head, from the first member; a free size is -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as MlflowTensor

    by_role = manifest.members[0].files
    files = [by_role[role] for role in ("window", "head") if role in by_role]
    if "window" not in by_role and "step" in by_role:
        files.insert(0, by_role["step"])
    made = {spec.name for file in files for spec in file.outputs}
    inputs = [spec for file in files for spec in file.inputs if spec.name not in made]
    outputs = list(files[-1].outputs) if files else []

    def schema(specs: list[TensorSpec]) -> Schema:
        return Schema(
            [
                MlflowTensor(spec.numpy_dtype, tuple(-1 if size is None else size for size in spec.shape), spec.name)
                for spec in specs
            ]
        )

    return ModelSignature(schema(inputs), schema(outputs)) if inputs and outputs else None


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"MLflow, {doing}: {error.message}") from error


@contextmanager
def _schema_lock(folder: Path | None) -> Iterator[None]:
    """Two processes creating one SQLite schema at a time fail with "duplicate column name"."""
    if folder is None:
        yield
        return
    with (folder / ".schema-lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
