"""Errors that stop a crew: CrewAI lets nothing but ``HookAborted`` out of a hook, everything else runs on free."""

from __future__ import annotations

from typing import Any, cast

from crewai.hooks.dispatch import HookAborted

from agentcredits import CreditLimitExceededError, InsufficientCreditsError, MissingContextError


class CrewInsufficientCredits(InsufficientCreditsError, HookAborted):  # noqa: N818  # named as its two parents read
    """The account cannot pay the next step; the crew stopped before it."""

    source: Any = "agentcredits"


class CrewCreditLimitExceeded(CreditLimitExceededError, HookAborted):  # noqa: N818  # as above
    """A limit, or the run's own cap, refuses the next step; the crew stopped before it."""

    source: Any = "agentcredits"


class CrewMissingContext(MissingContextError, HookAborted):  # noqa: N818  # as above
    """Nobody says who pays: the crew was stopped before its first step."""

    source: Any = "agentcredits"


def aborting(error: Exception) -> HookAborted:
    """The error as one that stops a crew: a refusal keeps its class and numbers, anything else says what it was."""
    if isinstance(error, HookAborted):
        return error
    for twin in (CrewInsufficientCredits, CrewCreditLimitExceeded, CrewMissingContext):
        if isinstance(error, twin.__bases__[0]):
            made: Any = twin.__new__(twin, str(error))
            made.__dict__.update(error.__dict__)
            made.args = error.args
            return cast(HookAborted, made)
    return HookAborted(f"{type(error).__name__}: {error}", "agentcredits")
