"""The payload of a directory trigger: exactly an S3 notification (lambda.md 6.1), and where to find the file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from eventd_plugins.directory_rules import Version, object_key, sequencer_text


class Source(NamedTuple):
    """What all events of one trigger share."""

    name: str
    region: str
    root: str


def version_etag(version: Version) -> str:
    """32 hex digits that change with the version, for `etag = "version"`."""
    return blake2b(repr(tuple(version)).encode(), digest_size=16).hexdigest()


def created(source: Source, path: bytes, *, identity: str, size: int, etag: str, sequencer: int, at: float) -> Any:
    """The payload for a new version. `at`: seconds since the epoch."""
    described = {"key": object_key(path), "size": size, "eTag": etag, "sequencer": sequencer_text(sequencer)}
    return _notification(source, path, "ObjectCreated:Put", identity, described, at)


def removed(source: Source, path: bytes, *, identity: str, sequencer: int, at: float) -> Any:
    """The payload for a file that is gone: no size and no eTag."""
    return _notification(
        source, path, "ObjectRemoved:Delete", identity, {"key": object_key(path), "sequencer": sequencer_text(sequencer)}, at
    )


def _notification(source: Source, path: bytes, name: str, identity: str, described: Mapping[str, Any], at: float) -> Any:
    request = blake2b(identity.encode(), digest_size=40).hexdigest().upper()
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": source.region,
        "eventTime": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "eventName": name,
        "userIdentity": {"principalId": "eventd"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": request[:16], "x-amz-id-2": request[16:]},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": source.name,
            "bucket": {"name": source.name, "ownerIdentity": {"principalId": "eventd"}, "arn": f"arn:aws:s3:::{source.name}"},
            "object": described,
        },
        "eventd": {"path": os.path.join(source.root, os.fsdecode(path)), "root": source.root},
    }
    payload = {"Records": [record]}
    try:
        return msgspec.Raw(msgspec.json.encode(payload))
    except UnicodeEncodeError:
        # A name that is no UTF-8: lone surrogates, which only the standard library writes, as \udcXX.
        return msgspec.Raw(json.dumps(payload, separators=(",", ":")).encode())
