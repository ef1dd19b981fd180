"""What to compile for: conf/target/<name>.yaml as a closed value. Data in and out only; nothing is decided here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Kind = Literal["tensorrt_rtx", "tensorrt"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Rows = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Profile:
    """Rows of a free dimension (contracts of a chain, surfaces) that an engine takes, and those it is best at."""

    min: Rows
    opt: Rows
    max: Rows


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Target:
    """A library, a GPU generation, a precision."""

    kind: Kind
    precision: Precision
    sm: Annotated[int, Field(ge=10, le=999, strict=True)] | None  # compute capability times ten; empty: the host's GPU
    rows: Profile

    @property
    def name(self) -> str:
        """As its file in conf/target/ is called."""
        return f"trt_host_{self.precision}" if self.sm is None else f"{_PREFIX[self.kind]}_sm{self.sm}_{self.precision}"


_PREFIX = {"tensorrt_rtx": "trt_rtx", "tensorrt": "trt"}
