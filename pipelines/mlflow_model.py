"""What MLflow is told of a bundle as a model: its signature, in a file `MLmodel`.

Data in: a bundle's manifest. Data out: inputs and outputs of the whole model as MLflow's types. Invariant: no code, no
pickle, no flavour MLflow could run; the file points at the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from serving.bundle import Bundle
from serving.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def save_mlmodel(bundle: Bundle, run_id: str, folder: str, path: Path, flavour: Mapping[str, str]) -> None:
    """Write `MLmodel` to `path`; `folder` is where it will lie among the run's artifacts."""
    from mlflow.models import Model

    mlmodel = Model(
        artifact_path=folder,
        run_id=run_id,
        signature=signature_of(bundle.manifest),
        flavors={"strikeforge": dict(flavour)},
    )
    mlmodel.save(str(path))


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
