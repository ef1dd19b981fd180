"""botocore's errors as ours: what happened to which key, and the remedy, without URLs or credentials.

Data in: exceptions of boto3 and botocore. Data out: StoreError and BlobMissingError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import BlobMissingError, StoreError
from serving.stores import common

ABSENT = ("NoSuchKey", "NotFound", "404")
BAD_CREDENTIALS = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "TokenRefreshRequired", "RequestTimeTooSkewed",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A server's refusal: S3's error code ("404" and the like where there is no body), and the HTTP status."""

    code: str
    status: int


def answered() -> type[Exception]:
    """The error of a request that the server refused."""
    from botocore.exceptions import ClientError

    refused: type[Exception] = ClientError
    return refused


def said_by(error: Exception) -> Said:
    """What the server said; empty where there was no answer."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return Said(code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))


def broken() -> tuple[type[Exception], ...]:
    """The errors of an answer's body that stopped on the way."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return HTTPClientError, IncompleteReadError, OSError


def broken_refusal() -> type[Exception]:
    """The error of a refusal whose body stopped on the way; it is urllib3's and escapes botocore."""
    from urllib3.exceptions import HTTPError

    return HTTPError


@contextmanager
def explain(key: str, permission: str, location: common.Location, patience: common.Patience) -> Iterator[None]:
    """Turns botocore's errors within the block into StoreError; `permission` is what the request needs."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        said = said_by(error)
        if said.code in ABSENT:
            raise BlobMissingError(f"{key}: no such blob in {location}") from error
        refusal = _refusal(said, error, permission, location, patience)
        raise StoreError("; ".join([f"{key}: {refusal}", *_notes(error)])) from error
    except (BotoCoreError, broken_refusal()) as error:
        raise StoreError("; ".join([f"{key}: {_failure(error, location, patience)}", *_notes(error)])) from error


def _notes(error: BaseException) -> list[str]:
    """What was added on the way, such as parts that couldn't be removed."""
    return list(getattr(error, "__notes__", ()))


def _refusal(
    said: Said, error: Exception, permission: str, location: common.Location, patience: common.Patience
) -> str:
    if said.code == "NoSuchBucket":
        return f"there is no bucket {location.bucket!r}; create it, or correct the store's URL"
    if said.code in BAD_CREDENTIALS:
        return (
            f"{location} doesn't accept the credentials ({said.code}); renew them, check the clock, and see whose they "
            "are with `aws sts get-caller-identity`"
        )
    if said.status in (401, 403):
        return (
            f"access to {location} denied; allow {permission} on it (and s3:ListBucket, without which S3 calls what is "
            "absent denied) to the credentials in use, which `aws sts get-caller-identity` shows"
        )
    if said.status == 412:
        return f"was replaced in {location} while it was read; read it again"
    if said.status == 429 or said.status >= 500:
        return (
            f"{location} answered {said.status} {said.code} to each of {patience.attempts} attempts; try again later. "
            "Whether a write took place, only a read can tell"
        )
    return f"{location} refused with {said.status} {said.code}: {common.without_urls(error)}"


def _failure(error: Exception, location: common.Location, patience: common.Patience) -> str:
    from botocore.exceptions import (
        ConnectionError,
        CredentialRetrievalError,
        FlexibleChecksumError,
        HTTPClientError,
        NoAuthTokenError,
        NoCredentialsError,
        PartialCredentialsError,
        SSOError,
        TokenRetrievalError,
    )

    name = type(error).__name__
    credentials = (
        NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError, NoAuthTokenError,
        SSOError,
    )  # fmt: skip
    if isinstance(error, credentials):
        return (
            f"no usable AWS credentials ({name}); set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "
            "where a role gives them"
        )
    if isinstance(error, FlexibleChecksumError):
        return f"arrived from {location} with another checksum than it was written with; try again"
    if isinstance(error, (ConnectionError, HTTPClientError, broken_refusal())):
        return (
            f"no whole answer from {location} ({name}) in {patience.attempts} attempts of at most "
            f"{patience.timeout_seconds:g} s; check the network and AWS_ENDPOINT_URL, or raise "
            f"{common.TIMEOUT_VARIABLE}. Whether a write took place, only a read can tell"
        )
    return f"{location}: {name}: {common.without_urls(error)}"
