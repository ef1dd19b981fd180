"""Keys and URLs of a blob store: every good one serves, every bad one is refused before anything is done."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.blobstore import BlobStore, check_key, is_key, open_store
from serving.errors import StoreError

BAD_KEYS = [
    *("", "/a", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a./b", "a\\b", "a\nb", "a\0", "\x7f", "\x85", "\ud800"),
    ".strikeforge-lock",
]
LONG_KEYS = ["x" * 1000, f"a/{'x' * 250}", "/".join("x" * 101)]


@pytest.mark.parametrize("key", [*BAD_KEYS, *LONG_KEYS])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(StoreError, match=r"^key "):
        check_key(key)
    assert not is_key(key)


def test_every_operation_checks_its_key(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    operations: list[Callable[[str], object]] = [
        store.get,
        store.get_blob,
        lambda key: list(store.stream(key)),
        lambda key: list(store.stream(key, start=1)),
        lambda key: store.put(key, b""),
        lambda key: store.put_if_absent(key, b""),
        lambda key: store.put_if_match(key, b"", ""),
        store.delete,
        lambda key: store.upload(key, tmp_path / "source"),
        lambda key: store.download(key, tmp_path / "target"),
        lambda key: store.list(f"{key}/"),
        lambda key: store.entries(f"{key}/"),
        lambda key: store.entries(f"{key}/", shallow=True),
    ]
    for operation, key in itertools.product(operations, ("..", "a//b", "a\nb")):
        with pytest.raises(StoreError, match=r"^key "):
            operation(key)
    assert not (tmp_path / "target").exists()


SEGMENT_LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\")
PUNCTUATION = st.sampled_from(" ~%+?#&=;:.2fe$'\"<>!*()[]")
SEGMENTS = st.text(SEGMENT_LETTERS, min_size=1, max_size=12) | st.text(PUNCTUATION, min_size=1, max_size=8)
ODD_KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join).filter(is_key)
COUNTER = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=ODD_KEYS)
@example(key="a%2Fb/%2e%2e/%00")
@example(key="a+b c/?comp=list&x#y;z")
@example(key="é/e\u0301")  # composed or not: two names
@example(key="..x/.hidden/~")
@example(key="\ufffe\uffff\U0001f4c8")
@example(key=" leading and trailing ")
@example(key="$web/&amp;<x>'\"")
def test_every_key_comes_back_as_it_was(store: BlobStore, key: str) -> None:
    folder = str(next(COUNTER))
    key = f"{folder}/{key}"
    content = key.encode()
    assert store.put_if_absent(key, content)
    assert not store.put_if_absent(key, b"")
    assert store.list(f"{folder}/") == [key]
    assert store.get(key) == content
    blob = store.get_blob(key)
    assert store.put_if_match(key, b"new", blob.etag)
    assert b"".join(store.stream(key, start=1)) == b"ew"
    store.delete(key)
    assert store.list(f"{folder}/") == []


def test_urls(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put("k", b"1")
    assert open_store(f"file://{tmp_path}").get("k") == b"1"
    spaced = tmp_path / "with space"
    open_store(spaced.as_uri()).put("k", b"2")
    assert (spaced / "k").read_bytes() == b"2"


BAD_URLS = {
    "": "empty",
    "ftp://host/x": "'ftp' is unknown",
    "file://host/x": "three slashes",
    "s3://": "bucket",
    "gs:///prefix": "bucket",
    "az://user:hush@container/x": "credentials",
    "s3://bucket/x?signature=hush": "query",
    "s3://bucket/a//b": "segment ''",
    f"s3://bucket/{'x' * 121}": "prefix is longer",
}


@pytest.mark.parametrize(("url", "why"), BAD_URLS.items())
def test_bad_urls_are_refused_and_no_secret_repeated(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as refused:
        open_store(url)
    assert "hush" not in str(refused.value)


LIBRARIES = [("s3", "boto3", "s3"), ("gs", "google.cloud.storage", "gcs"), ("az", "azure.storage.blob", "azure")]


@pytest.mark.parametrize(("scheme", "module", "extra"), LIBRARIES)
def test_a_missing_library_is_named_with_its_remedy(scheme: str, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from serving.blobstore import open_store
from serving.errors import StoreError
try:
    open_store("{scheme}://bucket/prefix")
except StoreError as error:
    sys.exit(0 if "pip install 'strikeforge[{extra}]'" in str(error) else str(error))
sys.exit("opened")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_cloud_library_is_imported_before_a_url_names_it() -> None:
    code = """
import sys
import serving.folder_store, serving.stores.azure, serving.stores.gcs, serving.stores.s3
from serving.blobstore import open_store
open_store("store")
sys.exit(", ".join(sorted(sys.modules.keys() & {"boto3", "botocore", "google.cloud", "google.auth", "azure"})) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
