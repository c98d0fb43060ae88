"""The bytes of version 1 of the wire, as they were when it was made, and what docs/formats/wire.md says of
them."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from blockstore.codec import messages
from blockstore.codec.frame import BUS_VERSION, FRAME_VERSION, PREFIX_BYTES, BusWire, FrameWire
from blockstore.codec.messages import (
    AppendFragment,
    BusMessage,
    Failed,
    FragmentSpec,
    Hello,
    LeaseGranted,
    Ping,
    Put,
    RaftEnvelope,
    VolumeCall,
    WireMessage,
)
from blockstore.config import (
    ANSWERED_BYTES_PER_CONNECTION_MAX,
    CALLS_PER_CONNECTION_MAX,
    FRAME_BYTES_PER_STALL,
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_STALL_SECONDS_MAX,
    HANDSHAKE_SECONDS_MAX,
    OPENING_SECONDS_MAX,
    RECEIVED_BYTES_PER_CONNECTION_MAX,
    SEND_STALL_SECONDS_MAX,
)
from blockstore.ids import ChunkId, DiskId, KiB, MiB, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import ANSWER, CLOSING, HELLO, REQUEST, Message

PAGE = (Path(__file__).parent.parent.parent / "docs" / "formats" / "wire.md").read_text()
WIRE, BUS = FrameWire(), BusWire()

FRAMES: list[tuple[int, int, Message, int, int, str]] = [
    (
        HELLO,
        0,
        Hello("tester", "1.0"),
        0,
        0,
        "62736c0103000000000000000d0000000000000000000000cde41243b4c6382c9303a6746573746572a3312e30",
    ),
    (REQUEST, 7, Ping(), 5, 1_500, "62736c0101000000070000000200000005000000dc050000c2735fe12323f7699104"),
    (
        ANSWER,
        7,
        Failed("NotOwner", (3, 2, 17)),
        0,
        0,
        "62736c0102000000070000000f000000000000000000000071643186989ff8249302a84e6f744f776e657293030211",
    ),
    (
        REQUEST,
        8,
        AppendFragment(
            DiskId(3), ChunkId(VolumeId(1), 2, 3), 2, 0, 0xDEADBEEF, FragmentSpec(0, 4, 2, 16 * MiB)
        ),
        4 * MiB,
        1_000,
        "62736c0101000000080000001800000000004000e8030000ae717959bdd4cea8970b03930102030200cedeadbeef950a000402ce01000000",
    ),
    (
        REQUEST,
        0xFFFF_FFFF,
        VolumeCall(VolumeId(1), 2, RequestId(SessionId(2**64 - 1), 9), 8, Put(b"key", b"meta", 3, 4)),
        3,
        30_000,
        "62736c0101000000ffffffff210000000300000030750000904ad4a1ff2e1e4f961e010292cfffffffffffffffff0908971fc4036b6579c4046d657461030490ff",
    ),
    (
        CLOSING,
        0,
        Failed("PermissionDenied", ("not listed",)),
        0,
        0,
        "62736c0104000000000000001f0000000000000000000000ed2fafc931898c299302b05065726d697373696f6e44656e69656491aa6e6f74206c6973746564",
    ),
]

BUS_MESSAGES: list[tuple[BusMessage, str]] = [
    (LeaseGranted(1.5, 0.75, 3), "0130fec675955bcb3ff8000000000000cb3fe80000000000000300"),
    (RaftEnvelope(b"raft"), "01f5f00b15925cc40472616674"),
]


@pytest.mark.parametrize(("kind", "call_id", "message", "payload_bytes", "budget_ms", "spelled"), FRAMES)
def test_frames_of_version_1_are_read(
    kind: int, call_id: int, message: Message, payload_bytes: int, budget_ms: int, spelled: str
) -> None:
    frame = bytes.fromhex(spelled)
    prefix = WIRE.parse_prefix(frame)
    assert prefix[:5] == (kind, call_id, len(frame) - PREFIX_BYTES, payload_bytes, budget_ms)
    assert WIRE.decode(prefix, frame[PREFIX_BYTES:]) == message


@pytest.mark.parametrize(("message", "spelled"), BUS_MESSAGES)
def test_bus_messages_of_version_1_are_read(message: BusMessage, spelled: str) -> None:
    assert BUS.decode_bus(bytes.fromhex(spelled)) == message


def fields_of(kind: type[msgspec.Struct]) -> str:
    return ", ".join(kind.__struct_fields__) or "—"


def table(first: str) -> list[tuple[str, ...]]:
    """The cells of each row of the page's table whose first heading is this."""
    [rows] = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-| ]+\|\n((?:\|.*\n?)+)", PAGE, re.MULTILINE)
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows.strip().split("\n")]


@pytest.mark.parametrize(
    ("heading", "union"), [("tag | message on a lane", WireMessage), ("tag | message on the bus", BusMessage)]
)
def test_the_page_lists_every_message_with_its_fields(heading: str, union: object) -> None:
    kinds: tuple[type[msgspec.Struct], ...] = typing.get_args(union)
    expected = sorted(
        (int(str(kind.__struct_config__.tag)), kind.__name__, fields_of(kind)) for kind in kinds
    )
    assert [(int(tag), name, fields) for tag, name, fields in table(heading)] == expected


def test_the_page_lists_every_part_with_its_fields() -> None:
    parts = [
        (name, fields_of(kind))
        for name, kind in vars(messages).items()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__struct_config__.tag is None
        and not name.startswith("_")
    ]
    assert table("part") == parts


def test_no_tag_is_used_twice() -> None:
    kinds = typing.get_args(WireMessage) + typing.get_args(BusMessage)
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


def test_the_pages_layout_and_limits_are_the_codes() -> None:
    rows = table("offset")
    sizes = [int(size) for _, size, _ in rows if size != "…"]
    assert sum(sizes) == PREFIX_BYTES
    assert [int(offset) for offset, size, _ in rows if size != "…"] == [
        sum(sizes[:i]) for i in range(len(sizes))
    ]
    for words in (
        f"version ({FRAME_VERSION})",
        f"the version ({BUS_VERSION})",
        f"{REQUEST} request, {ANSWER} answer, {HELLO} hello, {CLOSING} closing",
        f"header, at most {FRAME_HEADER_BYTES_MAX:,}",
        f"payload, at most {FRAME_PAYLOAD_BYTES_MAX:,}",
        f"silent for {HANDSHAKE_SECONDS_MAX:.0f} s",
        f"within {OPENING_SECONDS_MAX:.0f} s",
        f"After {CALLS_PER_CONNECTION_MAX:,} unanswered",
        f"{ANSWERED_BYTES_PER_CONNECTION_MAX // MiB} MiB of answers",
        f"{RECEIVED_BYTES_PER_CONNECTION_MAX // MiB} MiB of payloads",
        f"less than {FRAME_BYTES_PER_STALL // KiB} KiB in a second",
        f"for {SEND_STALL_SECONDS_MAX:.0f} s",
    ):
        assert words in " ".join(PAGE.split()), words
    assert FRAME_STALL_SECONDS_MAX == 1
