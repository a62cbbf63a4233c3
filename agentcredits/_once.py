"""What ``charge="once_per_args"`` tells calls apart by: the run, the action, and the arguments as canonical JSON."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentcredits.context import RequestContext
from agentcredits.errors import InvalidInputError, MissingContextError

if TYPE_CHECKING:
    from agentcredits._meter import Meter


def key_of_call(
    meter: Meter, context: RequestContext, agent_type: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """The idempotency key of a call: the same for the same arguments in the same run.

    Raises:
        MissingContextError: the context names no run: the charge would be made once for ever.
        InvalidInputError: the arguments are no JSON, and no ``key`` makes some of them.
    """
    name = f"{agent_type}.{meter.action}"
    if context.run_id is None:
        raise MissingContextError(
            f'{name} is charged once per arguments of a run: charge="once_per_args" needs a run_id in the'
            " RequestContext.",
            reason="run_required",
            context={"agent_type": agent_type, "action": meter.action},
            suggestions=('Add run_id="..." to the RequestContext, or enter use_run().',),
        )
    if meter.key is not None:
        return once_key(context.run_id, agent_type, meter.action, meter.key(*args, **kwargs), name=f"the key of {name}")
    try:
        bound = inspect.signature(meter.original).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidInputError(
            f"the arguments of {name} are not those of its function ({error}): pass key= to its decorator.",
            context={"parameter": "key"},
        ) from error
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    if meter.takes_instance:
        del arguments[next(iter(arguments))]
    return once_key(context.run_id, agent_type, meter.action, arguments, name=f"the arguments of {name}")


def once_key(run_id: str, agent_type: str, action: str, arguments: object, *, name: str) -> str:
    """A key for these arguments in this run: a hash of canonical JSON, the same in every process.

    Raises:
        InvalidInputError: something in the arguments is no JSON (text, number, bool, None, list, or dict by texts): how
            it prints would not be the same twice.
    """
    problem = _no_json(arguments)
    if problem is not None:
        raise InvalidInputError(
            f'{name} hold {problem}: charge="once_per_args" tells calls apart by JSON; pass key=, a function of the'
            " arguments that gives some.",
            reason="not_json",
            context={"parameter": "key"},
            suggestions=("Pass key=lambda ...: ... to the decorator.",),
        )
    # ensure_ascii: lone surrogates are no UTF-8.
    text = json.dumps([run_id, agent_type, action, arguments], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"once-{hashlib.sha256(text.encode()).hexdigest()}"


def _no_json(value: object) -> str | None:
    """What in a value is no JSON; None: nothing. Subclasses (enumerations, say) are not what they print as."""
    if value is None or type(value) in (str, bool, int):
        return None
    if type(value) is float:
        return None if math.isfinite(value) else repr(value)
    if type(value) in (list, tuple):
        return next(filter(None, map(_no_json, value)), None)  # type: ignore[call-overload]  # it is one of the two
    if type(value) is dict:
        odd = next((name for name in value if type(name) is not str), None)
        return f"a dict with the key {odd!r}" if odd is not None else _no_json(list(value.values()))
    return f"a {type(value).__name__}"
