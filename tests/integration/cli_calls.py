"""The command line, called as a program is, what it answered, and charges that it can show."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import SyncCreditService
from agentcredits.cli import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.out, parse_float=Decimal)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def rows(self) -> list[dict[str, str]]:
        """What ``--csv`` printed."""
        return list(csv.DictReader(io.StringIO(self.out)))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of a bulk run: booked, already there, failed."""
        return self.data["booked"], self.data["already_there"], self.data["failed"]

    @property
    def failed(self) -> dict[int, str]:
        """Of a bulk run: messages by line."""
        return {problem["line"]: problem["message"] for problem in self.data["problems"]}


Call = Callable[..., Answer]


def caller(capsys: pytest.CaptureFixture[str], *last: str) -> Call:
    """Call the program with these words and, after them, ``last``."""

    def call(*words: object) -> Answer:
        code = main([*(str(word) for word in words), *last])
        streams = capsys.readouterr()
        return Answer(code, streams.out, streams.err)

    return call


def refused(answer: Answer) -> str:
    """The sentence of an error that is not about missing credits."""
    assert (answer.code, answer.out) == (2, ""), answer
    assert "Traceback" not in answer.err, answer.err
    return answer.err.splitlines()[0]


def charge(service: SyncCreditService, amount: object = 1, **more: Any) -> str:
    """The id of a charge of acme."""
    return service.consume_credits(organization_id="acme", amount=amount, **more).id  # type: ignore[arg-type]


def available(service: SyncCreditService, *organizations: str) -> list[Decimal]:
    return [service.get_balance(organization).available for organization in organizations]
