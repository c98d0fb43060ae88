"""Decoders of text that people and small files hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from blockstore.api import location
from blockstore.api.snapshot import choose_snapshot
from blockstore.daemon import local_cluster
from blockstore.daemon.node_directory import NodeDirectory, parse_listen
from blockstore.errors import BlockStoreError
from blockstore.kinds import bucket
from blockstore.placement.policy import Policy
from blockstore_cli.address import is_place, parse_head, parse_place
from blockstore_cli.history import parse_moment
from tests.fuzz.decoder import Decoder
from tests.fuzz.mutator import TEXT

if TYPE_CHECKING:
    import blockstore


class _FakeFile:
    """Stands where a path does, and is always the same text."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __truediv__(self, _: str) -> _FakeFile:
        return self

    def resolve(self) -> _FakeFile:
        return self

    def __str__(self) -> str:
        return "here"

    def exists(self) -> bool:
        return True

    def read_text(self) -> str:
        return self._content.decode()


def _node_file() -> Decoder:
    facts = {
        "version": 1,
        "cluster": "c1",
        "name": "n1",
        "node": 3,
        "security": "tls",
        "host": "10.0.0.1",
        "port": 7440,
        "bus_port": 7441,
        "zone": ["a", "r1"],
        "disks": [{"disk": 4, "directory": "disk-1"}],
    }
    directory = NodeDirectory("here")

    def decode(data: bytes) -> object:
        directory.path = _FakeFile(data)  # type: ignore[assignment]  # what `read` asks of a path
        return directory.read()

    return Decoder(decode, [json.dumps(facts, indent=2).encode(), json.dumps(facts).encode()], tokens=TEXT)


def _cluster_file() -> Decoder:
    facts = {
        "security": "tls",
        "nodes": [{"id": n, "dir": f"node-{n}", "address": f"127.0.0.1:744{n}"} for n in (1, 2)],
    }

    def decode(data: bytes) -> object:
        return local_cluster.LocalCluster.open(_FakeFile(data))  # type: ignore[arg-type]  # what it asks of a path

    return Decoder(decode, [json.dumps(facts, indent=2).encode(), json.dumps(facts).encode()], tokens=TEXT)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bucket_meta() -> Decoder:
    corpus = [
        bucket.encode_meta(metadata, 1_700_000_000.5)
        for metadata in ({}, {"a": "b"}, {"content-type": "image/jpeg", "größe": "1" * 300})
    ]
    return Decoder(lambda data: bucket.info_of(b"name", 5, data, 9, 7), corpus)


def _names() -> Decoder:
    """Of objects, buckets and snapshots, and etags."""

    def decode(data: bytes) -> object:
        text = _text(data)
        for take in (
            bucket.check_bucket_name,
            bucket.check_snapshot_name,
            bucket.sequence_of_etag,
            bucket.prefix_key,
        ):
            _refused(take, text)
        _refused(bucket.name_of, data)
        return bucket.key_of(text)

    return Decoder(decode, [b"photos/2026/a.jpg", "größe".encode(), b"1f-0badcafe", b"x" * 128], tokens=TEXT)


def _refused(take: Callable[[Any], object], argument: Any) -> None:
    try:
        take(argument)
    except BlockStoreError as error:
        str(error)


def _location() -> Decoder:
    environment: Mapping[str, str] = {"HOME": "/home/nobody"}

    def decode(data: bytes) -> object:
        text = _text(data)
        _refused(parse_listen, text)
        return location.resolve(text, "credential.pem", environment)

    corpus = [
        b"tcp://10.0.0.1:7440",
        b"tcp://a,b:7440,[::1]:1",
        b"/var/lib/store",
        b"~/store",
        b"127.0.0.1:7440",
        b"[::1]:80",
    ]
    return Decoder(decode, corpus, tokens=TEXT)


def _config() -> Decoder:
    def decode(data: bytes) -> object:
        def path(_: Mapping[str, str]) -> _FakeFile:
            return _FakeFile(data)

        with patch.object(location, "config_path", path):
            return location.read_config({})

    return Decoder(
        decode, [b'store = "tcp://a:1"\ncredentials = "~/c.pem"\n', b'store = "/x"\n'], tokens=TEXT
    )


def _place() -> Decoder:
    def decode(data: bytes) -> object:
        text = _text(data)
        _refused(parse_head, text)
        is_place(text)
        return parse_place(text, name_needed=text.endswith("g"))

    corpus = [b"photos:2026/a.jpg", b"photos@before:2026/a.jpg", b"photos", b"photos@before"]
    return Decoder(decode, corpus, tokens=TEXT)


class _NoSnapshots:
    name = "photos"

    def snapshots(self) -> list[object]:
        return []


def _moment() -> Decoder:
    bucket = cast("blockstore.Bucket", _NoSnapshots())

    def decode(data: bytes) -> object:
        moment = parse_moment(bucket, _text(data))
        _refused(lambda _: choose_snapshot("photos", [], moment), "")
        return moment

    corpus = [b"2026-11-23 18:30", b"2026-11-23T18:30:00.5+01:00", b"0001-01-01", b"9999-12-31T23:59-12:00"]
    return Decoder(decode, corpus, tokens=TEXT)


def _policy() -> Decoder:
    corpus = [b"replicated(3)", b"ec(4,2)", b"ec(4,2,domain=zone)", b" EC( 2 , 1 )"]
    return Decoder(lambda data: Policy.parse(_text(data)), corpus, tokens=TEXT)


TEXTS = {
    "node-file": _node_file(),
    "cluster-file": _cluster_file(),
    "bucket-meta": _bucket_meta(),
    "names": _names(),
    "location": _location(),
    "config": _config(),
    "place": _place(),
    "moment": _moment(),
    "policy": _policy(),
}
