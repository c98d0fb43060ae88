"""An owner has an epoch that no owner had before, and ends when control's record says so."""

from __future__ import annotations

import msgspec

from blockstore.codec.control_record import VolumeRecord
from blockstore.ids import NodeId, VolumeId
from blockstore.volume.hosting import Hosting

ME, OTHER = NodeId(1), NodeId(2)
VOLUME = VolumeId(7)
NAMED = VolumeRecord(VOLUME, "photos", "bucket", "replicated(3)", 4, ME, None, (), 0.0)


def with_epoch(epoch: int, owner: NodeId = ME) -> VolumeRecord:
    return msgspec.structs.replace(NAMED, epoch=epoch, owner=owner)


def test_a_volume_that_control_names_ours_begins_and_claims_the_next_epoch() -> None:
    hosting = Hosting(ME)
    assert hosting.reconcile([NAMED]) == ([], [VOLUME])
    assert hosting.claim(NAMED) == with_epoch(5)
    assert hosting.reconcile([NAMED]) == ([], [])  # until its claim is seen
    assert hosting.reconcile([with_epoch(5)]) == ([], [])


def test_every_owner_of_a_volume_has_an_epoch_of_its_own() -> None:
    """One that fell and begins anew counts chunk ids from 1: under the same epoch they were used before."""
    hosting = Hosting(ME)
    record, epochs = NAMED, [NAMED.epoch]
    for _ in range(3):
        hosting.reconcile([record])
        claimed = hosting.claim(record)
        assert claimed is not None
        record = claimed
        epochs.append(record.epoch)
        hosting.forget(VOLUME)
    assert len(set(epochs)) == len(epochs)
    assert epochs == sorted(epochs)


def test_an_epoch_that_is_not_its_claim_ends_an_owner_and_another_begins() -> None:
    hosting = Hosting(ME)
    hosting.reconcile([NAMED])
    hosting.claim(NAMED)
    assert hosting.reconcile([with_epoch(6)]) == ([VOLUME], [VOLUME])


def test_a_volume_given_to_another_ends_and_is_not_claimed() -> None:
    hosting = Hosting(ME)
    hosting.reconcile([NAMED])
    assert hosting.claim(with_epoch(5, OTHER)) is None
    assert hosting.claim(None) is None
    assert hosting.reconcile([]) == ([VOLUME], [])
    assert hosting.owned == {}
