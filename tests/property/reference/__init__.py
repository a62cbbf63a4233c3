"""A small reference model of the ledger, written from the design alone.

It shares nothing with ``agentcredits.rules``: no imports, no tables, no counters. Balances are summed from the
grants and holds each time, and everything due is looked for by scanning. What it knows:

* a grant is usable when effective_at <= now < expires_at and it is not voided; burn-down order is priority,
  rollovers first, expires_at (never-ending last), restricted first, category, effective_at, created_at, id;
* what is due is booked in the order of time (holds before grants at one instant) before anything is decided, and
  stays booked when the call is refused;
* a hold remembers what it took from each grant: a commit uses that in burn-down order, the rest goes back newest
  first; what goes back to a grant that has ended is breakage (an EXPIRE row), not balance;
* an explicit commit of an expired hold is refused; its handle settles it late, once, from what is available;
* a refund goes to the grants that paid, newest allocation first, and never exceeds the charge;
* a limit counts what was charged in its window after it was made (or, if it was told so, before too), less what was
  given back in the same window, and the open holds that it was there for; a hard one refuses what would go beyond;
  one for a certain department or user stands in for the default of its unit and window;
* a charge with overage "overdraft" takes what is missing from the account's line; whatever becomes usable pays that
  debt first, and a refund lowers it first: what it gives back beyond it goes to the grants that had paid, newest first;
* a frozen account is charged and held nothing new, a closed one is granted nothing either; all else goes on;
* a hold that was released by force is settled late by its handle, like an expired one;
* a run used what was charged in it after it had a row, what its open holds hold, and what the runs inside claim: an
  open one at least its cap, an ended one what it used; it ends with the one around it, or when nothing happened in it
  for its time-to-live;
* a recurring grant grants each period once, at its start, after the grants that end then; the rest of the period
  before is carried over, as far as its terms go, into a grant that burns before the others of its priority;
* a restricted grant is usable for its actions only, and pays no debt; closing an account cancels what comes again;
* a key belongs to (account, kind of call); the same payload is answered again, another one is a mismatch; the key
  of a released or expired hold may be used for a new hold.
"""

from tests.property.reference.account import Account
from tests.property.reference.ledger import Ledger
from tests.property.reference.values import Answer, Grant, Hold, Limit, Recurring, Refused, Row

__all__ = ["Account", "Answer", "Grant", "Hold", "Ledger", "Limit", "Recurring", "Refused", "Row"]
