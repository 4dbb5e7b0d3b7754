"""Gap: TRL 0.27, which verl's value model needs, takes every optional package for installed under transformers 5.

`transformers.utils.import_utils._is_package_available` now returns a tuple, which is true also for a package that is
missing; importing TRL's `DPOTrainer` then fails.

Upstream change it waits for: verl's value model without TRL, so that a release of TRL for transformers 5 can be used.
"""

from collections.abc import Callable
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("trl.import_utils:_is_package_available")
def first_of_tuple(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    available = wrapped(*args, **kwargs)
    return available[0] if isinstance(available, tuple) and not kwargs.get("return_version") else available
