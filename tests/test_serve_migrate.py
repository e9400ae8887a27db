"""Migrations: what they make is what the tables say, up and down, with data, and never backwards by accident."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from serving import new_job
from sqlalchemy import func, inspect, literal, select, text, tuple_

from videomaker.errors import InputError
from videomaker.serve import migrate
from videomaker.serve.database import Database
from videomaker.serve.queue import Queue
from videomaker.serve.tables import metadata, videos


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


def test_each_step_up_and_down_keeps_what_is_there(database):
    migrate.upgrade(database)
    queue = Queue(database)
    ids = {queue.submit(new_job(model=model, idempotency_key=str(i)))[0] for i, model in enumerate("mmn")}
    done = queue.claim("w", "n")
    queue.finish(done.lease, done.rows[0].id, result={"lease": done.lease})
    migrate.downgrade(database, "0001")
    for expected in ("m", "m"):  # the older tables serve as well
        claimed = queue.claim("w", expected)
        queue.release(claimed.lease)
    migrate.upgrade(database)
    with database.read() as connection:
        rows = connection.execute(select(videos)).all()
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert {row.id for row in rows} == ids
    assert sorted(row.state for row in rows) == ["completed", "queued", "queued"]
    assert {row.result["lease"] for row in rows if row.result} == {done.lease}


@pytest.mark.parametrize("index", ["videos_queued", "videos_active", "COVERING INDEX videos_queued"])
def test_the_next_job_waits_and_an_owners_unfinished_jobs_are_found_by_an_index(tmp_path, index):
    database = Database(f"sqlite:///{tmp_path / 'q.db'}")
    migrate.upgrade(database)
    own = select(videos.c.id).where(videos.c.owner == "a", videos.c.state.in_(("queued", "in_progress")))
    queued = videos.c.state == "queued", videos.c.model == "m"
    first = select(videos.c.id).where(*queued).order_by(videos.c.priority, videos.c.created).limit(1)
    place = tuple_(videos.c.priority, videos.c.created) < tuple_(literal(0), literal(1.0))
    ahead = select(func.count(), func.sum(videos.c.cost)).where(*queued, place)
    statement = {"videos_queued": first, "videos_active": own}.get(index, ahead)
    text = str(statement.compile(compile_kwargs={"literal_binds": True}))
    with database.read() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    assert any(index in row[-1] for row in plan) and not any("SCAN" in row[-1] or "B-TREE" in row[-1] for row in plan)


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
