"""The checker of numbered blocks accuses what never existed."""

from __future__ import annotations

from blockstore.kinds.block import BLOCK_BYTES, SPAN_BYTES
from chaos.numbering import POLICIES, WHOLE_EVERY, Numbering, place_of, value_of

SEED = 3


def images_after(numbers: list[int]) -> list[bytes]:
    images = [bytearray(2 * SPAN_BYTES) for _ in POLICIES]
    for number in numbers:
        place = place_of(number)
        images[place.device][place.offset : place.offset + place.length] = value_of(SEED, number)
    return [bytes(image) for image in images]


def test_every_state_that_existed_is_believed() -> None:
    numbering = Numbering(SEED)
    for newest in (0, 1, WHOLE_EVERY - 1, WHOLE_EVERY, 2 * WHOLE_EVERY + 3, 120):
        images = images_after(list(range(1, newest + 1)))
        assert numbering.judge(images, newest, newest) == ""
        assert numbering.judge(images, 0, 200) == ""


def test_what_never_existed_is_accused() -> None:
    numbering = Numbering(SEED)
    all_of_them = list(range(1, 121))
    whole = images_after(all_of_them)
    assert "not one of 121 to 130" in numbering.judge(whole, 121, 130)
    assert "not one of 0 to 119" in numbering.judge(whole, 0, 119)
    for lost in (119, 100, 60, 41):
        without = images_after([number for number in all_of_them if number != lost])
        assert numbering.judge(without, 0, 120), f"{lost} is missing"
    older = images_after(all_of_them[:-1])
    for device in range(2):  # one device as it was, the other as it is
        mixed = [older[index] if index == device else whole[index] for index in range(2)]
        problem = numbering.judge(mixed, 0, 120)
        assert (problem == "") == (mixed in (whole, older))
    torn = [bytearray(image) for image in whole]
    torn[0][SPAN_BYTES + 5 * BLOCK_BYTES] ^= 1
    assert numbering.judge([bytes(image) for image in torn], 0, 120)
