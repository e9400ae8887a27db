"""Migrations: what they make is what the tables say, up and down, with data, and never backwards by accident."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from serving import new_job
from sqlalchemy import inspect, text

from videomaker.errors import InputError
from videomaker.serve import migrate
from videomaker.serve.database import Database
from videomaker.serve.queue import Queue
from videomaker.serve.tables import metadata


@pytest.fixture
def database(any_database) -> Database:
    return any_database


def test_migrations_make_the_tables_and_undo_them(database):
    migrate.upgrade(database)
    migrate.upgrade(database)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    migrate.downgrade(database, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]


def test_an_upgrade_keeps_what_is_there(database):
    migrate.upgrade(database)
    id, _ = Queue(database).submit(new_job())
    migrate.upgrade(database)
    assert Queue(database).claim("w", "m").rows[0].id == id


def test_a_newer_database_is_left_alone(database):
    migrate.upgrade(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match="9999"):
        migrate.upgrade(database)


def test_another_kind_of_database_is_refused():
    with pytest.raises(InputError, match="mysql"):
        Database("mysql://x/y")
