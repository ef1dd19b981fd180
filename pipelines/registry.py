"""MLflow: runs, model versions with signature and lineage, aliases. How it is opened: pipelines/mlflow_access.py.

Data in: metrics, tags, files, bundles. Data out: run ids, version numbers, aliases, tags. SQLite beside
`mlruns/`, or a server, which then decides where artifacts lie. A version's source is the run's `model/` folder:
`MLmodel` (signature only, no code, no pickle) and `bundle/`. Invariants: MLflow records, the ledger decides; a version
carries its bundle's sha256 as a tag; every MLflow failure comes out as RegistryError; both back ends give the same
answers (tests/pipelines/test_registry.py). Importing this module is cheap, opening a registry takes seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pipelines.mlflow_access import RegistryError as RegistryError
from pipelines.mlflow_access import connect, prepare, translated, without_passwords
from pipelines.mlflow_model import save_mlmodel
from pipelines.mlflow_numbers import exact_numbers
from serving.bundle import Bundle

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Param
    from mlflow.entities.model_registry import ModelVersion

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
BUNDLE_TAG = "bundle_sha256"
RUN_KEY_TAG = "strikeforge.run_key"
PARENT_TAG = "mlflow.parentRunId"
MODEL_FOLDER = "model"
BATCH = 100  # params per request; metrics may be 1000
COPY_ATTEMPTS = 20


def open_registry(tracking_uri: str = DEFAULT_TRACKING_URI) -> Registry:
    """Connect, creating the SQLite schema if there is none; safe to call from several processes at once."""
    return Registry(*connect(tracking_uri))


def lazy_registry(tracking_uri: str = DEFAULT_TRACKING_URI) -> Registry:
    """A registry that connects at first use, and again at the next one if that failed; costs nothing until then."""
    return _LazyRegistry(tracking_uri)


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

        with translated(f"logging run {run_name!r}"):
            run_id, finished = self._open_run(experiment, run_name, dict(tags or {}), run_key)
            if finished:
                return run_id
            all_params = [Param(name, str(value)) for name, value in (params or {}).items()]
            for start in range(0, len(all_params), BATCH):
                self._log_params(run_id, all_params[start : start + BATCH])
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

    def _log_params(self, run_id: str, params: Sequence[Param]) -> None:
        """Another process may be logging the same ones of the same run: PostgreSQL then refuses one of the two.

        Once they are there, MLflow takes equal values again without a word and refuses others.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_batch(run_id, params=params)
        except MlflowException as error:
            if "unique" not in str(error).lower():
                raise
            self.client.log_batch(run_id, params=params)

    def open_run(
        self, experiment: str, run_name: str, run_key: str, tags: Mapping[str, str], *, parent: str | None = None
    ) -> str:
        """The run of that key, made if there is none, a child of the run `parent`; it is RUNNING (again)."""
        with translated(f"opening run {run_name!r}"):
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

        with translated(f"closing run {run_id}"):
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
        with translated(f"searching children of run {parent}"):
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

        With `version`, exactly that number (for rebuilding; it may be there already, of the same bundle);
        RegistryError if MLflow has gone past it or has another bundle there.
        """
        with translated(f"registering a version of {model}"):
            self._ensure_model(model)
            self._log_mlmodel(run_id, bundle)
            self._log_bundle(run_id, bundle)
            source = f"{self.client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
            all_tags = {**tags, BUNDLE_TAG: bundle.sha256}

            def make() -> int:
                made = self.client.create_model_version(
                    model, source, run_id=run_id, tags=all_tags, description=description, await_creation_for=0
                )
                return int(made.version)

            if version is None:
                return make()
            with exact_numbers(self.client, model, self.artifact_root):
                there = self.versions(model).get(version)
                if there is not None and there.get(BUNDLE_TAG) == bundle.sha256:
                    return version  # somebody else made it again meanwhile
                while (number := make()) != version:
                    self.client.delete_model_version(model, str(number))
                    if number > version:
                        raise RegistryError(
                            f"{model}: version {version} can't be made again, MLflow is at {number}; "
                            "rebuild into an empty MLflow"
                        )
                return version

    def _log_mlmodel(self, run_id: str, bundle: Bundle) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "MLmodel"
            save_mlmodel(bundle, run_id, MODEL_FOLDER, path, {"bundle": "bundle", BUNDLE_TAG: bundle.sha256})
            self.client.log_artifact(run_id, str(path), MODEL_FOLDER)

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
        with translated(f"reading {model} version {version}"):
            return str(self.client.get_model_version(model, str(version)).run_id)

    def version_tags(self, model: str, version: int) -> dict[str, str]:
        with translated(f"reading {model} version {version}"):
            return dict(self.client.get_model_version(model, str(version)).tags)

    def delete_version(self, model: str, version: int) -> None:
        with translated(f"deleting {model} version {version}"):
            self.client.delete_model_version(model, str(version))

    def aliases(self, model: str) -> dict[str, int]:
        """Aliases and the versions they point at; empty if the model is unknown."""
        from mlflow.exceptions import MlflowException

        with translated(f"reading aliases of {model}"):
            try:
                found = self.client.get_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {name: int(version) for name, version in found.aliases.items()}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        with translated(f"setting alias {alias} of {model} to version {version}"):
            self.client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        with translated(f"deleting alias {alias} of {model}"):
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
            self.client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(f"experiment {name!r} was deleted in MLflow; restore it there")
        if self.artifact_root is None:
            _require_reachable(name, str(found.artifact_location))
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
        with translated(f"searching versions, {query}"):
            while True:
                page = self.client.search_model_versions(query, max_results=200, page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    return found


def _require_reachable(experiment: str, location: str) -> None:
    """Refuse a folder of the server's machine: MLflow would write into one of that name here, unseen by others."""
    parts = urlsplit(location)
    if parts.scheme in ("", "file") and not Path(unquote(parts.path)).is_dir():
        raise RegistryError(
            f"experiment {experiment!r} keeps its artifacts in {location}, a folder that isn't on this machine; let "
            "the server keep them (make mlflow-server with a database of its own, docs/storage.md)"
        )


class _LazyRegistry(Registry):
    """A registry whose client and folder are there from first use on."""

    def __init__(self, tracking_uri: str) -> None:
        prepare()  # methods import MLflow before they ask for the client
        self.__dict__["tracking_uri"] = tracking_uri

    def __repr__(self) -> str:
        return f"lazy_registry({without_passwords(self.__dict__['tracking_uri'])!r})"

    @property
    def client(self) -> MlflowClient:
        return self._connection[0]

    @property
    def artifact_root(self) -> Path | None:
        return self._connection[1]

    @cached_property
    def _connection(self) -> tuple[MlflowClient, Path | None]:
        return connect(self.__dict__["tracking_uri"])
