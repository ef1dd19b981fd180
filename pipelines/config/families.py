"""Families of nets: the settings of each, and the task it is trained for. A new family is one class and one entry here.

In: the section `model` of the configuration, its `name` says which family. Out: the family's frozen settings.
Invariant: `FAMILIES` holds every family, under the name that `model=` takes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from pipelines.config.values import CLOSED, Count, NotNegative, Share

Task = Literal["pricing", "surface"]  # what a family of nets is trained for: pipelines/tasks/
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True, config=CLOSED)
class PricingLSTMSettings:
    """models/pricing_lstm.py; sizes."""

    task: ClassVar[Task] = "pricing"
    name: Literal["pricing_lstm"]
    hidden: Count
    layers: Count
    context: Count
    head_width: Count
    dropout: Share


@dataclass(frozen=True, config=CLOSED)
class PricingTransformerSettings:
    """models/pricing_transformer.py; sizes. `band`: steps a layer looks at, the present one included."""

    task: ClassVar[Task] = "pricing"
    name: Literal["pricing_transformer"]
    width: Count
    heads: Count
    layers: Count
    band: Annotated[int, Field(ge=2, strict=True)]
    context: Count
    head_width: Count
    dropout: Share

    @field_validator("heads")
    @classmethod
    def _divides_the_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width is not None and width % value:
            raise ValueError(f"must divide model.width={width}")
        return value


@dataclass(frozen=True, config=CLOSED)
class SurfaceVAESettings:
    """models/surface_vae.py; sizes, what is hidden in training (a mean share), and the weights of the loss's terms."""

    task: ClassVar[Task] = "surface"
    name: Literal["surface_vae"]
    latent: Count
    width: Count
    dropout: Share
    hidden_share: Share
    kl_weight: NotNegative
    regime_weight: NotNegative
    labelled_share: Annotated[float, Field(gt=0, le=1, strict=True)]  # of the training dates' labels that are used


ModelConfig = Annotated[
    PricingLSTMSettings | PricingTransformerSettings | SurfaceVAESettings, Field(discriminator="name")
]
FAMILIES: dict[str, type[Any]] = {
    "pricing_lstm": PricingLSTMSettings, "pricing_transformer": PricingTransformerSettings,
    "surface_vae": SurfaceVAESettings,
}  # fmt: skip
