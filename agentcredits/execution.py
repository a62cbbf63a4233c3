"""The mark of an open charge: what a metered action inside another one, or inside the crew it runs, can see.

A mark is one mutable object that all copies of a context share. It is closed when its charge settles, so that a task
that was started inside the action and outlives it charges again.
"""

from __future__ import annotations

from contextvars import ContextVar

_innermost: ContextVar[Execution | None] = ContextVar("agentcredits_execution", default=None)


class Execution:
    """One running metered action.

    Args:
        organization_id: Who pays.
        agent_type: Of the action.
        action: Of the action.
        instance: The agent that the method runs on; None for plain functions.
        function: The undecorated function, or whatever identifies the code that runs.
        layer: The decorator's own object: tells a re-entry (the same layer) from ``super()`` (another one).
        charged: Whether the account pays for it; False for what is included in an outer charge or recorded only.
        parent: The mark around it.
    """

    __slots__ = (
        "_parent",
        "action",
        "agent_type",
        "charged",
        "function",
        "instance",
        "is_open",
        "layer",
        "organization_id",
    )

    def __init__(
        self,
        *,
        organization_id: str,
        agent_type: str,
        action: str,
        instance: object | None = None,
        function: object | None = None,
        layer: object | None = None,
        charged: bool = True,
        parent: Execution | None = None,
    ) -> None:
        self.organization_id = organization_id
        self.agent_type = agent_type
        self.action = action
        self.instance = instance
        self.function = function
        self.layer = layer
        self.charged = charged
        self.is_open = True
        self._parent = parent
        if parent is not None:
            # Tasks that start their successors hand over hand must not grow a chain of closed marks.
            parent._parent = parent.parent

    @property
    def parent(self) -> Execution | None:
        """The nearest mark around this one that is still open; closed ones are unlinked on the way."""
        parent = self._parent
        while parent is not None and not parent.is_open:
            parent = parent._parent
        self._parent = parent
        return parent

    def close(self) -> None:
        """The charge settles: what runs on from here pays for itself. Safe in finalizers."""
        self.is_open = False
        self.instance = None


def current_execution() -> Execution | None:
    """The innermost metered action that is open around the caller, whatever its organization."""
    mark = _innermost.get()
    if mark is None or mark.is_open:
        return mark
    return mark.parent


def charged_execution(organization_id: str) -> Execution | None:
    """The innermost open action around the caller that this organization pays for."""
    mark = current_execution()
    while mark is not None and not (mark.charged and mark.organization_id == organization_id):
        mark = mark.parent
    return mark
