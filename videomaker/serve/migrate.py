"""Brings a database to the version of the tables that this program knows."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from videomaker.errors import InputError

from .database import Database

LOCK = 0x56694D  # of PostgreSQL's advisory locks: replicas that start together migrate one after the other


def upgrade(database: Database, revision: str = "head") -> None:
    """Runs what is missing; several processes may do so at once.

    Raises:
        InputError: the database was written by a newer program.
    """
    _run(database, command.upgrade, revision)


def downgrade(database: Database, revision: str) -> None:
    """Undoes migrations down to a revision (`"base"` removes the tables)."""
    _run(database, command.downgrade, revision)


def _run(database: Database, step, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        _check_known(connection, config)
        config.attributes["connection"] = connection
        step(config, revision)


def _check_known(connection: Connection, config: Config) -> None:
    from alembic.runtime.migration import MigrationContext

    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise InputError(f"the database is at revision {current}, which this program does not know: update VideoMaker")
