"""Types of single values: what numbers, dates and texts of the configuration may be.

In: a value as Hydra composed it. Out: the value, or a ValueError that pydantic puts beside its key. Invariant: no value
is taken for another (true isn't 1, "3" isn't 3, a number isn't a date), but where a type says that it reads text.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)


def _written_as_date(value: Any) -> Any:
    """A number isn't a date, though pydantic would count its seconds from 1970."""
    if value is None or isinstance(value, str | datetime.date):
        return value
    raise ValueError("dates are written YYYY-MM-DD")


def without_nulls(value: Any) -> Any:
    """`data.constants.currency=null` takes a choice's default away, so that a column can take its place."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def number_in_digits(value: Any) -> Any:
    """An operation may get its number as text (`version=${oc.env:VERSION}`); only digits are taken for one."""
    return int(value) if isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,8}", value) else value


def number_as_text(value: Any) -> Any:
    """Hydra takes a version or a hash that happens to be all digits for a number."""
    return str(value) if type(value) is int else value


def listed_with_commas(value: Any) -> Any:
    """A list that came as text, from make: its parts, without those that are empty."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; say it or leave it out")
    return value


# Strict: true isn't 1, "3" isn't 3.
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Date = Annotated[datetime.date, BeforeValidator(_written_as_date)]
VersionNumber = Annotated[Count, BeforeValidator(number_in_digits)]
Said = Annotated[str, AfterValidator(_said)]
