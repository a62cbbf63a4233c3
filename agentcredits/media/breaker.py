"""Breakers: an operator's account at a provider that cannot be used is not asked again and again.

The state is shared by all processes in table ``media_breakers``; a process remembers it for at most a second.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Final
from weakref import WeakKeyDictionary

from agentcredits import hooks
from agentcredits.errors import ConfigurationError
from agentcredits.ids import check_text
from agentcredits.media.faults import ProviderFault
from agentcredits.media.redaction import redact
from agentcredits.media.rules import FaultCategory, default_rules
from agentcredits.model import OpenBreaker
from agentcredits.rules.breaker import BreakerState, Finding, Pauses, may_probe
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service.core import ServiceCore
from agentcredits.store import media

logger = logging.getLogger("agentcredits")

#: How old a process's memory of a breaker may be.
MEMORY_SECONDS: Final = 1.0
#: How long one caller may take to find out; then somebody else may try.
PROBE_LEASE: Final = timedelta(minutes=10)
#: How often a process asks for a provider's balance at most.
BALANCE_SECONDS: Final = 60.0
#: Places that are remembered at most.
_MOST_PLACES: Final = 10_000

#: What will not pass by itself within moments: the same call fails again, whoever makes it.
TERMINAL: Final = frozenset((FaultCategory.CREDITS_EXHAUSTED, FaultCategory.ACCOUNT_LOCKED, FaultCategory.QUOTA_WINDOW))


class Breakers:
    """The breakers of one service's database.

    Args:
        core: The core of the service.
        probe_after: How long an account is left alone after the first failure; doubled after each failed probe.
        max_probe_after: The longest pause. A quota that says when it is over is probed then instead.

    Raises:
        ConfigurationError: a pause that is not positive.
    """

    def __init__(
        self,
        core: ServiceCore,
        *,
        probe_after: timedelta = timedelta(minutes=5),
        max_probe_after: timedelta = timedelta(hours=1),
    ) -> None:
        if probe_after <= timedelta(0) or max_probe_after < probe_after:
            raise ConfigurationError("probe_after must be positive, and max_probe_after not shorter.")
        self._core = core
        self._pauses = Pauses(probe_after, max_probe_after, PROBE_LEASE)
        #: What was read, and when: the time of the database and this process's seconds.
        self._memory: dict[media.Place, tuple[BreakerState | None, datetime, float]] = {}
        #: Probes that this process is making, by their ``probing_until``.
        self._claims: dict[media.Place, datetime] = {}
        #: When the balance was asked for last.
        self._asked: dict[media.Place, float] = {}

    def may_call(self, provider: str, account: str = "") -> Steps[OpenBreaker | None]:
        """Whether the provider may be called now.

        Returns:
            None: go ahead; the breaker is closed, or this caller is the one who probes it. Whoever got None must
            :meth:`report` how the call ended (or :meth:`give_up` when there was no call).
            Else the open breaker: do not call.

        Raises:
            StoreUnavailableError: the state is not known, so nothing should run.
        """
        place = place_of(provider, account)
        state, now = yield from self._known(place)
        if state is None:
            return None
        if may_probe(state, now):
            return (yield from self._claim(place, early=False))
        return _public(state)

    def probe(self, provider: str, account: str = "") -> Steps[OpenBreaker | None]:
        """As :meth:`may_call`, before ``probe_at`` too: something (a balance) says that the account is served again.

        Returns:
            None: go ahead; the breaker is closed, or this caller is the one who probes it.
        """
        return (yield from self._claim(place_of(provider, account), early=True))

    def may_ask_balance(self, provider: str, account: str = "") -> bool:
        """Whether it is time to ask for the account's balance: at most once a minute in each process."""
        place, now = place_of(provider, account), self._seconds()
        asked = self._asked.get(place)
        if asked is not None and 0 <= now - asked < BALANCE_SECONDS:
            return False
        self._asked[place] = now
        return True

    def report(self, provider: str, account: str, fault: ProviderFault | None) -> Steps[None]:
        """Say how a call ended.

        Args:
            provider: As given to :meth:`may_call`.
            account: As given to :meth:`may_call`.
            fault: None: it worked, which closes the breaker if the call was its probe (a call that began before the
                account ran dry proves nothing). A fault of the whole account that does not pass within moments opens
                it; any other opens nothing.
        """
        place = place_of(provider, account)
        claim = self._claims.pop(place, None)
        if fault is not None and opens(fault):
            yield from self._open(place, fault, claim)
        elif claim is None:
            return
        elif fault is None:
            if (yield from self._close(place, claim)):
                logger.info("agentcredits: account %r at %s is served again", account, place[0])
        else:
            yield Write(lambda connection: media.end_probe(connection, place, claim))
            self._memory.pop(place, None)

    def give_up(self, provider: str, account: str = "") -> Steps[None]:
        """There was no call, or nobody knows how it ended: if it was a probe, let somebody else make it."""
        place = place_of(provider, account)
        claim = self._claims.pop(place, None)
        if claim is not None:
            yield Write(lambda connection: media.end_probe(connection, place, claim))
            self._memory.pop(place, None)

    def list(self) -> Steps[tuple[OpenBreaker, ...]]:
        """Every open breaker; for operators."""
        found: tuple[BreakerState, ...] = yield Read(media.list_breakers)
        return tuple(_public(state) for state in found)

    def close(self, provider: str, account: str = "") -> Steps[bool]:
        """Close a breaker by hand (the account was topped up); False when it was not open."""
        place = place_of(provider, account)
        self._claims.pop(place, None)
        return (yield from self._close(place, None))

    # -- inside ----------------------------------------------------------------------------------------------

    def _known(self, place: media.Place) -> Steps[tuple[BreakerState | None, datetime]]:
        """The state, at most a second old, and the time now."""
        entry = self._memory.get(place)
        if entry is not None:
            state, read_at, read_seconds = entry
            age_seconds = self._seconds() - read_seconds
            if 0 <= age_seconds < MEMORY_SECONDS:
                return state, read_at + timedelta(seconds=age_seconds)
        started = self._seconds()
        state, now = yield Read(lambda connection: media.read_breaker(connection, place, self._core.clock))
        self._remember(place, state, now, started)
        return state, now

    def _claim(self, place: media.Place, *, early: bool) -> Steps[OpenBreaker | None]:
        started = self._seconds()
        state, now, mine = yield Write(
            lambda connection: media.claim_probe(connection, place, self._core.clock, self._pauses, early=early)
        )
        self._remember(place, state, now, started)
        if mine:
            self._claims[place] = state.probing_until
        return None if mine or state is None else _public(state)

    def _open(self, place: media.Place, fault: ProviderFault, claim: datetime | None) -> Steps[None]:
        retry_at = fault.retry_at if fault.category is FaultCategory.QUOTA_WINDOW else None
        finding = Finding(fault.category.value, fault.rule[:255], _storable(redact(fault.message)), retry_at)
        started = self._seconds()
        state, now, changed = yield Write(
            lambda connection: media.book_failure(connection, place, self._core.clock, finding, self._pauses, claim)
        )
        self._remember(place, state, now, started)
        if changed:
            logger.warning(
                "agentcredits: account %r at %s is not called until %s (%s): %s",
                place[1],
                place[0],
                state.probe_at.isoformat(timespec="seconds"),
                fault.category.value,
                fault.guidance,
            )
            hooks.fire(hooks.CreditEvent("breaker_opened", "", breaker=_public(state)))

    def _close(self, place: media.Place, claim: datetime | None) -> Steps[bool]:
        closed: BreakerState | None = yield Write(lambda connection: media.close_breaker(connection, place, claim))
        self._memory.pop(place, None)
        if closed is None:
            return False
        hooks.fire(hooks.CreditEvent("breaker_closed", "", breaker=_public(closed)))
        return True

    def _remember(self, place: media.Place, state: BreakerState | None, now: datetime, started: float) -> None:
        if len(self._memory) > _MOST_PLACES:
            self._memory.clear()
        self._memory[place] = (state, now, started)

    def _seconds(self) -> float:
        """Seconds for measuring ages; an injected clock's when there is one."""
        clock = self._core.clock
        return time.monotonic() if clock is None else clock.now().timestamp()


def opens(fault: ProviderFault) -> bool:
    """Whether a fault opens the breaker of the account: it is no matter of one model or request, and lasts."""
    if fault.category is FaultCategory.QUOTA_WINDOW and fault.retry_at is None:
        return False
    return fault.category in TERMINAL and fault.scope in ("account", "key")


_of_cores: WeakKeyDictionary[ServiceCore, Breakers] = WeakKeyDictionary()


def breakers_of(core: ServiceCore) -> Breakers:
    """The breakers that all media tools of a service share."""
    found = _of_cores.get(core)
    return found if found is not None else _of_cores.setdefault(core, Breakers(core))


def place_of(provider: str, account: str) -> media.Place:
    """Provider and account as they are stored.

    Raises:
        InvalidInputError: texts that cannot be names.
        ConfigurationError: the account looks like a key.
    """
    check_text(provider, name="provider")
    name = default_rules().provider_name(provider) or provider
    if account:
        check_text(account, name="account")
        if redact(account) != account:
            raise ConfigurationError("account is your label of the provider's account, not its key.")
    return name, account


def _storable(text: str) -> str:
    """Every database can hold it, whatever a provider sent."""
    return text.replace("\x00", "").encode(errors="replace").decode()


def _public(state: BreakerState) -> OpenBreaker:
    return OpenBreaker(
        provider=state.provider,
        account=state.account,
        category=state.category,
        rule=state.rule,
        message=state.message,
        failures=state.failures,
        opened_at=state.opened_at,
        probe_at=state.probe_at,
    )
