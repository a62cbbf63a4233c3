"""The migrations of the credits schema: an Alembic environment that travels in the wheel.

``agentcredits.store.upgrade`` runs them; applications need not import this package.
"""
