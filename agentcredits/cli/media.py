"""``media plan``, ``run``, ``status``, ``resume``, ``reconcile``: batches of media assets from a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from agentcredits.amounts import from_micros
from agentcredits.cli import media_output
from agentcredits.cli.media_calls import load_function
from agentcredits.cli.output import Output, make_console
from agentcredits.cli.parameters import DatabaseOption, JsonOption
from agentcredits.cli.target import begin
from agentcredits.context import RequestContext, use_context
from agentcredits.errors import InvalidInputError
from agentcredits.media.batch import MediaBatch
from agentcredits.media.batch_files import BatchFile, read_batch_file
from agentcredits.media.batch_plan import BatchProgress, BatchSummary
from agentcredits.media.batch_prices import CostQuestion
from agentcredits.media.manifest import charged_in_all, list_batches
from agentcredits.service import SyncCreditService, core_of

media = typer.Typer(
    help="Batches of media assets: priced, made, resumed.", no_args_is_help=True, rich_markup_mode="rich"
)

EXIT_FAILED: Final = 2

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The batch: .yaml, .json or .toml.", show_default=False)
]
BatchArgument = Annotated[
    str, typer.Argument(metavar="BATCH", help="The batch's id, as media status shows it.", show_default=False)
]
FileOrgOption = Annotated[
    str | None,
    typer.Option("--org", metavar="ORG", help="Who pays; else the file's `organization`.", show_default=False),
]
OrgOption = Annotated[str, typer.Option("--org", metavar="ORG", help="Whose batch it is.", show_default=False)]
GenerateOption = Annotated[
    str | None,
    typer.Option(
        "--generate",
        metavar="MODULE:FUNCTION",
        help="What calls the provider for one job and returns its answer; else what the batch names.",
        show_default=False,
    ),
]
LookOption = Annotated[
    str,
    typer.Option(
        "--look",
        metavar="MODULE:FUNCTION",
        help="What asks the provider about one job and returns a Finding.",
        show_default=False,
    ),
]
FolderOption = Annotated[
    str | None,
    typer.Option("--output-dir", metavar="FOLDER", help="Where files go; else the batch's own.", show_default=False),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Make what costs more than its threshold without asking.")]


@media.command("plan")
def plan(
    ctx: typer.Context,
    file: FileArgument,
    organization: FileOrgOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Price a batch and compare it with balance, limits and budget.

    Nothing is called, held or written. The last lines say what the batch
    costs in all, and how many of its assets would be made now, in the order
    of their priority.

    Exit codes: 0 it is priced, 2 the file or a price cannot be used.

    Example: agentcredits media plan batch.yaml --org acme
    """
    command = begin(ctx, database, as_json)
    found = read_batch_file(file)
    with command.target.service() as service, _payer(found, organization):
        made = _new(service, found, None).plan()
    command.out.show(made.as_dict(), lambda console: media_output.show_plan(console, made))


@media.command("run")
def run(
    ctx: typer.Context,
    file: FileArgument,
    generate: GenerateOption = None,
    organization: FileOrgOption = None,
    output_dir: FolderOption = None,
    yes: YesOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the assets of a batch, most urgent first.

    Each is priced, held, noted in the manifest, made, charged, and written
    to its file. When credits, a limit, the budget or the provider's balance
    do not suffice, the rest comes back as a priced plan, and that is no
    error: media resume makes it later. Interrupt or kill it at any moment.

    Exit codes: 0 every asset is made, or priced; 2 one failed or its call
    got no answer, it was interrupted, or the batch cannot be used.

    Example: agentcredits media run batch.yaml --generate studio.calls:make
    """
    command = begin(ctx, database, as_json)
    found = read_batch_file(file)
    name = generate or found.generate
    function = load_function(name, option="--generate")
    with command.target.service() as service, _payer(found, organization), _progress(command.out) as tell:
        batch = _new(
            service,
            found,
            function,
            on_progress=tell,
            confirm=_confirm(command.out, yes=yes),
            settings={"generate": name},
            **({} if output_dir is None else {"output_dir": output_dir}),
        )
        interrupted = False
        try:
            summary = batch.run()
        except KeyboardInterrupt:
            summary, interrupted = batch.status(), True
    _end(command.out, summary, interrupted=interrupted)


@media.command("status")
def status(
    ctx: typer.Context,
    organization: OrgOption,
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="One batch; all when left out.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Batches at most.")] = 20,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the manifest of a batch, or all batches and what they cost together.

    Example: agentcredits media status --org acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        if batch is not None:
            summary = MediaBatch.load(service, batch, organization_id=organization).status()
            command.out.show(summary.as_dict(), lambda console: media_output.show_summary(console, summary))
            return
        found = list_batches(core_of(service), organization, limit)
        charged = charged_in_all(core_of(service), organization)
    data = {
        "items": [entry.as_dict() for entry in found],
        "charged": from_micros(charged),
        "charged_micros": charged,
    }
    command.out.show(data, lambda console: media_output.show_batches(console, organization, found, charged))


@media.command("resume")
def resume(
    ctx: typer.Context,
    batch: BatchArgument,
    organization: OrgOption,
    generate: GenerateOption = None,
    output_dir: FolderOption = None,
    retry_unknown: Annotated[
        bool,
        typer.Option("--retry-unknown", help="Send again what got no answer; the provider may bill it twice."),
    ] = False,
    yes: YesOption = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do what is left of a batch, after a top-up, an interrupt or a crash.

    What got an answer is charged, once, and its file written. What was not
    made is made. A call that got no answer is shown, its credits stay held,
    and it is not sent again: see media reconcile. While another process
    works on the batch it is refused.

    Exit codes: 0 every asset is made, or priced; 2 one failed or is unknown,
    it was interrupted, or the batch cannot be used.

    Example: agentcredits media resume 0199d9a0-0000-7000-8000-000000000002 --org acme
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service, _progress(command.out) as tell:
        known = MediaBatch.load(service, batch, organization_id=organization)
        function = load_function(generate or known.generate_name, option="--generate")
        options = {} if output_dir is None else {"output_dir": output_dir}
        loaded = MediaBatch.load(
            service,
            batch,
            function,
            organization_id=organization,
            on_progress=tell,
            confirm=_confirm(command.out, yes=yes),
            **options,
        )
        interrupted = False
        try:
            summary = loaded.run_again(retry_unknown=retry_unknown)
        except KeyboardInterrupt:
            summary, interrupted = loaded.status(), True
    _end(command.out, summary, interrupted=interrupted)


@media.command("reconcile")
def reconcile(
    ctx: typer.Context,
    batch: BatchArgument,
    organization: OrgOption,
    look: LookOption,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find out about the calls of a batch that got no answer.

    FUNCTION gets each such job of the manifest (provider_reference is the
    provider's id of the request, where one was noted) and returns
    Finding.made(result), Finding.never_sent() or Finding.still_open(), all
    from agentcredits.media. What was made is charged and written; what was
    never sent is given back, and media resume makes it.

    Exit codes: 0 nothing is unknown any more, 2 something is.

    Example: agentcredits media reconcile 0199d9a0-0000-7000-8000-000000000002 --org acme --look studio.calls:look
    """
    command = begin(ctx, database, as_json)
    function = load_function(look, option="--look")
    with command.target.service() as service:
        summary = MediaBatch.load(service, batch, organization_id=organization).reconcile(function)
    command.out.show(summary.as_dict(), lambda console: media_output.show_summary(console, summary))
    if summary.unknown:
        raise typer.Exit(EXIT_FAILED)


# -- parts ---------------------------------------------------------------------------------------------------------


def _new(service: SyncCreditService, found: BatchFile, generate: Any, **options: Any) -> MediaBatch:
    settings: dict[str, Any] = {
        "name": found.name,
        "output_dir": found.output_dir,
        "budget": found.budget,
        "concurrency": found.concurrency,
        "threshold": found.threshold,
        "threshold_usd": found.threshold_usd,
        "batch_threshold": found.batch_threshold,
        "credits_per_usd": found.credits_per_usd,
        "account": found.account,
    }
    return MediaBatch(service, found.jobs, generate, **{**settings, **options})


def _payer(found: BatchFile, organization: str | None) -> use_context:
    owner = organization or found.organization
    if owner is None:
        raise InvalidInputError(
            f"{found.path.name} names no organization: add `organization:` to it, or --org.", reason="wrong_use"
        )
    return use_context(
        RequestContext(owner, project_id=found.project, department_id=found.department, user_id=found.user)
    )


def _confirm(out: Output, *, yes: bool) -> Any:
    """Asks on a terminal; elsewhere what costs more than its threshold is skipped."""
    if yes:
        return lambda _question: True
    if out.as_json or not out.console.is_terminal:
        return None

    def ask(question: CostQuestion) -> bool:
        what = "The batch" if question.job is None else f"{question.job.name} ({question.job.model})"
        text = f"{what} costs {question.amount:,f} credits, more than {question.threshold}. Make it?"
        return typer.confirm(text, default=False)

    return ask


@contextmanager
def _progress(out: Output) -> Iterator[Any]:
    """A bar on a terminal; nothing in a pipe or file."""
    console: Console = make_console(stderr=True)
    if out.as_json or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(event: BatchProgress) -> None:
            charged = from_micros(event.charged_micros)
            words = f"{event.job.name}: {event.job.state.value}; {charged:,f} credits so far"
            progress.update(task, total=event.total, completed=event.ended, description=words)

        yield tell


def _end(out: Output, summary: BatchSummary, *, interrupted: bool) -> None:
    data = {**summary.as_dict(), "interrupted": interrupted}
    out.show(data, lambda console: media_output.show_summary(console, summary, interrupted=interrupted))
    if summary.failed or summary.unknown or interrupted:
        raise typer.Exit(EXIT_FAILED)
