"""What keys and values mean in a bucket: object names, metadata, etags.

Pure. A name is any text of 1 to 1,024 UTF-8 bytes without NUL; it is stored as exactly those bytes and never
normalised, so the NFC and NFD spellings of one word are two objects, and `.`, `..`, `a//b` or a name with a
newline are ordinary names (whoever maps them to paths must refuse them there). Names sort by their bytes,
which for UTF-8 is by code points.

The metadata record of an object is the MessagePack array `[1, modified, {key: value}]`: its version,
wall-clock seconds since 1970 as data, and what the user gave. The engine stores it as opaque bytes under its
own checksum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from blockstore.codec.malformed import MALFORMED
from blockstore.errors import Corrupt, InvalidRequest, UnknownFormat
from blockstore.ids import KiB

OBJECT_NAME_BYTES_MAX: Final = 1_024
METADATA_BYTES_MAX: Final = 8 * KiB
"""Keys and values together, as UTF-8: metadata rides in the map, which is kept in memory."""

META_VERSION: Final = 1


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """One version of one object. `etag` names this version: `sequence` and checksum in hexadecimal."""

    name: str
    size: int
    etag: str
    modified: float  # wall clock of the client that put it, seconds since 1970
    metadata: dict[str, str]
    sequence: int


class CommonPrefix(msgspec.Struct, frozen=True, gc=False):
    """What a listing with a delimiter shows in place of the names that begin with `name`."""

    name: str


# --- names


def key_of(name: str) -> bytes:
    """The stored key of an object name; InvalidRequest says what is wrong with a name that cannot be one."""
    try:
        key = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The object name {name!r} holds a lone surrogate at position {error.start}, so it has no "
            "UTF-8 form; decode it with the encoding that it was written in."
        ) from None
    except AttributeError:
        raise InvalidRequest(f"An object name is a str, not {type(name).__name__}.") from None
    if 0 < len(key) <= OBJECT_NAME_BYTES_MAX and b"\0" not in key:
        return key
    if not key:
        raise InvalidRequest("An object name must not be empty.")
    if len(key) > OBJECT_NAME_BYTES_MAX:
        raise InvalidRequest(
            f"The object name {name[:40]!r}… is {len(key)} bytes long in UTF-8; the most is "
            f"{OBJECT_NAME_BYTES_MAX}."
        )
    raise InvalidRequest(f"The object name {name!r} holds a NUL character; leave it out.")


def name_of(key: bytes) -> str:
    """The name that `key_of` made into `key`."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise Corrupt("An object's key", f"{key!r} is not UTF-8") from None


def prefix_key(prefix: str) -> bytes:
    """The bytes that keys begin with; like a name, but it may be empty."""
    return key_of(prefix) if prefix else b""


def object_words(bucket: str, name: str) -> str:
    """How errors call an object. The repr shows newlines, escapes and trailing blanks for what they are."""
    return f"object {name!r} in bucket {bucket!r}"


# Both are typed in commands as `BUCKET@SNAPSHOT:PREFIX`, so `@`, `:` and `/` are out. Buckets are volumes;
# control keeps the names of all kinds of volumes by one rule.
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def check_bucket_name(name: str) -> None:
    check_volume_name("bucket", name)


def check_volume_name(kind: str, name: str) -> None:
    """`kind`: how errors call it."""
    _check_name(kind, name, _BUCKET_NAME, "1 to 63 of a-z 0-9 . _ -")


def check_snapshot_name(name: str) -> None:
    _check_name("snapshot", name, _SNAPSHOT_NAME, "1 to 128 of A-Z a-z 0-9 . _ + -")


def _check_name(kind: str, name: str, form: re.Pattern[str], words: str) -> None:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # not every program is typed
        raise InvalidRequest(f"The name of a {kind} is a str, not {type(name).__name__}.")
    if not form.fullmatch(name):
        shown = name if len(name) <= 128 else name[:40] + "…"
        raise InvalidRequest(
            f"{shown!r} cannot name a {kind}: it takes {words} and begins with a letter or digit."
        )


# --- metadata


class _Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version: int
    modified: float
    metadata: dict[str, str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Meta).decode


def encode_meta(metadata: Mapping[str, str] | None, modified: float) -> bytes:
    """The record of an object put at wall time `modified`."""
    return _encode(_Meta(META_VERSION, modified, _checked(metadata) if metadata else {}))


def decode_meta(meta: bytes) -> tuple[float, dict[str, str]]:
    """`(modified, metadata)` of a record."""
    try:
        record = _decode(meta)
    except MALFORMED as error:
        raise _unreadable(meta, error) from None
    if record.version != META_VERSION:
        raise UnknownFormat("An object's metadata", record.version, META_VERSION)
    return record.modified, record.metadata


def _unreadable(meta: bytes, error: Exception) -> Corrupt | UnknownFormat:
    """A later version may have another shape; then its version is what there is to say."""
    try:
        fields = msgspec.msgpack.decode(meta, type=list[msgspec.Raw])
        version = msgspec.msgpack.decode(fields[0], type=int)
    except (*MALFORMED, IndexError):
        return Corrupt("An object's metadata", str(error))
    if version > META_VERSION:
        return UnknownFormat("An object's metadata", version, META_VERSION)
    return Corrupt("An object's metadata", str(error))


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    n_bytes = 0
    for key, value in metadata.items():
        # The annotations promise str; a program without a type checker may still give something else.
        for text in (key, value):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidRequest(f"Metadata maps str to str; {text!r} is {type(text).__name__}.")
            try:
                n_bytes += len(text.encode())
            except UnicodeEncodeError:
                raise InvalidRequest(
                    f"The metadata text {text!r} holds a lone surrogate: no UTF-8 form."
                ) from None
        if not key:
            raise InvalidRequest("A metadata key must not be empty.")
    if n_bytes > METADATA_BYTES_MAX:
        raise InvalidRequest(
            f"The metadata is {n_bytes} bytes long; the most is {METADATA_BYTES_MAX}. "
            "Put more into an object."
        )
    return dict(metadata)


# --- etags


_ETAG = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{8})")


def etag_of(sequence: int, crc: int) -> str:
    return f"{sequence:x}-{crc:08x}"


def sequence_of_etag(etag: str) -> int:
    """The sequence that `if_etag` asks for: no two versions of one object share it, so it decides alone."""
    match = _ETAG.fullmatch(etag)
    if match is None or not (sequence := int(match[1], 16)):
        raise InvalidRequest(f"{etag!r} is not an etag; `stat` and `ls -l` show an object's.")
    return sequence


def info_of(key: bytes, sequence: int, meta: bytes, size: int, crc: int) -> ObjectInfo:
    """What a map entry says about its object."""
    modified, metadata = decode_meta(meta)
    return ObjectInfo(name_of(key), size, etag_of(sequence, crc), modified, metadata, sequence)
