"""What verl, vLLM and Ray lack: one file per gap, in `cpu` those for training on a CPU.

A file says what is missing upstream and which upstream change it waits for. Importing it closes the gap: its function
wraps the upstream one, also if that is imported later. docs/gaps.md lists all gaps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import wrapt

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""Takes the wrapped callable, the instance (None for a function), args and kwargs; returns the result of the call."""


def wrap_when_imported(*targets: str) -> Callable[[Wrapper], Wrapper]:
    """Decorator: the function wraps `targets`, "module:function" or "module:Class.method", without importing them."""

    def register(wrapper: Wrapper) -> Wrapper:
        for target in targets:
            module, _, name = target.partition(":")
            wrapt.when_imported(module)(partial(wrapt.wrap_function_wrapper, name=name, wrapper=wrapper))
        return wrapper

    return register
