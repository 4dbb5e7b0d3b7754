"""Gap: where padding is not removed, verl pads the rows of a micro-batch to its longest, and mixes long with short.

It balances the tokens of micro-batches, which is right for packed rows. A padded micro-batch costs its longest row
times the number of rows. Here rows of like length go together; `benchmarks/padded_micro_batches.py` measures what that
saves.

Upstream change it waits for: the lengths of padded rows in `rearrange_micro_batches` (verl/utils/seqlen_balancing.py).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.utils.seqlen_balancing:get_seqlen_balanced_partitions")
def by_length(
    wrapped: Callable[..., list[list[int]]], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[list[int]]:
    """Micro-batches alone: partitions of equal size, which are those of devices or mini-batches, stay verl's."""
    arguments = signature(wrapped).bind(*args, **kwargs).arguments
    if arguments["equal_size"]:
        return wrapped(*args, **kwargs)
    return partitions_by_length(arguments["seqlen_list"], arguments["k_partitions"])


def partitions_by_length(workloads: Sequence[int], count: int) -> list[list[int]]:
    """Split the indices of `workloads` into `count` lists of rows of like size, such that the largest cost is least.

    A partition costs its largest row times the number of its rows. None is empty; there are at least `count` rows.
    """
    assert len(workloads) >= count, f"{len(workloads)} rows cannot be {count} partitions"
    order = sorted(range(len(workloads)), key=lambda index: -workloads[index])
    costs = range(largest := workloads[order[0]], largest * len(order) + 1)
    cost = costs[bisect_left(costs, True, key=lambda cost: len(_partitions_within(cost, order, workloads)) <= count)]
    partitions = _partitions_within(cost, order, workloads)
    while len(partitions) < count:
        longest = max(partitions, key=len)
        partitions.remove(longest)
        partitions += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    return [sorted(partition) for partition in partitions]


def _partitions_within(cost: int, order: Sequence[int], workloads: Sequence[int]) -> list[list[int]]:
    """Cut `order`, which begins with the largest row, into few partitions that cost at most `cost` each; a single row
    may cost more."""
    partitions: list[list[int]] = []
    for index in order:
        if partitions and workloads[partitions[-1][0]] * (len(partitions[-1]) + 1) <= cost:
            partitions[-1].append(index)
        else:
            partitions.append([index])
    return partitions
