"""Near duplicates: the same picture in another light, shifted, cropped, compressed or noisy.

Candidates are each image's nearest by 128 bits of hash. Whether a pair is one is told by pixels
(`likeness`), against what is usual in the set itself: digits of one class are all much alike, and
photographs are not. The usual is an image's distance to its fifth-nearest candidate, which further
copies of it (four at most) do not reach, and for larger bursts a share of its class's median.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from pipeline.checks.examined import SIDES, Examined, Rows, count_of
from pipeline.checks.exposure import BLANK_STD
from pipeline.checks.findings import MAX_EXAMPLES, Finding
from pipeline.checks.likeness import prepare_pictures, unlikeness

# Chosen on the digits and on Fashion-MNIST with planted faults; docs/checks.md has the figures.
RATIO = 0.15  # of the usual distance
MOST = 0.02  # of `unlikeness`, whatever is usual
_CLASS_SHARE = 0.3  # of the class's median usual distance, for images with many copies
_USUAL = 5  # which candidate's distance is the usual one
_NEIGHBOURS = 9  # the image itself is one of them

_FLAT_ROWS = 50_000  # up to so many, every pair of hashes is compared
_PROBED_CELLS = 16
_SEED = 1234
_QUERIES = 10_000
_PAIRS = 512  # of one call: some 30 MB of colour
# A cluster may hold this share of its class's distinct images, or this many images.
_LARGEST_SHARE, _LARGEST_FREE = 0.2, 10

Codes = npt.NDArray[np.uint8]
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pairs:
    """Near duplicates by their rows, P pairs.

    Attributes:
        first: (P,) the lower row of each pair.
        second: (P,) the higher one.
        distance: (P,) `unlikeness`.
    """

    first: Rows
    second: Rows
    distance: npt.NDArray[np.float64]

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Pairs":
        """Return the given pairs."""
        return Pairs(self.first[rows], self.second[rows], self.distance[rows])


def find_pairs(examined: Examined, rows: Rows, threads: int, on_progress: Step) -> Pairs:
    """Return the pairs of near duplicates among the given rows, which are distinct images.

    Args:
        examined: the set.
        rows: ascending; blank ones are left out.
        threads: of the search.
        on_progress: hears (task, done, total).
    """
    rows = rows[examined.facts.std[rows] >= BLANK_STD]
    nothing = Pairs(rows[:0], rows[:0], np.zeros(0))
    if len(rows) < 2 or min(examined.images(rows[:1]).shape[1:3]) < 4:
        return nothing
    first, second = _candidates(_codes(examined, rows), threads, on_progress)
    distance = _measure(examined, rows[first], rows[second], on_progress)
    usual = _usual(len(rows), first, second, distance)
    labels = examined.labels[rows]
    for label in np.unique(labels):
        own = labels == label
        usual[own] = np.maximum(usual[own], _CLASS_SHARE * np.median(usual[own]))
    limit = np.minimum(RATIO * np.minimum(usual[first], usual[second]), MOST)
    return Pairs(rows[first], rows[second], distance).take(distance < limit)


def cluster_rows(examined: Examined, pairs: Pairs) -> tuple[Rows, list[Finding]]:
    """Return (N,) the lowest row of each row's cluster, and what was found too large to keep.

    Equal images are always of one cluster. Near duplicates are joined where a chain of pairs leads
    from one to the other; a cluster with more than a fifth of a class's distinct images, and more
    than 10, would leave too little to split by, and falls apart into exact copies.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(examined)
    links = coo_array(
        (np.ones(len(pairs.first), dtype=bool), (pairs.first, pairs.second)), shape=(count, count)
    )
    _, found = connected_components(links, directed=False)
    found = found[examined.same]
    distinct = examined.first_rows
    sizes = np.bincount(found[distinct], minlength=count)
    of_class = np.bincount(examined.labels[distinct], minlength=len(examined.classes))
    room = np.maximum(_LARGEST_SHARE * of_class[examined.labels], _LARGEST_FREE)
    broken = np.zeros(count, dtype=bool)
    broken[found[sizes[found] > room]] = True  # by number of the cluster
    lowest = np.full(count, count, dtype=np.int64)
    np.minimum.at(lowest, found, np.arange(count))
    clusters = np.where(broken[found], examined.same, lowest[found])
    if not broken.any():
        return clusters, []
    some = np.flatnonzero(broken)
    finding = Finding(
        "near_duplicate_bursts",
        "warning",
        len(some),
        f"{count_of(len(some), 'chain of near duplicates holds', 'chains of near duplicates hold')}"
        f" more than a fifth of a class",
        "not kept together, since too little would be left to split by: the classes are so alike "
        "within, or so much repeated, that a score on held-out images tells little",
        tuple(
            examined.example(lowest[one], f"with {sizes[one] - 1:,} others")
            for one in some[:MAX_EXAMPLES]
        ),
    )
    return clusters, [finding]


def near_duplicates(examined: Examined, pairs: Pairs) -> list[Finding]:
    """Report near duplicates within a class, across labels, and across given splits."""
    order = np.lexsort((pairs.second, pairs.first, np.round(pairs.distance, 4)))
    pairs = pairs.take(order.astype(np.int64))
    across = examined.labels[pairs.first] != examined.labels[pairs.second]
    sides = examined.sides
    one, two = sides[pairs.first], sides[pairs.second]
    # Equal images of several sides: the one with the pair's row stands for them all.
    apart = (one != two) & ((one >= SIDES["validation"]) | (two >= SIDES["validation"]))
    apart &= (one >= 0) & (two >= 0)
    together = "kept, on one side of every split that is drawn"
    return [
        *_finding(
            examined,
            pairs.take(~across & ~apart),
            "near_duplicates",
            "info",
            "of near duplicates within a class",
            together,
        ),
        *_finding(
            examined,
            pairs.take(across & ~apart),
            "near_duplicates_across_labels",
            "warning",
            "of near duplicates with two labels",
            f"{together}; one of the labels may be wrong",
        ),
        *_finding(
            examined,
            pairs.take(apart),
            "near_duplicate_leaks",
            "warning",
            "of near duplicates on two sides of the given split",
            "kept as given; the score on the held-out side may be too good, so remove one of each "
            "pair, or give no split",
        ),
    ]


def _finding(
    examined: Examined, pairs: Pairs, check: str, severity: str, what: str, action: str
) -> list[Finding]:
    if not len(pairs.first):
        return []
    examples = []
    for first, second in zip(
        pairs.first[:MAX_EXAMPLES].tolist(), pairs.second[:MAX_EXAMPLES].tolist(), strict=True
    ):
        detail = f"nearly the same as {examined.names[second]}"
        if examined.labels[first] != examined.labels[second]:
            detail += f", labelled {examined.class_name(second)}, not {examined.class_name(first)}"
        if check == "near_duplicate_leaks":
            detail += f": {examined.splits[first]} and {examined.splits[second]}"
        examples.append(examined.example(first, detail, second))
    return [
        Finding(
            check,
            "info" if severity == "info" else "warning",
            len(pairs.first),
            f"{count_of(len(pairs.first), 'pair', 'pairs')} {what}",
            action,
            tuple(examples),
        )
    ]


def _codes(examined: Examined, rows: Rows) -> Codes:
    facts = examined.facts
    words = np.stack((facts.wave_hash[rows], facts.slope_hash[rows]), axis=1)
    return np.ascontiguousarray(words).view(np.uint8).reshape(len(rows), 16)


def _candidates(codes: Codes, threads: int, on_progress: Step) -> tuple[Rows, Rows]:
    """Return the pairs (lower, higher) of which one is among the other's nearest by hash."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        index = _index(codes)
        keys: list[Rows] = []
        count = len(codes)
        for start in range(0, count, _QUERIES):
            found = index.search(codes[start : start + _QUERIES], min(_NEIGHBOURS, count))[1]
            own = np.arange(start, start + len(found))[:, None]
            low, high = np.minimum(own, found), np.maximum(own, found)
            keys.append((low * count + high)[(low >= 0) & (low != high)])
            on_progress("compare hashes", min(start + _QUERIES, count), count)
    finally:
        faiss.omp_set_num_threads(before)
    pairs = np.unique(np.concatenate(keys))
    return pairs // count, pairs % count


def _index(codes: Codes) -> Any:
    bits = 8 * codes.shape[1]
    if len(codes) <= _FLAT_ROWS:
        index: Any = faiss.IndexBinaryFlat(bits)
    else:
        cells = int(4 * np.sqrt(len(codes)))
        # The quantizer is an attribute, so that Python does not free it under the index.
        quantizer = faiss.IndexBinaryFlat(bits)
        index = faiss.IndexBinaryIVF(quantizer, bits, cells)
        index.quantizer_kept = quantizer
        index.nprobe = _PROBED_CELLS
        index.cp.seed, index.cp.niter = _SEED, 5
        sample = np.random.default_rng(_SEED).permutation(len(codes))[: 40 * cells]
        index.train(np.ascontiguousarray(codes[np.sort(sample)]))
    index.add(codes)
    return index


def _measure(
    examined: Examined, first: Rows, second: Rows, on_progress: Step
) -> npt.NDArray[np.float64]:
    parts: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(first), _PAIRS):
        one, two = first[start : start + _PAIRS], second[start : start + _PAIRS]
        wanted, where = np.unique(np.concatenate((one, two)), return_inverse=True)
        pictures = prepare_pictures(examined.images(wanted))
        parts.append(unlikeness(pictures[where[: len(one)]], pictures[where[len(one) :]]))
        on_progress("compare pixels", min(start + _PAIRS, len(first)), len(first))
    return np.concatenate(parts) if parts else np.zeros(0)


def _usual(
    count: int, first: Rows, second: Rows, distance: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return (count,) each row's distance to its fifth-nearest candidate, or to its last one."""
    row = np.concatenate((first, second))
    both = np.concatenate((distance, distance))
    order = np.lexsort((both, row))
    row, both = row[order], both[order]
    start = np.searchsorted(row, np.arange(count), side="left")
    stop = np.searchsorted(row, np.arange(count), side="right")
    at = np.minimum(start + _USUAL - 1, stop - 1)
    return np.where(stop > start, both[np.maximum(at, 0)] if len(both) else 0.0, 0.0)
