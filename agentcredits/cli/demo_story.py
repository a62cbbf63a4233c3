"""What happens in the demo, and how it is told."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from agentcredits import (
    AccountNotFoundError,
    InsufficientCreditsError,
    RequestContext,
    SyncCreditService,
    configure,
    use_context,
)
from agentcredits.cli.demo_script import PRICES, STEPS, RendererOfflineError, Step
from agentcredits.cli.ledger import show_balance, show_verify, verify_data
from agentcredits.cli.output import action_text, credits_text, make_table, print_table, say
from agentcredits.cli.target import Target
from agentcredits.clock import host_now
from agentcredits.model import ReservationState

#: On a terminal each task is shown for a moment; a pipe does not wait.
PAUSE_SECONDS: Final = 0.4

OUTCOME_STYLES: Final = {"granted": "cyan", "charged": "green", "given back": "yellow", "refused": "red"}


@dataclass(slots=True)
class Told:
    """One line of the final table."""

    at: datetime
    seq: int | None
    what: str
    outcome: str
    amount: str
    balance_after: Decimal


@dataclass(slots=True)
class Story:
    """The demo on one database."""

    console: Console
    target: Target
    commands: tuple[str, ...]
    """With ``{org}`` where the organization goes."""
    _refusals: list[Told] = field(default_factory=list)
    _steps: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Play every step, show the ledger; returns all of it as plain data."""
        say(self.console, ("── agentcredits demo ──", "bold"))
        with self._working("Loading CrewAI …"):
            from agentcredits.cli.demo_agents import ContentAgent, VideoAgent, listener
        listener.set(self._tell_task)
        say(
            self.console,
            f"CrewAI {importlib.metadata.version('crewai')} runs the crews; their language model is scripted:"
            " no network, no keys.",
        )
        url = self.target.url.render_as_string(hide_password=False)
        configure(url)
        with SyncCreditService(url) as service:
            organization_id = self._set_up(service)
            context = RequestContext(organization_id=organization_id, project_id="tides", user_id="ada")
            content = ContentAgent()
            video = VideoAgent()
            video.set_context(context)
            for number, step in enumerate(STEPS, start=1):
                with self._told(service, organization_id, number, step):
                    if step.agent_type == "VideoAgent":
                        asyncio.run(video.generate_video(step.topic, step.lines))
                    else:
                        with use_context(context):
                            getattr(content, step.action)(step.topic, step.lines)
            return self._show_end(service, organization_id)

    def _set_up(self, service: SyncCreditService) -> str:
        """A new account, its prices, and two grants."""
        organization_id = _free_name(service)
        for agent_type, action, cost in PRICES:
            service.set_cost(agent_type, action, cost, organization_id=organization_id, source="demo")
        service.grant_credits(
            organization_id, 8, category="promotional", expires_at=host_now() + timedelta(days=30), source="welcome"
        )
        service.grant_credits(organization_id, 12, category="paid", source="invoice 1")
        prices = ", ".join(f"{action_text(agent, action)} {credits_text(cost)}" for agent, action, cost in PRICES)
        say(self.console, f"Prices in credits: {prices}.")
        say(
            self.console,
            f"Organization {organization_id} gets 8 promotional credits (30 days, spent first) and 12 paid ones.",
        )
        return organization_id

    @contextmanager
    def _told(self, service: SyncCreditService, organization_id: str, number: int, step: Step) -> Iterator[None]:
        """Tell of a step before it runs, and of its outcome after it."""
        price = next(cost for agent, action, cost in PRICES if (agent, action) == (step.agent_type, step.action))
        self.console.print()
        say(
            self.console,
            (f"{number}  {action_text(step.agent_type, step.action)}", "bold"),
            f'  "{step.topic}"',
            (f"  price {credits_text(price)}", "dim"),
        )
        before = service.get_balance(organization_id)
        outcome, reason = "charged", None
        try:
            with self._working("The crew is at work …"):
                yield
        except RendererOfflineError as error:
            outcome, reason = "given back", str(error)
            say(self.console, "   ", (f"The crew failed: {error}.", OUTCOME_STYLES[outcome]))
        except InsufficientCreditsError as error:
            outcome, reason = "refused", error.message
            say(self.console, "   ", (f"{type(error).__name__}: {error.message}", OUTCOME_STYLES[outcome]))
        after = service.get_balance(organization_id)
        left = f", {credits_text(after.available)} credits left"
        charged = before.available - after.available
        if outcome == "refused":
            say(self.console, "   ", ("✗ refused", OUTCOME_STYLES[outcome]), f", the crew did not start{left}")
            what = action_text(step.agent_type, step.action)
            self._refusals.append(
                Told(after.as_of, None, what, outcome, f"needs {credits_text(price)}", after.available)
            )
        else:
            amount = charged if outcome == "charged" else price
            sign = "✓" if outcome == "charged" else "↩"
            say(self.console, "   ", (f"{sign} {outcome} {credits_text(amount)}", OUTCOME_STYLES[outcome]), left)
        self._steps.append(
            {
                "agent_type": step.agent_type,
                "action": step.action,
                "outcome": outcome.replace(" ", "_"),
                "price": price,
                "charged": charged,
                "available_after": after.available,
                "reason": reason,
            }
        )

    def _show_end(self, service: SyncCreditService, organization_id: str) -> dict[str, Any]:
        self.console.print()
        say(self.console, ("── what happened ──", "bold"))
        rows = self._rows(service, organization_id)
        print_table(
            self.console,
            make_table(
                ("seq", "what", "outcome", "amount", "balance"),
                (
                    (
                        "" if row.seq is None else str(row.seq),
                        row.what,
                        Text(row.outcome, style=OUTCOME_STYLES[row.outcome]),
                        row.amount,
                        credits_text(row.balance_after),
                    )
                    for row in rows
                ),
                right=("seq", "amount", "balance"),
            ),
        )
        say(self.console, "Rows with a seq are in the ledger for good; a hold given back and a refusal cost nothing.")
        self.console.print()
        balance = service.get_balance(organization_id)
        show_balance(self.console, balance)
        report = service.verify()
        show_verify(self.console, report)
        commands = [command.format(org=organization_id) for command in self.commands]
        self.console.print()
        say(self.console, "The database stays: ", (self.target.shown, "bold"))
        if self.target.url.password:
            say(self.console, "Look at it, with AGENTCREDITS_DATABASE_URL naming the database:")
        else:
            say(self.console, "Look at it:")
        for command in commands:
            say(self.console, "  ", (command, "cyan"))
        return {
            "database": self.target.shown,
            "organization_id": organization_id,
            "steps": self._steps,
            "transactions": service.list_transactions(organization_id).items,
            "balance": balance,
            "verify": verify_data(report),
            "commands": commands,
        }

    def _rows(self, service: SyncCreditService, organization_id: str) -> list[Told]:
        """The ledger's rows, the holds that were given back, and the refusals, in the order of time."""
        rows = list(self._refusals)
        category_of = {grant.id: grant.category.value for grant in service.list_grants(organization_id)}
        for entry in service.list_transactions(organization_id):
            category = category_of.get(entry.grant_id or "")
            rows.append(
                Told(
                    entry.created_at,
                    entry.seq,
                    f"{category} grant" if category else action_text(entry.agent_type, entry.action),
                    "granted" if category else "charged",
                    f"{entry.amount:+,f}",
                    entry.balance_after,
                )
            )
        rows.sort(key=lambda row: (row.at, row.seq or 0))
        for hold in service.list_reservations(organization_id, states=[ReservationState.RELEASED]):
            settled_at = hold.settled_at or hold.created_at
            before = [row for row in rows if row.at <= settled_at]
            rows.insert(
                len(before),
                Told(
                    settled_at,
                    None,
                    action_text(hold.agent_type, hold.action),
                    "given back",
                    f"held {credits_text(hold.amount)}",
                    before[-1].balance_after,
                ),
            )
        return rows

    def _tell_task(self, role: str, answer: str) -> None:
        """One finished task of a crew."""
        if self.console.is_terminal:
            time.sleep(PAUSE_SECONDS)
        say(self.console, "   ", (f"{role}: ", "dim"), answer)

    @contextmanager
    def _working(self, words: str) -> Iterator[None]:
        """A spinner on a terminal; nothing in a pipe or file."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(words):
            yield


def _free_name(service: SyncCreditService) -> str:
    """``acme``, or the first of ``acme-2`` … that has no account, so that an older demo is not mixed in."""
    number = 1
    while True:
        name = "acme" if number == 1 else f"acme-{number}"
        try:
            service.get_balance(name)
        except AccountNotFoundError:
            return name
        number += 1
