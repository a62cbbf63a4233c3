"""Runs: opened, ended, looked at, tidied."""

from __future__ import annotations

from datetime import timedelta

from agentcredits.amounts import Amount, to_micros
from agentcredits.errors import InvalidInputError
from agentcredits.ids import check_text, new_id, optional_scope_id, scope_id
from agentcredits.model import RunRecord, RunStatus
from agentcredits.rules import operations as ops
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service import arguments
from agentcredits.service.charges import Charges
from agentcredits.store import queries

#: How long an ended run is kept, unless ``purge_runs`` is told otherwise.
RETENTION = timedelta(days=90)


class Runs(Charges):
    """Trees of runs."""

    def open_run(
        self,
        organization_id: object,
        run_id: object = None,
        *,
        max_credits: Amount | None = None,
        parent_run_id: object = None,
        borrow: bool | None = None,
        partial: bool = False,
        ttl: timedelta | None = None,
    ) -> Steps[RunRecord]:
        """Open a run, or change the one that is open under this id."""
        owner = arguments.organization(organization_id)
        place = new_id() if run_id is None else scope_id(run_id, name="run_id")
        parent = optional_scope_id(parent_run_id, name="parent_run_id")
        if parent == place:
            raise InvalidInputError("a run cannot be inside itself.", context={"parameter": "parent_run_id"})
        for name, value in (("borrow", borrow), ("partial", partial)):
            if value is not None and not isinstance(value, bool):
                raise InvalidInputError(f"{name} must be True or False, not {value!r}.", context={"parameter": name})
        if ttl is not None and arguments.ttl(ttl) < timedelta(seconds=1):
            raise InvalidInputError("the ttl of a run must be at least a second.", context={"parameter": "ttl"})
        yield from self._post(
            ops.OpenRun(
                organization_id=owner,
                run_id=place,
                parent_run_id=parent,
                cap_micros=None if max_credits is None else to_micros(max_credits, name="max_credits", allow_zero=True),
                borrows=borrow,
                partial=partial,
                ttl=ttl,
            )
        )
        return (yield from self.get_run(place, organization_id=owner))

    def end_run(self, run: object, *, organization_id: object = None, reason: str | None = None) -> Steps[RunRecord]:
        """End a run and those inside it."""
        owner = self.organization(organization_id, run)
        place = _id_of(run)
        why = None if reason is None else check_text(reason, name="reason", max_length=arguments.MAX_REASON)
        yield from self._post(ops.EndRun(organization_id=owner, run_id=place, reason=why))
        return (yield from self.get_run(place, organization_id=owner))

    def get_run(self, run: object, *, organization_id: object = None) -> Steps[RunRecord]:
        """One run as it is now."""
        owner = self.organization(organization_id, run)
        place = _id_of(run)
        found: RunRecord = yield Read(lambda connection: queries.get_run(connection, owner, place, self.clock), owner)
        return found

    def list_runs(
        self, organization_id: object, *, status: str | None = None, parent_run_id: object = None, limit: int = 50
    ) -> Steps[tuple[RunRecord, ...]]:
        """Runs, newest first."""
        owner = arguments.organization(organization_id)
        wanted = None if status is None else arguments.choice(RunStatus, status, name="status")
        parent = optional_scope_id(parent_run_id, name="parent_run_id")
        size = arguments.page_size(limit)
        found: tuple[RunRecord, ...] = yield Read(
            lambda connection: queries.list_runs(
                connection, owner, self.clock, status=wanted, parent_run_id=parent, limit=size
            ),
            owner,
        )
        return found

    def purge_runs(self, organization_id: object = None, *, older_than: timedelta = RETENTION) -> Steps[int]:
        """Remove runs that ended long ago."""
        owner = None if organization_id is None else arguments.organization(organization_id)
        age = arguments.age(older_than, name="older_than")
        removed: int = yield Write(lambda connection: queries.purge_runs(connection, owner, self.clock, age))
        return removed


def _id_of(run: object) -> str:
    return scope_id(run.run_id if isinstance(run, RunRecord) else run, name="run_id")
