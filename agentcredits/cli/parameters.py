"""The arguments and options that several commands share, with their help."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

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
OrganizationArgument = Annotated[str, typer.Argument(metavar="ORG", help="The organization's id.", show_default=False)]

#: A word that starts with a minus, such as the amount -5, reaches the command, which refuses it with a reason.
NEGATIVE_NUMBERS = {"ignore_unknown_options": True}


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
