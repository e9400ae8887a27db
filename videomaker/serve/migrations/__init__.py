"""Alembic migrations of the tables, inside the package so that a server brings its own."""
