"""Google's errors as ours, and which of them are worth another try.

Data in: exceptions of google-cloud-storage, google-auth, requests and urllib3. Data out: StoreError and
BlobMissingError, with key and remedy, without URLs or credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from serving.errors import BlobMissingError, StoreError
from serving.stores import common

READ, LIST, DELETE = "storage.objects.get", "storage.objects.list", "storage.objects.delete"
WRITE = "storage.objects.create and storage.objects.delete"
FINAL = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)


def absent() -> type[Exception]:
    """The error of an object, or bucket, that isn't there."""
    from google.api_core.exceptions import NotFound

    missing: type[Exception] = NotFound
    return missing


def refused() -> type[Exception]:
    """The error of a condition that doesn't hold."""
    from google.api_core.exceptions import PreconditionFailed

    failed: type[Exception] = PreconditionFailed
    return failed


def names_bucket(error: Exception) -> bool:
    """Whether the service said that it is the bucket which isn't there."""
    return "bucket does not exist" in str(error)


def beyond_end() -> type[Exception]:
    """The error of a range that begins behind the last byte."""
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    outside: type[Exception] = RequestRangeNotSatisfiable
    return outside


def crc32c(data: bytes = b"") -> Any:
    """A CRC32C with `update` and `digest`."""
    import google_crc32c

    made: Any = google_crc32c.Checksum
    return made(data)


def attempts_of(patience: common.Patience, progress: Callable[[], int] | None = None) -> Any:
    """A google.api_core Retry: `patience.attempts` tries of each request, or since `progress` last grew."""
    from google.api_core.retry import Retry

    class Attempts(Retry):
        """Counts anew for every function it wraps; waits are the library's (full jitter)."""

        def __call__(self, func: Callable[..., Any], on_error: Callable[[Exception], Any] | None = None) -> Any:
            failures, reached = 0, progress() if progress else 0

            def again(error: Exception) -> bool:
                nonlocal failures, reached
                now = progress() if progress else 0
                failures = 1 if now > reached else failures + 1
                reached = now
                return failures < patience.attempts and _passing(error)

            return Retry(predicate=again, initial=0.5, maximum=20.0, multiplier=2.0, timeout=None)(func, on_error)

    return Attempts(timeout=None)


def _passing(error: Exception) -> bool:
    """Whether the same request may go well next time."""
    import requests
    import urllib3.exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    status = _status(error)
    if status:
        return status in (408, 429) or (status >= 500 and status not in FINAL)
    return isinstance(
        error,
        (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
            requests.exceptions.JSONDecodeError,
            urllib3.exceptions.HTTPError,
            ConnectionError,
            TransportError,
        ),
    ) or (isinstance(error, GoogleAuthError) and bool(error.retryable))


def _status(error: Exception) -> int:
    """The HTTP status of a refusal; 0 where there was no answer."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.storage.exceptions import InvalidResponse

    if isinstance(error, GoogleAPICallError):
        return int(error.code or 0)
    answered: BaseException | None = error
    while answered is not None and not isinstance(answered, InvalidResponse):
        answered = answered.__context__  # the SDK reads the message after the status, and that may break
    return int(answered.response.status_code) if answered is not None else 0


@contextmanager
def explain(key: str, permission: str, location: common.Location, patience: common.Patience) -> Iterator[None]:
    """Turns Google's errors within the block into StoreError; `permission` is what the request needs."""
    import requests
    import urllib3.exceptions
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    network = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError)
    try:
        yield
    except (DataCorruption, GoogleAPIError, InvalidResponse, GoogleAuthError, *network) as error:
        if _status(error) == HTTPStatus.NOT_FOUND and permission == READ and not names_bucket(error):
            raise BlobMissingError(f"{key}: no such blob in {location}") from error
        why = _refusal(error, permission, location, patience) if _status(error) else _failure(error, location, patience)
        raise StoreError(f"{key}: {why}") from error


def _refusal(error: Exception, permission: str, location: common.Location, patience: common.Patience) -> str:
    status = _status(error)
    if status == HTTPStatus.NOT_FOUND:
        return f"there is no bucket {location.bucket!r}; create it, or correct the store's URL"
    if status == HTTPStatus.UNAUTHORIZED:
        return (
            f"{location} doesn't accept the credentials; renew them with `gcloud auth application-default login`, or "
            "correct GOOGLE_APPLICATION_CREDENTIALS"
        )
    if status == HTTPStatus.FORBIDDEN:
        return (
            f"access to {location} denied; allow {permission} on it (and storage.objects.list, without which what is "
            "absent is called denied) to the account in use, e.g. by the role Storage Object User"
        )
    if status in (408, 429) or status >= 500:
        return (
            f"{location} answered {status} to each of {patience.attempts} attempts; try again later. Whether a write "
            "took place, only a read can tell"
        )
    return f"{location} refused with {status}: {common.without_urls(error)}"


def _failure(error: Exception, location: common.Location, patience: common.Patience) -> str:
    """Where there was no answer, or none that can be used."""
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption

    name = type(error).__name__
    if isinstance(error, DataCorruption):
        return f"arrived in {location} with another checksum than it left with; try again"
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return unreadable(location)
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        return (
            f"no usable Google credentials for {location} ({name}); renew them with `gcloud auth application-default "
            "login`, or correct GOOGLE_APPLICATION_CREDENTIALS"
        )
    if isinstance(error, GoogleAPIError):
        return f"{location}: {name}: {common.without_urls(error)}"
    return (
        f"no whole answer from {location} ({name}) in {patience.attempts} attempts of at most "
        f"{patience.timeout_seconds:g} s; check the network, or raise {common.TIMEOUT_VARIABLE}. Whether a write took "
        "place, only a read can tell"
    )


def unreadable(location: common.Location) -> str:
    """What to say of an answer that is damaged or incomplete."""
    return f"{location} answered with a description that can't be read, so there is no checksum; try again"
