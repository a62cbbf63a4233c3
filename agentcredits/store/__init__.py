"""The store: the only SQL of agentcredits (SQLAlchemy Core), written once, blocking."""
