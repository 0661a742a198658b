"""URLs: what is understood, what is refused, and that no secret is shown."""

import importlib.util
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.storage.locations import is_url, open_location, refuse_url, without_secrets


@pytest.mark.parametrize(
    ("url", "shown", "root"),
    [
        ("memory://bucket/run1/", "memory://bucket/run1", "/bucket/run1"),
        ("s3://bucket/a/b", "s3://bucket/a/b", "bucket/a/b"),
        ("S3://bucket", "s3://bucket", "bucket"),
        ("file:///data/run 1", "file:///data/run 1", "/data/run 1"),
    ],
)
def test_a_url_gives_a_filesystem_and_a_path(url: str, shown: str, root: str) -> None:
    location = open_location(url)
    assert (location.url, location.root) == (shown, root)
    assert location.path("train", "stored.json") == f"{root}/train/stored.json"
    assert location.shown("train") == f"{shown}/train"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/run", r"ftp://host/run: unknown scheme `ftp`; one of file://, memory://, s3"),
        ("simplecache::s3://bucket/run", "no URL; write it with two slashes"),
        ("s3:/bucket/run", r"s3:/bucket/run: no URL; write it with two slashes"),
        ("file://host/run", "names a host; write file:///folder, with three slashes"),
        ("s3://bucket/../other", "not a folder of a store"),
        ("s3://", "not a folder of a store"),
        ("s3://bucket//run", "not a folder of a store"),
        ("s3://bucket/run*", "not a folder of a store"),
        ("s3://bucket/%2e%2e/x", "not a folder of a store"),
        ("file:///", "not a folder of a store"),
        ("memory://bucket/a\nb", "not a folder of a store"),
    ],
)
def test_what_is_no_folder_of_a_store_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_location(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2@bucket/run",
        "s3://hunter2@bucket/run",
        "s3://bucket/run?secret=hunter2",
        "ftp://me:hunter2@host/run?x=hunter2",
        "s3:/me:hunter2@bucket/run",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_location(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        refuse_url(url, "do otherwise")
    assert "hunter2" not in str(caught.value)


def test_the_environment_is_named_where_credentials_belong() -> None:
    with pytest.raises(InputError, match="set them in the environment .AWS_ACCESS_KEY_ID"):
        open_location("s3://me:secret@bucket/run")


def test_secrets_are_taken_out_of_a_drivers_text() -> None:
    told = "GET http://me:p@ss@host:9000/b/k?X-Amz-Signature=1f2e failed, see https://a/b#c now"
    assert without_secrets(told) == "GET http://host:9000/b/k failed, see https://a/b now"


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs the package gcsfs; run `pip install "repl.*\[gs'):
        open_location("gs://bucket/run")
    with pytest.raises(InputError, match=r'needs the package s3fs; run `pip install "repl.*\[s3'):
        open_location("s3://bucket/run")


@pytest.mark.parametrize("path", ["artifacts", "/data/run", "./a:b", "a b/c", "C", "runs/s3:x"])
def test_paths_are_no_urls(path: str) -> None:
    assert not is_url(path)
    refuse_url(path, "never told")


def test_a_path_that_lost_a_slash_is_still_a_url() -> None:
    assert is_url(str(Path("s3://bucket/run")))
    assert is_url("simplecache::s3://bucket/run")
