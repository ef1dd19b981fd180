"""Azure's errors as ours, and how its SDK retries.

Data in: exceptions of azure-core, azure-identity and azure-storage-blob. Data out: StoreError and BlobMissingError,
with key and remedy, without URLs, signatures or keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.errors import BlobMissingError, StoreError
from serving.stores import common

ROLE = "Storage Blob Data Contributor (or Reader, on hosts)"


def retries(patience: common.Patience) -> Any:
    """The SDK's own policy, `patience.attempts` tries of a request, with full jitter instead of 15 seconds and more."""
    from azure.core.exceptions import ClientAuthenticationError
    from azure.storage.blob import ExponentialRetry

    class Retry(ExponentialRetry):
        def get_backoff_time(self, settings: dict[str, Any]) -> float:
            return patience.pause_seconds(settings["count"])

        def increment(self, settings: dict[str, Any], request: Any, response: Any = None, error: Any = None) -> bool:
            """Whether to try again; credentials that can't be had are no matter of waiting."""
            if isinstance(error, ClientAuthenticationError):
                return False
            return bool(super().increment(settings, request, response, error))

    again = patience.attempts - 1
    return Retry(retry_total=again, retry_connect=again, retry_read=again, retry_status=again)


def retry_busy(response: Any) -> None:
    """A response hook: 429 is some gateways' 503, and nothing that the policy retries."""
    from azure.core.exceptions import ServiceResponseError

    if response.http_response.status_code == 429:
        raise ServiceResponseError("answered 429")


def answered() -> type[Exception]:
    """The error of a request that the server refused, or whose answer's body broke (`is_broken`)."""
    from azure.core.exceptions import HttpResponseError

    refused: type[Exception] = HttpResponseError
    return refused


def is_broken(error: Exception) -> bool:
    """Whether an answer came but its body didn't arrive whole; the SDK has then asked three times."""
    from azure.core.exceptions import ClientAuthenticationError

    return getattr(error, "response", None) is None and not isinstance(error, ClientAuthenticationError)


def code_of(error: Exception) -> str:
    """Azure's error code, such as "BlobNotFound"; from the status where an answer names none."""
    code = getattr(error, "error_code", None)
    if code:
        return str(getattr(code, "value", code))
    return {404: "BlobNotFound", 412: "ConditionNotMet", 416: "InvalidRange"}.get(_status(error), "")


def _status(error: Exception) -> int:
    return int(getattr(error, "status_code", None) or 0)


@contextmanager
def explain(key: str, location: common.Location, patience: common.Patience) -> Iterator[None]:
    """Turns Azure's errors within the block into StoreError."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        if code_of(error) in ("BlobNotFound", "ResourceNotFound"):
            raise BlobMissingError(f"{key}: no such blob in {location}") from error
        why = _refusal(error, location, patience) if _status(error) else _failure(error, location, patience)
        raise StoreError(f"{key}: {why}") from error


def _refusal(error: Exception, location: common.Location, patience: common.Patience) -> str:
    status, code = _status(error), code_of(error)
    if code == "ContainerNotFound":
        return f"there is no container {location.bucket!r}; create it, or correct the store's URL"
    if code in ("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation") or status == 401:
        return (
            f"{location} doesn't accept the credentials ({code or status}); renew the key or signature in "
            "AZURE_STORAGE_CONNECTION_STRING, or `az login` again, and check the clock"
        )
    if status == 403:
        return (
            f"access to {location} denied ({code or status}); the account in use needs the role {ROLE}, or the key in "
            "AZURE_STORAGE_CONNECTION_STRING isn't the account's any more"
        )
    if code in ("Md5Mismatch", "InvalidMd5"):
        return f"arrived in {location} with another checksum than it left with; nothing was stored, try again"
    if code == "ConditionNotMet":
        return f"was replaced in {location} while it was read; read it again"
    if status == 429 or status >= 500:
        return (
            f"{location} answered {status} {code} to each of {patience.attempts} attempts; try again later. Whether a "
            "write took place, only a read can tell"
        )
    return f"{location} refused with {status} {code}: {common.without_urls(error)}"


def _failure(error: Exception, location: common.Location, patience: common.Patience) -> str:
    """Where there was no answer, or none that can be used."""
    from azure.core.exceptions import ClientAuthenticationError, DecodeError

    name = type(error).__name__
    if isinstance(error, ClientAuthenticationError):  # azure-identity's; its words list everything that was tried
        return (
            f"no usable Azure credentials for {location} ({name}); run `az login`, give the machine a managed "
            "identity, or set AZURE_STORAGE_CONNECTION_STRING"
        )
    if isinstance(error, DecodeError) or "MD5 mismatch" in str(error):
        return f"an answer from {location} is damaged: its checksum or form doesn't fit; try again"
    return (
        f"no whole answer from {location} ({name}) in {patience.attempts} attempts of at most "
        f"{patience.timeout_seconds:g} s; check the network, or raise {common.TIMEOUT_VARIABLE}. Whether a write took "
        "place, only a read can tell"
    )
