"""Feeds a decoder mutated inputs, and finds what it must not do.

Allowed is to decode, or to raise an error of `blockstore.errors` that can be put into words. Found is any
other exception, an input that takes more than HANG_SECONDS of CPU, and one that wants more than MEMORY_BYTES:
the process may not have more than that above what it had when it began.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import FrameType

from cryptography.utils import CryptographyDeprecationWarning

from blockstore.errors import BlockStoreError
from blockstore.ids import MiB
from tests.fuzz.decoder import Decoder
from tests.fuzz.decoders import DECODERS
from tests.fuzz.mutator import BLOCK_INPUTS, Mutator

HANG_SECONDS = 0.1
MEMORY_BYTES = 64 * MiB
STUCK_SECONDS = 20
"""CPU for one input that does not come back at all."""

FINDINGS_MAX = 20
"""Then a decoder's run stops."""


class Stuck(BaseException):
    """Not an Exception, so that no decoder can take it for its own."""


@dataclass(frozen=True, slots=True)
class Finding:
    decoder: str
    seed: int
    number: int
    data: bytes
    what: str

    def __str__(self) -> str:
        return (
            f"{self.decoder}: {self.what}\n  input {self.data[:60].hex()}{'…' if len(self.data) > 60 else ''}"
            f" ({len(self.data)} bytes)\n"
            f"  replay: python -m tests.fuzz --decoder {self.decoder} --seed {self.seed} --only {self.number}"
        )


@dataclass(slots=True)
class Report:
    decoder: str
    inputs: int = 0
    reached: int = 0  # with right checksums, so that what is behind them was tried
    decoded: int = 0  # taken for valid
    cpu_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list[Finding])

    def __str__(self) -> str:
        each = max(1, self.inputs) / 100
        return (
            f"{self.decoder:18} {self.inputs:9,} inputs, {self.reached / each:3.0f} % behind checksums, "
            f"{self.decoded / each:3.0f} % taken, {1e4 * self.cpu_seconds / each:6.1f} us each, "
            f"{len(self.findings)} findings"
        )

    def add(self, other: Report) -> None:
        self.inputs += other.inputs
        self.reached += other.reached
        self.decoded += other.decoded
        self.cpu_seconds += other.cpu_seconds
        self.findings += other.findings


def examine(decoder: Decoder, data: bytes) -> str:
    """What is wrong with how `data` is decoded; "" if nothing."""
    began = time.thread_time()
    try:
        decoder.decode(data)
    except BlockStoreError as error:
        str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        file = where.filename.rpartition("/")[2]
        return f"{type(error).__name__}: {str(error)[:200]} (line {where.lineno} of {file})"
    except Stuck:
        return f"not done after {STUCK_SECONDS} seconds"
    seconds = time.thread_time() - began
    return f"took {seconds:.2f} seconds" if seconds > HANG_SECONDS else ""


def fuzz(name: str, seed: int, first_block: int, n_blocks: int) -> Report:
    """Every input of `n_blocks` blocks."""
    decoder = DECODERS[name]
    report = Report(name)
    mutator = Mutator(decoder.corpus, decoder.tokens)
    decode, reseal, clock = decoder.decode, decoder.reseal, time.perf_counter
    for valid in decoder.corpus:  # also warms up
        decode(valid)
    began = time.process_time()
    with _limits():
        for block in range(first_block, first_block + n_blocks):
            mutator.begin(f"{seed}/{name}/{block}")
            signal.setitimer(signal.ITIMER_VIRTUAL, STUCK_SECONDS)
            for number in range(block * BLOCK_INPUTS, block * BLOCK_INPUTS + BLOCK_INPUTS):
                mutated, is_resealed = mutator.next()
                if reseal is None:
                    report.reached += 1
                elif is_resealed:
                    reseal(mutated)
                    report.reached += 1
                data = bytes(mutated)
                before = clock()
                try:
                    report.decoded += decode(data) is not None
                except BlockStoreError as error:
                    if not number & 7:
                        try:
                            str(error)
                        except Exception as unspeakable:
                            what = f"{type(unspeakable).__name__} in the words of {type(error).__name__}"
                            report.findings.append(Finding(name, seed, number, data, what))
                except (Exception, Stuck):
                    report.findings.append(Finding(name, seed, number, data, examine(decoder, data)))
                if clock() - before > HANG_SECONDS:
                    what = examine(decoder, data)  # or it was another process's turn
                    if what:
                        report.findings.append(Finding(name, seed, number, data, what))
                report.inputs += 1
            if len(report.findings) >= FINDINGS_MAX:
                break
    report.cpu_seconds = time.process_time() - began
    return report


def input_of(name: str, seed: int, number: int) -> bytes:
    """The one input of that number."""
    decoder = DECODERS[name]
    mutator = Mutator(decoder.corpus, decoder.tokens)
    mutator.begin(f"{seed}/{name}/{number // BLOCK_INPUTS}")
    mutated, is_resealed = mutator.next()
    for _ in range(number % BLOCK_INPUTS):
        mutated, is_resealed = mutator.next()
    if is_resealed and decoder.reseal is not None:
        decoder.reseal(mutated)
    return bytes(mutated)


@contextmanager
def _limits() -> Generator[None]:
    def stuck(_: int, __: FrameType | None) -> None:
        raise Stuck

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        present = int(statm.read().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGVTALRM, stuck)
    # A certificate may be odd in ways that the library only frowns at.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- all of them, on several processes


INPUTS = 200_000
"""Of each decoder."""


def fuzz_all(names: Sequence[str], n_inputs: int, seed: int, n_processes: int) -> list[Report]:
    """A report of each, in order. Whole blocks are tried, each decoder's divided among the processes."""
    n_blocks = -(-n_inputs // BLOCK_INPUTS)
    cuts = [n_blocks * share // n_processes for share in range(n_processes + 1)]
    tasks = [(name, seed, start, end - start) for name in names for start, end in pairwise(cuts)]
    reports = {name: Report(name) for name in names}
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        for report in pool.map(fuzz, *zip(*tasks, strict=True)):
            reports[report.decoder].add(report)
    return list(reports.values())
