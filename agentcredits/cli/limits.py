"""``limits list``, ``set``, ``remove`` and ``crossings``: how much may be used, by whom, in which time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from agentcredits.cli.limit_tables import (
    amount_text,
    crossings_table,
    limit_data,
    limits_table,
    owner,
    show_set,
)
from agentcredits.cli.output import print_table, say
from agentcredits.cli.parameters import (
    NEGATIVE_NUMBERS,
    DatabaseOption,
    JsonOption,
    LimitOption,
    OrganizationArgument,
)
from agentcredits.cli.target import begin
from agentcredits.errors import InvalidInputError, LimitNotFoundError
from agentcredits.ids import record_id as checked_id
from agentcredits.model import Limit, LimitScope, LimitUnit
from agentcredits.rules.windows import Window
from agentcredits.service import SyncCreditService

limits = typer.Typer(
    help="Limits of organizations, departments, projects, users, agents and actions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

#: How many limits an ambiguous selection names.
NAMED_AT_MOST = 5

SCOPES = "organization, department, project, user, agent_type, action or run"

ScopeOption = Annotated[
    LimitScope | None, typer.Option("--scope", metavar="SCOPE", help=f"Only limits of this scope: {SCOPES}.")
]
ScopeIdOption = Annotated[
    str | None,
    typer.Option(
        "--id", metavar="ID", help="Which department, project, user, run, agent type, or action as Agent.action."
    ),
]


@limits.command("list")
def list_limits(
    ctx: typer.Context,
    organization: OrganizationArgument,
    scope: ScopeOption = None,
    scope_id: ScopeIdOption = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="The limits of runs, which are not listed otherwise (caps: runs list).")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List an organization's limits and what is used of them in the present window.

    Amounts are in the limit's unit: credits, or the number of charges.
    "each" is a default for every department, user … without a limit of its
    own; below it stand its most used counters, at most 20. --id also lists
    the defaults that apply to that id.

    Example: agentcredits limits list acme --scope department
    """
    command = begin(ctx, database, as_json)
    if runs and scope not in (None, LimitScope.RUN):
        raise InvalidInputError(f"--runs lists the scope run: leave out --scope {scope}.", reason="wrong_use")
    with command.target.service() as service:
        found = service.list_limits(organization, scope=_name(LimitScope.RUN if runs else scope), scope_id=scope_id)

    def render(console: Console) -> None:
        if found:
            print_table(console, limits_table(console, found))
        else:
            say(console, f"organization {organization} has no such limits.")

    command.out.show({"items": [limit_data(limit) for limit in found]}, render)


@limits.command("set", context_settings=NEGATIVE_NUMBERS)
def set_limit(
    ctx: typer.Context,
    organization: OrganizationArgument,
    amount: Annotated[
        str,
        typer.Argument(metavar="AMOUNT", help="How much, in the unit; 0 allows nothing at all.", show_default=False),
    ],
    window: Annotated[
        str,
        typer.Option(
            metavar="WINDOW",
            help="hour, day, week, month (in UTC), lifetime, 'month Europe/Berlin', or as above.",
            show_default=False,
        ),
    ],
    scope: Annotated[
        LimitScope, typer.Option("--scope", metavar="SCOPE", help=f"What is limited: {SCOPES}.")
    ] = LimitScope.ORGANIZATION,
    scope_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="Which department, project, user, agent type, or action as Agent.action;"
            " each that has no limit of its own when left out.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[LimitUnit, typer.Option(help="What is counted.")] = LimitUnit.CREDITS,
    soft: Annotated[bool, typer.Option("--soft", help="Only record that it was gone beyond; refuse nothing.")] = False,
    warn_at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRACTION",
            help="Record when this part of the amount is reached, such as 0.8; may be given several times.",
        ),
    ] = None,
    include_existing: Annotated[
        bool,
        typer.Option(
            "--include-existing", help="Count what was charged in the present window before; else it starts at 0."
        ),
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set how much may be used in a scope and window; opens the account.

    A limit is known by scope, id, unit and window: setting it again changes
    its amount, mode and warnings (those left out are taken away) and keeps
    its counters. Another window or unit makes a second limit; all apply.

    More windows: "anniversary 2026-01-31T09:00:00+01:00 Europe/Berlin"
    (monthly from a day and time on), "fixed 5h 2026-01-01T00:00:00Z".

    Example: agentcredits limits set acme 500 --window month --scope user --id ada
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        made = service.set_limit(
            organization,
            amount=amount,
            window=window,
            scope=scope.value,
            scope_id=scope_id,
            unit=unit.value,
            mode="soft" if soft else "hard",
            warn_at=warn_at or (),
            include_existing=include_existing,
        )
        # With what is used of it already.
        listed = service.list_limits(organization, scope=scope.value)
    limit = next((one for one in listed if one.id == made.id), made)
    command.out.show(limit_data(limit), lambda console: show_set(console, limit))


@limits.command("remove")
def remove_limit(
    ctx: typer.Context,
    organization: OrganizationArgument,
    limit_id: Annotated[
        str | None,
        typer.Argument(metavar="[LIMIT_ID]", help="The limit's id, as limits list shows it.", show_default=False),
    ] = None,
    scope: ScopeOption = None,
    scope_id: ScopeIdOption = None,
    unit: Annotated[LimitUnit | None, typer.Option(help="Only a limit of this unit.")] = None,
    window: Annotated[str | None, typer.Option(metavar="WINDOW", help="Only a limit of this window.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a limit and its counters.

    Name it by its id, or by what it is for: then exactly one limit must
    match, or nothing is removed. Holds that it counted are not touched.

    Example: agentcredits limits remove acme --scope department --id sales
    """
    command = begin(ctx, database, as_json)
    wanted = _selection(scope, scope_id, unit, window)
    if (limit_id is None) == (not wanted):
        raise InvalidInputError(
            "name the limit by its LIMIT_ID, or by --scope, --id, --unit and --window.",
            reason="wrong_use",
            suggestions=(f"List them: agentcredits limits list {organization}",),
        )
    with command.target.service() as service:
        chosen = limit_id if limit_id is not None else _only_match(service, organization, wanted).id
        gone = service.remove_limit(chosen, organization_id=organization)
    command.out.show(
        limit_data(gone),
        lambda console: say(console, f"Removed the limit of {amount_text(gone)} ({gone.window}) of {owner(gone)}."),
    )


@limits.command("crossings")
def list_crossings(
    ctx: typer.Context,
    organization: OrganizationArgument,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the warn thresholds and soft limits that were reached, newest first.

    Each is recorded once in a window: "80 %" is a threshold of --warn-at,
    "100 %" a soft limit that was gone beyond (or a threshold of 1).

    Example: agentcredits limits crossings acme --limit 20
    """
    command = begin(ctx, database, as_json)
    with command.target.service() as service:
        found = service.list_limit_crossings(organization, limit=limit)

    def render(console: Console) -> None:
        if found:
            print_table(console, crossings_table(console, found))
        else:
            say(console, f"organization {organization} has crossed no threshold.")

    command.out.show({"items": found}, render)


# -- choosing one ------------------------------------------------------------------------------------------------


def _selection(
    scope: LimitScope | None, scope_id: str | None, unit: LimitUnit | None, window: str | None
) -> dict[str, str]:
    """What a limit must be like, by the names of its fields."""
    values = {
        "scope": scope,
        # As the ledger has it: the text of a UUID in lower case.
        "scope_id": None if scope_id is None else checked_id(scope_id, name="--id"),
        "unit": unit,
        "window": None if window is None else str(Window.parse(window)),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _only_match(service: SyncCreditService, organization: str, wanted: dict[str, str]) -> Limit:
    """The one limit that is like this.

    Raises:
        LimitNotFoundError: there is none.
        InvalidInputError: there are several.
    """
    listed = service.list_limits(organization, scope=wanted.get("scope"))  # type: ignore[arg-type]  # from the enum
    found = [limit for limit in listed if all(getattr(limit, name) == value for name, value in wanted.items())]
    if len(found) == 1:
        return found[0]
    described = ", ".join(f"{name.removeprefix('scope_')} {value}" for name, value in wanted.items())
    advice = (f"List them: agentcredits limits list {organization}",)
    if not found:
        raise LimitNotFoundError(
            f"organization {organization} has no limit with {described}.", context=dict(wanted), suggestions=advice
        )
    named = "; ".join(
        f"{limit.id} ({owner(limit)}, {amount_text(limit)}, {limit.window})" for limit in found[:NAMED_AT_MOST]
    )
    raise InvalidInputError(
        f"{len(found)} limits match {described}, nothing was removed; name one by its id: {named}"
        + ("." if len(found) <= NAMED_AT_MOST else " …"),
        reason="ambiguous",
        context={**wanted, "limit_ids": [limit.id for limit in found]},
        suggestions=advice,
    )


def _name(scope: LimitScope | None) -> Any:
    """The scope's name, as the service takes it."""
    return None if scope is None else scope.value
