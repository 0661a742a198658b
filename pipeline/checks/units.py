"""What must stay on one side of every split: clusters of like images, joined by groups."""

import numpy as np

from pipeline.checks.examined import Examined, Rows


def split_units(examined: Examined, clusters: Rows) -> Rows:
    """Return (N,) the number of each row's unit; rows of one cluster or one group share one.

    Args:
        examined: names the groups.
        clusters: (N,) a row of each row's cluster.
    """
    if not any(group is not None for group in examined.groups):
        return clusters
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(examined)
    first: dict[str, int] = {}
    joined = [
        row if group is None else first.setdefault(group, row)
        for row, group in enumerate(examined.groups)
    ]
    ends = np.concatenate((clusters, np.asarray(joined, dtype=np.int64)))
    starts = np.tile(np.arange(count), 2)
    links = coo_array((np.ones(2 * count, dtype=bool), (starts, ends)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)
