"""The arguments and options that several commands share, with their help, and the times that they take."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from agentcredits.clock import host_now
from agentcredits.errors import InvalidInputError

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="Database URL; else AGENTCREDITS_DATABASE_URL, else the default SQLite file.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV for a spreadsheet instead of text.")]
OrganizationArgument = Annotated[str, typer.Argument(metavar="ORG", help="The organization's id.", show_default=False)]
OptionalOrganizationArgument = Annotated[
    str | None, typer.Argument(metavar="[ORG]", help="Only this organization; all when left out.", show_default=False)
]
AmountArgument = Annotated[
    str, typer.Argument(metavar="AMOUNT", help="Credits, at most 6 decimals.", show_default=False)
]
KeyOption = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Idempotency key: the same command with the same key is booked once."),
]
OnlyForOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Only for VideoAgent, VideoAgent.generate_video or *.generate_video; may be given several times.",
        show_default=False,
    ),
]
UnitCostOption = Annotated[str | None, typer.Option(metavar="COST", help="What one credit of it cost.")]
CurrencyOption = Annotated[str | None, typer.Option(metavar="CODE", help="Of --unit-cost, such as USD.")]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")]
DepartmentOption = Annotated[str | None, typer.Option(metavar="ID", help="Only what belongs to this department.")]
ProjectOption = Annotated[str | None, typer.Option(metavar="ID", help="Only what belongs to this project.")]
UserOption = Annotated[str | None, typer.Option(metavar="ID", help="Only what belongs to this user.")]
AgentOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only this agent type.")]
ActionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only this action.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        help="From then on: 2026-01-31, 7d (today and the 6 days before), 12h, today, week, month, year, or a time"
        " in ISO 8601 with a zone. Days are UTC days.",
    ),
]
UntilOption = Annotated[str | None, typer.Option(metavar="WHEN", help="Before then; written like --since.")]

#: A word that starts with a minus, such as the amount -5, reaches the command, which refuses it with a reason.
NEGATIVE_NUMBERS = {"ignore_unknown_options": True}

_AGO: Final = re.compile(r"([1-9][0-9]{0,4})([dh])")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_time(value: str | None, *, option: str) -> datetime | None:
    """An ISO 8601 time with a time zone.

    Raises:
        InvalidInputError: not a time, or one without a zone.
    """
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(
            f"{option} {value} is not a time: write for example 2027-01-31T00:00:00Z.", context={"parameter": option}
        ) from None
    if moment.tzinfo is None:
        raise InvalidInputError(
            f"{option} {value} has no time zone: write for example {moment:%Y-%m-%dT%H:%M:%S}Z.",
            reason="naive_datetime",
            context={"parameter": option},
        )
    return moment


def parse_period(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """``--since`` and ``--until`` as times in UTC.

    Raises:
        InvalidInputError: one of them cannot be read, or nothing lies between them.
    """
    now = host_now()
    start = _parse_when(since, now, option="--since")
    end = _parse_when(until, now, option="--until")
    if start is not None and end is not None and start >= end:
        raise InvalidInputError(
            f"--since {since} is not before --until {until}: nothing lies between them.",
            reason="empty_period",
            context={"since": start, "until": end},
        )
    return start, end


def _parse_when(value: str | None, now: datetime, *, option: str) -> datetime | None:
    if value is None:
        return None
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {
        "today": today,
        "week": today - timedelta(days=today.weekday()),
        "month": today.replace(day=1),
        "year": today.replace(month=1, day=1),
    }
    if value in named:
        return named[value]
    ago = _AGO.fullmatch(value)
    if ago is not None:
        count = int(ago[1])
        return today - timedelta(days=count - 1) if ago[2] == "d" else now - timedelta(hours=count)
    try:
        if _DAY.fullmatch(value):
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(
            f"{option} {value} is not a time: write for example 2026-01-31, 7d, 12h or month.",
            context={"parameter": option},
        ) from None
    if moment.tzinfo is None:
        return parse_time(value, option=option)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(
            f"{option} {value} lies outside the calendar once it is in UTC.",
            reason="out_of_range",
            context={"parameter": option},
        ) from None
