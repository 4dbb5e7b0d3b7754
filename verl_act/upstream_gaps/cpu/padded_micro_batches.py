"""Gap: where padding is not removed, verl pads the rows of a micro-batch to its longest, and mixes long with short.

It balances the tokens of micro-batches, which is right for packed rows. Padded ones cost as many times the longest row
as there are rows: twice the tokens of a batch of ours. Here rows of like length go together.

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
    """Parts of equal size, which are the devices' or mini-batches, stay verl's."""
    arguments = signature(wrapped).bind(*args, **kwargs).arguments
    if arguments["equal_size"]:
        return wrapped(*args, **kwargs)
    return parts_by_length(arguments["seqlen_list"], arguments["k_partitions"])


def parts_by_length(workloads: Sequence[int], parts: int) -> list[list[int]]:
    """`parts` lists of the indices of `workloads`, each with neighbours in size, so that the dearest costs little.

    A part costs as many times its largest row as it has rows. None is empty.
    """
    order = sorted(range(len(workloads)), key=lambda index: -workloads[index])
    costs = range(largest := workloads[order[0]], largest * len(order) + 1)
    cost = costs[bisect_left(costs, True, key=lambda cost: len(_parts_within(cost, order, workloads)) <= parts)]
    found = _parts_within(cost, order, workloads)
    while len(found) < parts:
        longest = max(found, key=len)
        found.remove(longest)
        found += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    return [sorted(part) for part in found]


def _parts_within(cost: int, order: Sequence[int], workloads: Sequence[int]) -> list[list[int]]:
    """As few parts of `order`, from the largest row on, as none costs more than `cost`; a row alone always fits."""
    found: list[list[int]] = []
    for index in order:
        if found and workloads[found[-1][0]] * (len(found[-1]) + 1) <= cost:
            found[-1].append(index)
        else:
            found.append([index])
    return found
