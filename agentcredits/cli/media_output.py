"""What the media commands print: a priced plan, the summary of a batch, a list of batches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from agentcredits.amounts import from_micros
from agentcredits.cli.output import (
    count_text,
    credits_text,
    make_facts,
    make_table,
    micros_text,
    print_table,
    printable,
    say,
    time_text,
)
from agentcredits.media.batch_plan import BatchPlan, BatchSummary
from agentcredits.media.jobs import priority_text
from agentcredits.media.report import Style, cost_text, summary_text
from agentcredits.model.media_batches import MediaBatchRecord
from agentcredits.runner import presence


def show_plan(console: Console, plan: BatchPlan) -> None:
    """Every asset with its price, then what they cost together and how far balance and budget reach."""
    in_dollars = any(line.usd is not None for line in plan.lines)
    columns = ["asset", "name", "priority", "model", "credits", *(["USD"] if in_dollars else []), "now", "prompt"]
    print_table(
        console,
        make_table(
            columns,
            (
                (
                    line.job.asset_id,
                    line.job.name,
                    priority_text(line.job.priority),
                    line.job.model or "",
                    credits_text(line.job.estimate),
                    *(["" if line.usd is None else f"{line.usd:,f}"] if in_dollars else []),
                    "yes" if line.fits else "no",
                    line.job.shown_prompt,
                )
                for line in plan.lines
            ),
            right=("credits", "USD"),
            folds=("prompt", "name", "model"),
        ),
    )
    facts = [("total", f"{credits_text(plan.total)} credits{_usd(plan)}")]
    facts.append(("available", f"{credits_text(plan.decision.available)} credits"))
    if plan.budget_micros is not None:
        facts.append(("budget", f"{micros_text(plan.budget_micros)} credits"))
    facts.append(("made now", f"{plan.fits} of {len(plan.lines)}"))
    if plan.over_threshold:
        facts.append(("above the threshold", ", ".join(map(str, plan.over_threshold))))
    console.print(make_facts(facts))
    if not plan.decision.allowed:
        say(console, ("Not all of it", "yellow"), f": {plan.decision.message}")
    elif plan.over_budget:
        say(console, ("Not all of it", "yellow"), ": the batch costs more than its budget.")


def _usd(plan: BatchPlan) -> str:
    return "" if plan.total_usd is None else f" ({plan.total_usd:,f} USD)"


def show_summary(console: Console, summary: BatchSummary, *, interrupted: bool = False) -> None:
    """The parts of a batch's report, what it cost, and how to go on."""
    if interrupted:
        say(console, ("Interrupted", "yellow"), ": what was under way is booked, the rest waits.")
    style = Style(console.file)  # type: ignore[arg-type]  # a text stream
    text = summary_text(summary, lambda job: cost_text(job.estimate_micros, None), style)
    for line in text.splitlines():
        console.print(printable(line), soft_wrap=True)
    batch = summary.batch
    facts = [("batch", batch.id), ("charged", f"{credits_text(summary.charged)} credits")]
    if summary.dry_run:
        facts.append(("still to make", f"{micros_text(summary.left_micros)} credits"))
        facts.append(
            ("because", ", ".join(sorted({job.reason for job in summary.dry_run if job.reason})) or "not begun")
        )
    if batch.leased_by is not None:
        facts.append(("worked on by", f"{presence.shown(batch.leased_by)} until {time_text(batch.leased_until)} UTC"))
    console.print()
    console.print(make_facts(facts))
    if summary.unknown:
        say(
            console, f"Ask the provider: agentcredits media reconcile {batch.id} --org {batch.organization_id} --look …"
        )
    elif not summary.complete:
        say(console, f"Go on with: agentcredits media resume {batch.id} --org {batch.organization_id}")


def show_batches(console: Console, organization: str, batches: Sequence[MediaBatchRecord], charged_micros: int) -> None:
    """An organization's batches, and what all of them cost together."""
    if not batches:
        say(console, f"organization {organization} has no media batches.")
        return
    table = make_table(
        ("created (UTC)", "name", "state", "assets", "made", "charged", "estimate", "id"),
        (
            (
                time_text(batch.created_at),
                batch.name,
                batch.state.value,
                f"{sum(batch.counts.values()):,}",
                f"{batch.counts.get('done', 0):,}",
                credits_text(batch.charged),
                credits_text(batch.estimate),
                batch.id,
            )
            for batch in batches
        ),
        right=("assets", "made", "charged", "estimate"),
        folds="name",
    )
    print_table(console, table)
    say(
        console,
        f"All batches of {organization} together, also those not shown: {credits_text(from_micros(charged_micros))}"
        f" credits charged; {count_text(len(batches), 'batch').replace('batchs', 'batches')} shown.",
    )
