"""``detect``: what a provider's error means, and which rule says so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from agentcredits.cli.output import Output, make_console, make_facts, say, time_text
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import Options
from agentcredits.media import FaultRules, ProviderFault, classify_provider_error, load_fault_rules

TextArgument = Annotated[
    str,
    typer.Argument(metavar="TEXT", help="The error as it was logged: a sentence, JSON, or both.", show_default=False),
]
ProviderOption = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="The provider: fal, replicate, openai …")
]
StatusOption = Annotated[
    int | None, typer.Option("--status", min=100, max=599, metavar="N", help="The HTTP status of the answer.")
]
RulesOption = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE", help="A TOML file with rules of your own, asked first; repeatable."),
]

#: What was decided without any rule.
_WITHOUT_RULE = {
    "none": "no rule applies",
    "no-fault": "the text says nothing of a failure",
    "unreadable": "the answer is not JSON, and its status says nothing",
    "unclassifiable": "the answer cannot be read at all",
}


def register(app: typer.Typer, panel: str) -> None:
    """Add this file's command to the program."""
    app.command("detect", rich_help_panel=panel)(detect)


def detect(
    ctx: typer.Context,
    text: TextArgument,
    provider: ProviderOption = None,
    status: StatusOption = None,
    rules: RulesOption = None,
    database: DatabaseOption = None,  # every command takes it; this one needs none
    as_json: JsonOption = False,
) -> None:
    """Say what a provider's error means, which rule says so, and who should read what.

    Looks at the text alone: no database, no network.

    Example: agentcredits detect "User is locked. Reason: Exhausted balance." --provider fal
    """
    before = ctx.obj if isinstance(ctx.obj, Options) else Options()
    known = load_fault_rules(rules)
    fault = classify_provider_error(provider=provider, status=status, body=text, rules=known)
    why = _why(fault, known)

    def render(console: Console) -> None:
        console.print(make_facts(_facts(fault, why)))
        console.print()
        say(console, ("Operator: ", "bold"), fault.guidance)
        say(console, ("Customer: ", "bold"), fault.customer_message)

    Output(console=make_console(), as_json=as_json or before.as_json).show(_data(fault, known, why), render)


def _why(fault: ProviderFault, rules: FaultRules) -> str:
    rule = rules.rule(fault.rule)
    return _WITHOUT_RULE.get(fault.rule, "") if rule is None else rule.why


def _data(fault: ProviderFault, rules: FaultRules, why: str) -> dict[str, Any]:
    rule = rules.rule(fault.rule)
    return {**asdict(fault), "why": why, "source": None if rule is None else rule.source}


def _facts(fault: ProviderFault, why: str) -> list[tuple[str, str]]:
    facts = [
        ("category", fault.category.value),
        ("rule", f"{fault.rule} ({why})" if why else fault.rule),
        ("provider", fault.provider or "not known"),
        ("status", "" if fault.status is None else str(fault.status)),
        ("code", fault.code or ""),
        ("affects", fault.scope),
        ("try again", "yes" if fault.retryable else "no"),
        ("not before", "" if fault.retry_at is None else f"{time_text(fault.retry_at)} UTC"),
        ("message", fault.message),
    ]
    return [(name, value) for name, value in facts if value]
