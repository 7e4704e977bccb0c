"""The `pyarrow.fs` filesystem behind a URI, with its endpoint, timeouts and retries. A URI must carry no credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pyarrow import fs

SCHEMES = ("file", "s3", "gs", "abfs")
# Options in a query. All others are refused, because pyarrow takes secrets there as well.
OPTIONS = {"s3": ("endpoint_override", "scheme", "region"), "gs": ("endpoint_override", "scheme"), "abfs": ("enable_tls",), "file": ()}
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the standard variables, the first that is set counts
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
ATTEMPTS = 11  # of one request; the waits between them, random and doubling up to 20 s, come to a minute on average
CONNECT_SECONDS = 10.0
PATIENCE_SECONDS = ATTEMPTS * CONNECT_SECONDS + 60  # until a store that nobody reaches is given up
STALLED_SECONDS = 60.0  # without a byte, after which a request has failed


def split(uri: str) -> SplitResult:
    """Split a URI into its parts.

    Raises:
        ValueError: the scheme is unknown, or the URI holds what could be a credential, which the message does not repeat.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"storage must be a local path or one of {', '.join(s + '://' for s in SCHEMES)}; got {parts.scheme}://")
    _refuse_credentials(parts)
    allowed = OPTIONS[parts.scheme]
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.fragment or not options.keys() <= set(allowed) or (parts.query and not options):
        known = f"may say {', '.join(allowed)} and nothing else" if allowed else "must have no query"
        raise ValueError(f"a {parts.scheme}:// URI {known}, and no credentials: set those in the environment or an instance role")
    _refuse_credentials(urlsplit("//" + options.get("endpoint_override", "").rpartition("//")[2]))
    return parts


def _refuse_credentials(parts: SplitResult) -> None:
    if parts.password or (parts.username is not None and parts.scheme != "abfs"):
        raise ValueError("storage URIs must not carry credentials: set them in the environment or an instance role")


class PatientS3(fs.S3FileSystem):  # type: ignore[misc]  # pyarrow ships no types
    """An S3 filesystem that keeps its endpoint, timeouts and retries when it is sent to a worker, and takes no credentials along.

    An `S3FileSystem` of pyarrow would forget the retries. An object stays in place until the upload of the new one is complete. That takes
    both settings below: with allow_delayed_open a large upload that cannot begin leaves an empty object, and without background_writes
    an upload that fails in its middle is completed without the parts that failed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take options of `pyarrow.fs.S3FileSystem`. No request is made yet."""
        super().__init__(
            **options,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=STALLED_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            allow_delayed_open=False,
            background_writes=True,
        )
        self.options = dict(options)

    def __reduce__(self) -> tuple[type[PatientS3], tuple[dict[str, Any]]]:
        """Leave the credentials behind: the receiving process finds its own, by the same rules."""
        return PatientS3, (self.options,)


def connect(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URI that is not local, and the path on it.

    Raises:
        ValueError: see `split`; or the URI or the endpoint is malformed.
        OSError: the region of a bucket cannot be determined.
    """
    parts = split(uri)
    options = dict(parse_qsl(parts.query))
    path = unquote(f"{parts.netloc}{parts.path}").rstrip("/")
    if not parts.netloc:
        raise ValueError(f"{uri} names no bucket: expected {parts.scheme}://bucket/folder")
    if parts.scheme == "s3":
        return _s3(parts.netloc, tuple(sorted({**_s3_of_the_environment(), **options}.items()))), path
    if parts.scheme == "gs":
        return fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=90)), path
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def _s3_of_the_environment() -> dict[str, str]:
    """Return endpoint and region as far as the standard variables name them.

    Raises:
        ValueError: the endpoint carries credentials.
    """
    found = {}
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint:
        _refuse_credentials(urlsplit(endpoint))
        found["endpoint_override"] = endpoint
    region = next((os.environ[name] for name in REGIONS if os.environ.get(name)), None)
    if region or endpoint:
        found["region"] = region or "us-east-1"  # which servers other than Amazon's take
    return found


@lru_cache  # connections stay open, and are shared by the folders of a process
def _s3(bucket: str, options: tuple[tuple[str, str], ...]) -> PatientS3:
    chosen = dict(options)
    if "region" not in chosen:
        chosen["region"] = "us-east-1" if "endpoint_override" in chosen else fs.resolve_s3_region(bucket)
    return PatientS3(chosen)
