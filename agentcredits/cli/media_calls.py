"""The user's own functions that commands are told by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentcredits.errors import InvalidInputError


def load_function(name: str | None, *, option: str) -> Callable[..., Any]:
    """The function ``module:function``; modules in the current folder are found too.

    Raises:
        InvalidInputError: it is not given, or there is no such function.
    """
    if not name:
        raise InvalidInputError(
            f"{option} is missing: name a function of yours as MODULE:FUNCTION.", context={"parameter": option}
        )
    module_name, colon, path = name.partition(":")
    if not module_name or not colon or not path:
        raise InvalidInputError(
            f"{option} {name}: write MODULE:FUNCTION, for example studio.calls:make.", context={"parameter": option}
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"{option} {name} cannot be loaded: {error}.", reason="not_found", context={"parameter": option}
        ) from error
    if not callable(found):
        raise InvalidInputError(f"{option} {name} is not a function.", context={"parameter": option})
    return found  # type: ignore[no-any-return]  # a function of the user's
