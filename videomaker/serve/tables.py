"""The tables. `videos` is at once what the API shows and the queue that the workers take from.

Times are seconds since 1970 by the database's clock. Every change of a table is a migration (`migrations/versions`).
"""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text, text

metadata = MetaData()
_JSON = JSON(none_as_null=True)

videos = Table(
    "videos",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("state", String(16), nullable=False),  # queued, in_progress, completed, failed
    Column("model", String(128), nullable=False),
    Column("bucket", String(256), nullable=False),  # jobs of one bucket can share a pass
    Column("priority", Integer, nullable=False, server_default="0"),  # lower goes first
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("expires", Double),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("lease", String(32)),  # the fencing token: new with every claim
    Column("lease_until", Double),
    Column("worker", String(64)),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("step", Integer, nullable=False, server_default="0"),
    Column("steps", Integer, nullable=False),
    Column("cost", Double, nullable=False),  # seconds of a worker, as expected when it was accepted
    Column("request", _JSON, nullable=False),
    Column("result", _JSON),
    Column("error", _JSON),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False),
    Column("client_retry", Integer, nullable=False, server_default="0"),
    Column("request_id", String(64)),
    Column("traceparent", Text),
)

_QUEUED = text("state = 'queued'")
_RUNNING = text("state = 'in_progress'")
_ACTIVE = text("state IN ('queued', 'in_progress')")
Index(
    "videos_queued",
    # cost and state, so that waits read nothing else: SQLite does not see that the state follows from the index.
    videos.c.model, videos.c.priority, videos.c.created, videos.c.cost, videos.c.state,
    sqlite_where=_QUEUED, postgresql_where=_QUEUED,
)  # fmt: skip
Index("videos_active", videos.c.owner, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)
Index(
    "videos_queued_bucket",
    videos.c.bucket, videos.c.priority, videos.c.created,
    sqlite_where=_QUEUED, postgresql_where=_QUEUED,
)  # fmt: skip
Index("videos_running", videos.c.lease_until, sqlite_where=_RUNNING, postgresql_where=_RUNNING)
Index("videos_lease", videos.c.lease)
Index("videos_owner", videos.c.owner, videos.c.created, videos.c.id)
Index("videos_fingerprint", videos.c.owner, videos.c.fingerprint)
Index("videos_idempotency", videos.c.owner, videos.c.idempotency_key, unique=True)
Index("videos_expires", videos.c.expires)

workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("device", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),
    Column("seconds", _JSON, nullable=False),  # bucket -> seconds a video, a moving mean
    Column("stats", _JSON, nullable=False),  # of `metrics.WorkerStats`
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of a key of 256 random bits
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("max_active", Integer),
    Column("max_per_hour", Integer),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(255), nullable=False),
)
