"""Alembic's folder: how the ledger's schema came to be what it is."""
