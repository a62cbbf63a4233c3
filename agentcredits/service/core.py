"""The service, written once: every method is steps (see ``runner.steps``) that any door can drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from agentcredits.amounts import MAX_AMOUNT_MICROS, Amount, to_micros
from agentcredits.clock import as_utc
from agentcredits.errors import AccountNotFoundError, CreditsError, InvalidInputError, MissingContextError
from agentcredits.ids import check_text, encode_json, new_id, scope_id
from agentcredits.model import (
    Balance,
    CreditGrant,
    Decision,
    GrantCategory,
    Page,
    PlannedAction,
    Quote,
    QuoteLine,
    RepairChange,
    RepairRefusal,
    RepairReport,
    Scopes,
    SweepReport,
    Transaction,
    TransactionType,
    VerifyReport,
)
from agentcredits.rules import operations as ops
from agentcredits.rules import pricing as price_rules
from agentcredits.runner.steps import Read, Steps, Write
from agentcredits.service import arguments
from agentcredits.service.recurring import Recurring
from agentcredits.store import queries, repair, verification


class ServiceCore(Recurring):
    """What both public faces, the decorators and the adapters use."""

    def grant_credits(
        self,
        organization_id: object,
        amount: Amount,
        *,
        category: str = "paid",
        priority: int = 50,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        source: str | None = None,
        only_for: Sequence[str] | None = None,
        unit_cost: Amount | None = None,
        currency: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[CreditGrant]:
        """Add a block of credits; opens the account."""
        owner = scope_id(organization_id, name="organization_id")
        micros = to_micros(amount)
        kind = arguments.choice(GrantCategory, category, name="category")
        rank = arguments.whole_number(priority, name="priority", low=0, high=arguments.MAX_PRIORITY)
        start = None if effective_at is None else as_utc(effective_at, name="effective_at")
        end = None if expires_at is None else as_utc(expires_at, name="expires_at")
        if source is not None:
            check_text(source, name="source")
        names = arguments.only_for(only_for)
        cost, money = arguments.cost_basis(unit_cost, currency)
        # Only where they are given: the keys of grants that were made before these were known still match.
        added = (names, cost, money) if names or cost is not None else ()
        key, generated = arguments.key(idempotency_key)
        outcome = yield from self._post(
            ops.Grant(
                organization_id=owner,
                id=new_id(),
                key=key,
                key_generated=generated,
                fingerprint=ops.fingerprint("grant", owner, micros, kind, rank, start, end, source, *added),
                amount_micros=micros,
                category=kind,
                priority=rank,
                effective_at=start,
                expires_at=end,
                source=source,
                metadata_json=encode_json(metadata, name="metadata"),
                only_for=names,
                unit_cost=cost,
                currency=money,
            )
        )
        return self._grant(owner, outcome)

    def void_grant(
        self, grant: object, *, organization_id: object = None, mode: str = "remaining", reason: str | None = None
    ) -> Steps[CreditGrant]:
        """Take back what is left of a grant."""
        owner = self.organization(organization_id, grant)
        if mode not in ("remaining", "unreserved"):
            raise InvalidInputError(
                f"mode must be remaining or unreserved, not {mode!r}.", context={"parameter": "mode"}
            )
        outcome = yield from self._post(
            ops.VoidGrant(
                organization_id=owner,
                grant_id=self.id_of(grant, name="grant_id"),
                unreserved_only=mode == "unreserved",
                reason=None if reason is None else check_text(reason, name="reason", max_length=arguments.MAX_REASON),
            )
        )
        return self._grant(owner, outcome)

    def list_grants(self, organization_id: object) -> Steps[tuple[CreditGrant, ...]]:
        """Every grant of the organization, oldest first."""
        owner = scope_id(organization_id, name="organization_id")
        found: tuple[CreditGrant, ...] = yield Read(
            lambda connection: queries.list_grants(connection, owner, self.clock), owner
        )
        return found

    def create_account(self, organization_id: object) -> Steps[Balance]:
        """Open an account without credits; nothing happens when it is there."""
        owner = scope_id(organization_id, name="organization_id")
        yield from self._post(ops.CreateAccount(organization_id=owner))
        return (yield from self.get_balance(owner))

    def get_balance(self, organization_id: object) -> Steps[Balance]:
        """The balance now."""
        owner = scope_id(organization_id, name="organization_id")
        found: Balance = yield Read(lambda connection: queries.get_balance(connection, owner, self.clock), owner)
        return found

    def check(
        self,
        *,
        organization_id: str,
        amount_micros: int,
        agent_type: str | None = None,
        action: str | None = None,
        scopes: Scopes | None = None,
        refusal: CreditsError | None = None,
    ) -> Steps[Decision]:
        """Whether an amount could be charged now; ``refusal`` is what mode "observe" found before."""
        activity = ops.Activity(agent_type=agent_type, action=action, scopes=scopes or Scopes())
        planned = _planned(organization_id, amount_micros, activity, refusal)
        return (yield from self._decide(organization_id, [planned]))

    def _decide(self, organization_id: str, planned: Sequence[ops.Spending]) -> Steps[Decision]:
        required = sum(operation.amount_micros for operation in planned)
        if self.mode == "off":
            return Decision(organization_id, True, required, required)
        available, refusal = 0, None
        try:
            for operation in planned:
                refusal = refusal or self._would_refuse(operation.activity.scopes, operation.would_refuse)
            available, later = yield Read(
                lambda connection: queries.check(connection, organization_id, planned, self.clock), organization_id
            )
            refusal = refusal or later
        except (AccountNotFoundError, MissingContextError) as error:
            refusal = refusal or error
        if refusal is None:
            return Decision(organization_id, True, required, available)
        # In mode "observe" the work would run: allowed, and why "enforce" would refuse it.
        return arguments.denied(organization_id, required, available, refusal, allowed=self.mode == "observe")

    def check_credits(
        self,
        organization_id: object,
        *,
        agent_type: str | None = None,
        action: str | None = None,
        quantity: Any = 1,
        dimensions: Mapping[str, Any] | None = None,
        amount: Amount | None = None,
        project_id: object = None,
        department_id: object = None,
        user_id: object = None,
    ) -> Steps[Decision]:
        """Whether an action could be charged now; the public method."""
        owner = scope_id(organization_id, name="organization_id")
        scopes = self._scopes(owner, project_id, department_id, user_id)
        price = yield from self.amount_for(
            organization_id=owner,
            amount=amount,
            agent_type=agent_type,
            action=action,
            quantity=quantity,
            dimensions=dimensions,
        )
        return (
            yield from self.check(
                organization_id=owner,
                amount_micros=price.amount_micros,
                agent_type=agent_type,
                action=action,
                scopes=scopes,
                refusal=price.refusal,
            )
        )

    def list_transactions(
        self,
        organization_id: object,
        *,
        cursor: int | None = None,
        limit: int = 50,
        type: str | None = None,
        agent_type: str | None = None,
        action: str | None = None,
        project_id: object = None,
        department_id: object = None,
        user_id: object = None,
        run_id: object = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Steps[Page[Transaction]]:
        """A page of the history."""
        owner = scope_id(organization_id, name="organization_id")
        before = (
            None if cursor is None else arguments.whole_number(cursor, name="cursor", low=0, high=MAX_AMOUNT_MICROS)
        )
        matches = arguments.matches(
            agent_type=agent_type,
            action=action,
            project_id=project_id,
            department_id=department_id,
            user_id=user_id,
            run_id=run_id,
        )
        kind = None if type is None else arguments.choice(TransactionType, type, name="type")
        size = arguments.page_size(limit)
        start, end = arguments.period(since, until)
        page: Page[Transaction] = yield Read(
            lambda connection: queries.list_transactions(
                connection, owner, cursor=before, limit=size, type=kind, matches=matches, since=start, until=end
            ),
            owner,
        )
        return page

    def quote(self, organization_id: object, actions: Sequence[PlannedAction]) -> Steps[Quote]:
        """Price a whole plan before the start."""
        owner = scope_id(organization_id, name="organization_id")
        lines = []
        operations = []
        scopes = self._scopes(owner, None, None, None)
        for planned in arguments.items(actions, PlannedAction, name="actions"):
            price = yield from self.price(
                organization_id=owner,
                agent_type=planned.agent_type,
                action=planned.action,
                quantity=planned.quantity,
                dimensions=planned.dimensions,
            )
            quantity = price_rules.parse_quantity(planned.quantity)
            lines.append(
                QuoteLine(planned.agent_type, planned.action, quantity, price.amount_micros, price.steps, price.usd)
            )
            activity = ops.Activity(agent_type=planned.agent_type, action=planned.action, scopes=scopes)
            operations.append(_planned(owner, price.amount_micros, activity, price.refusal))
        decision = yield from self._decide(owner, operations)
        return Quote(owner, tuple(lines), decision)

    def sweep(self, organization_id: object = None) -> Steps[SweepReport]:
        """Book what is due everywhere; tidiness only, correctness never depends on it."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        due: list[str] = yield Read(lambda connection: queries.accounts_due(connection, self.clock, owner))
        holds, grants = 0, 0
        unknown: list[str] = []
        for place in due:
            before: queries.Due = yield Read(
                partial(queries.due_summary, organization_id=place, clock=self.clock), place
            )
            yield from self._post(ops.Expire(organization_id=place))
            holds += before.holds
            grants += before.grants
            unknown += before.unknown
        return SweepReport(len(due), holds, grants, tuple(unknown))

    def verify(
        self, organization_id: object = None, *, progress: verification.Progress | None = None
    ) -> Steps[VerifyReport]:
        """Recompute every counter from the rows and report any difference."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        report: VerifyReport = yield Read(lambda connection: verification.verify(connection, owner, progress), owner)
        return report

    def repair(
        self,
        organization_id: object = None,
        *,
        dry_run: bool = True,
        progress: verification.Progress | None = None,
    ) -> Steps[RepairReport]:
        """Make derived counters equal to what the ledger says, or list what that would take."""
        owner = None if organization_id is None else scope_id(organization_id, name="organization_id")
        accounts: list[tuple[str, int]] = yield Read(
            lambda connection: verification.list_accounts(connection, owner), owner
        )
        meter = verification.Meter(accounts, progress)
        changes: list[RepairChange] = []
        refused: list[RepairRefusal] = []
        for place, _ in accounts:
            step = meter.begin(place)
            account: verification.AccountVerification = yield Read(
                partial(repair.examine, organization_id=place, step=step), place
            )
            if not account.findings:
                continue
            done = repair.plan(account) if dry_run else (yield Write(partial(repair.apply, account=account), place))
            changes += done.changes
            refused += done.refused
        return RepairReport(bool(dry_run), len(accounts), meter.rows_read, tuple(changes), tuple(refused))


def _planned(
    organization_id: str, amount_micros: int, activity: ops.Activity, refusal: CreditsError | None
) -> ops.Spending:
    """A charge that is only asked about."""
    return ops.Spending(
        organization_id=organization_id,
        id="",
        key="",
        fingerprint="",
        amount_micros=amount_micros,
        activity=activity,
        would_refuse=refusal,
    )
