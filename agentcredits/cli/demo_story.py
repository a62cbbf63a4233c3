"""How the demo is told, while it happens. What happens is in ``demo_crew``.

Importing this module imports crewai, which takes seconds: ``demo`` does it after ``quiet_crewai``.
"""

from __future__ import annotations

import importlib.metadata
import textwrap
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from crewai.tasks.task_output import TaskOutput
from rich.console import Console

from agentcredits import (
    AccountNotFoundError,
    CreditEvent,
    DryRunResult,
    RequestContext,
    SyncCreditService,
    add_hook,
    remove_hook,
    use_context,
)
from agentcredits.cli import demo_crew
from agentcredits.cli.demo_picture import PICTURE_FILE, PICTURE_SIZE, preview
from agentcredits.cli.ledger import show_balance, show_verify, verify_data
from agentcredits.cli.limit_tables import limit_data
from agentcredits.cli.output import count_text, credits_text, say
from agentcredits_crewai import Run, RunSummary, SummaryLine

#: On a terminal each line is shown for a moment; a pipe does not wait.
PAUSE_SECONDS: Final = 0.15
PREVIEW_COLUMNS: Final = 56
PREVIEW_LINES: Final = 15

STYLES: Final = {"charged": "green", "given_back": "yellow", "dry_run": "red"}
#: Of what is said about the line above.
INDENT: Final = " " * 8
FACT_COLUMNS: Final = 12
#: A pipe's lines are no longer than this; a narrow terminal's text is not squeezed into less than that.
LINE_COLUMNS: Final = 100
LEAST_TEXT_COLUMNS: Final = 30


@dataclass(slots=True)
class Story:
    """The demo on one database.

    Args:
        console: Where it is told.
        service: Who books.
    """

    console: Console
    service: SyncCreditService
    _context: RequestContext = field(init=False)
    _crew: Any = None
    _task: str | None = None
    _events: list[dict[str, Any]] = field(default_factory=list)
    _failed: list[SummaryLine] = field(default_factory=list)
    """The tries of one tool that failed, until something else happens."""
    _plans: list[dict[str, Any]] = field(default_factory=list)
    _picture: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Let the crew work, show the ledger; returns all of it as plain data."""
        self._say("One crew makes a post about the tides: research, write, picture, video.")
        self._say(
            f"CrewAI {importlib.metadata.version('crewai')} runs it; its language model is scripted (ScriptedLLM):"
            " no network, no keys."
        )
        self._context = demo_crew.open_account(self.service, _free_name(self.service))
        self._show_account()

        self._crew = demo_crew.make_crew(self.service, fallback=self._go_on_without)
        demo_crew.listener.set(self._finish_task)
        add_hook(self._hear)
        try:
            with use_context(self._context):
                self._crew.kickoff()
        finally:
            remove_hook(self._hear)
        return self._show_end(self._crew.run.summary())

    def _show_account(self) -> None:
        paid, promotional = demo_crew.PAID, demo_crew.PROMOTIONAL
        self._say()
        self._say(
            f"Organization {self._context.organization_id} has {paid + promotional} credits: {promotional} promotional"
            f" (for 30 days, spent first) and {paid} paid."
        )
        self._say(
            f"Its department {demo_crew.DEPARTMENT}, which the crew works for, may spend {demo_crew.MONTHLY_LIMIT}"
            " of them a month."
        )
        prices = ", ".join(f"{action} {credits_text(cost)}" for _agent_type, action, cost in demo_crew.PRICES)
        self._say(f"Prices in credits: {prices}.")

    # -- while the crew works --------------------------------------------------------------------------------

    def _hear(self, event: CreditEvent) -> None:
        """A hook of agentcredits: something was booked, and the run has a line more."""
        if event.organization_id == self._context.organization_id:
            self._tell_lines()

    def _go_on_without(self, plan: DryRunResult) -> str:
        """What ``meter(fallback=...)`` calls when a tool cannot be paid; the agent reads the answer."""
        self._tell_lines()
        decision = self.service.check_credits(
            self._context.organization_id,
            agent_type=plan.agent_type,
            action=plan.action,
            department_id=self._context.department_id,
        )
        parameters = {name: value for name, value in plan.parameters.items() if name != "prompt"}
        facts = {
            "dry run": "nothing ran; the agent gets this plan instead",
            "prompt": plan.prompt or "",
            "parameters": ", ".join(f"{name} {value}" for name, value in parameters.items()),
            "price": f"{credits_text(plan.amount)} credits",
            "reason": decision.message,
            "way out": decision.suggestions[0],
        }
        for name, text in facts.items():
            for number, part in enumerate(textwrap.wrap(text, self._text_columns())):
                self._say(INDENT, (f"{'' if number else name:<{FACT_COLUMNS}}", "dim"), part)
        self._plans.append({**plan.as_dict(), "message": decision.message, "suggestions": decision.suggestions})
        return str(plan)

    def _finish_task(self, output: TaskOutput) -> None:
        """The crew's ``task_callback``."""
        self._pause()
        self._say("  ", (f"{output.agent.strip()}: ", "bold"), output.raw)
        if output.name == "picture":
            demo_crew.limit_department(self.service, self._context.organization_id, demo_crew.RAISED_LIMIT)
            self._say()
            self._say(
                f"The head of {demo_crew.DEPARTMENT} raises the limit to {demo_crew.RAISED_LIMIT} credits a month;"
                " it holds from the next charge on.",
            )

    def _tell_lines(self) -> None:
        """Tell what the run's summary has in addition."""
        run: Run = self._crew.run
        for line in run.summary().lines[len(self._events) :]:
            available = self.service.get_balance(self._context.organization_id).available
            if line.kind != "given_back":
                self._sum_up_failures()
            if line.task != self._task:
                self._task = line.task
                number = len({event["task"] for event in self._events}) + 1
                self._say()
                self._say((f"{number}  {line.task}", "bold"))
            self._tell(line, available)
            self._events.append(
                {
                    "task": line.task,
                    "agent": line.agent,
                    "what": line.tool or line.action,
                    "outcome": line.kind,
                    "amount": line.amount,
                    "available": available,
                    "reason": line.reason,
                }
            )

    def _tell(self, line: SummaryLine, available: Decimal) -> None:
        self._pause()
        outcome = "refused" if line.kind == "dry_run" else line.kind.replace("_", " ")
        reason = f"   try {len(self._failed) + 1}: {line.reason}" if line.kind == "given_back" else ""
        self._say(
            "  ",
            (f"{outcome:<10}", STYLES.get(line.kind, "")),
            f"  {credits_text(line.amount):>4}  {line.tool or line.action or '':<14}",
            (f"  {credits_text(available):>4} left", "dim"),
            reason,
        )
        if line.kind == "given_back":
            self._failed.append(line)
        elif line.action == "picture" and line.kind == "charged":
            self._show_picture()

    def _sum_up_failures(self) -> None:
        if self._failed:
            tries, price = len(self._failed), credits_text(self._failed[0].amount)
            self._say(
                INDENT,
                f"CrewAI tried it {tries} times: {tries} x {price} held, {tries} x {price} given back, 0 charged",
            )
        self._failed.clear()

    def _show_picture(self) -> None:
        path, (width, height) = Path(PICTURE_FILE).resolve(), PICTURE_SIZE
        size = path.stat().st_size
        self._picture = {"path": str(path), "width": width, "height": height, "bytes": size}
        self._say(
            INDENT,
            (PICTURE_FILE, "cyan"),
            f" in this folder: {width} x {height} pixels, {size:,} bytes",
        )
        self._say(INDENT, "computed point by point, packed with zlib and struct: a real PNG, no image library")
        fits = self.console.width >= len(INDENT) + PREVIEW_COLUMNS and self.console.encoding.startswith("utf")
        if fits and self.console.color_system in ("256", "truecolor"):
            for text in preview(PREVIEW_COLUMNS, PREVIEW_LINES):
                self.console.print(INDENT, text, sep="", soft_wrap=True)

    # -- at the end ------------------------------------------------------------------------------------------

    def _show_end(self, summary: RunSummary) -> dict[str, Any]:
        organization_id = self._context.organization_id
        self._say()
        self._say(("What the run cost", "bold"))
        self.console.print(summary)
        self._say()
        balance = self.service.get_balance(organization_id)
        show_balance(self.console, balance)
        report = self.service.verify(organization_id)
        if report.ok:
            seen = f"{count_text(report.accounts, 'account')}, {count_text(report.transactions, 'ledger row')}"
            self._say("verify: ", ("clean", "green"), f" ({seen}; every counter equals what its rows say)")
        else:
            show_verify(self.console, report)
        return {
            "organization_id": organization_id,
            "picture": self._picture,
            "events": self._events,
            "dry_runs": self._plans,
            "summary": summary,
            "balance": balance,
            "limits": [limit_data(limit) for limit in self.service.list_limits(organization_id)],
            "verify": verify_data(report),
        }

    def _text_columns(self) -> int:
        width = min(self.console.width, LINE_COLUMNS) - len(INDENT) - FACT_COLUMNS
        return max(width, LEAST_TEXT_COLUMNS)

    def _pause(self) -> None:
        if self.console.is_terminal:
            time.sleep(PAUSE_SECONDS)

    def _say(self, *parts: str | tuple[str, str]) -> None:
        say(self.console, *parts)


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
