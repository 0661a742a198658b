"""What must not be torn apart by a split: equal images, near duplicates, one patient."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def join_groups(
    ids: Sequence[str],
    groups: Sequence[str | None],
    clusters: npt.NDArray[np.int64],
    given: Sequence[str | None],
) -> tuple[str, ...]:
    """Return the group of each row: what must not be torn apart.

    Rows of equal pixels, of one named group, or of one cluster of near duplicates belong together,
    and so do their companions in turn. Where a source itself gives rows of one such set to
    different splits, each side is a group of its own. A group is called by its least name, or by
    its least id where it has none.

    Args:
        ids: (N,) identity of each row's image.
        groups: (N,) names that the source gives, or None.
        clusters: (N,) number of each row's cluster.
        given: (N,) splits that the source gives, or None.
    """
    components = _components(ids, groups, clusters)
    sides = {side: number for number, side in enumerate(dict.fromkeys(given))}
    keys = components * len(sides) + np.asarray([sides[side] for side in given], dtype=np.int64)
    best = np.full(int(keys.max(initial=-1)) + 1, -1, dtype=np.int64)
    names = [identity if name is None else name for name, identity in zip(groups, ids, strict=True)]
    for row, key in enumerate(keys.tolist()):
        other = int(best[key])
        if other < 0 or (groups[row] is None, names[row]) < (groups[other] is None, names[other]):
            best[key] = row
    used = Counter(names[row] for row in best.tolist() if row >= 0)
    # One name on two given sides would be one group again.
    return tuple(
        names[row] if used[names[row]] == 1 else f"{names[row]}/{given[row] or 'other'}"
        for row in best[keys].tolist()
    )


def _components(
    ids: Sequence[str], groups: Sequence[str | None], clusters: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return (N,) the number of the connected set that each row is in."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = nodes = len(ids)
    rows: list[npt.NDArray[np.int64]] = []
    links: list[npt.NDArray[np.int64]] = []
    for kind in (ids, groups, clusters.tolist()):
        numbers: dict[object, int] = {}
        codes = np.fromiter(
            (-1 if one is None else numbers.setdefault(one, len(numbers)) for one in kind),
            dtype=np.int64,
            count=count,
        )
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        links.append(codes[known] + nodes)
        nodes += len(numbers)
    place = np.concatenate(rows), np.concatenate(links)
    graph = coo_array((np.ones(len(place[0]), dtype=bool), place), shape=(nodes, nodes))
    found: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1][:count]
    return found.astype(np.int64)
