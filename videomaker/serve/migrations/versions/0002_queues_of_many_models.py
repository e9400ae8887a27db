"""The next job of each model, and an owner's unfinished jobs, are found without reading past those of others."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_QUEUED = sa.text("state = 'queued'")
_ACTIVE = sa.text("state IN ('queued', 'in_progress')")


def upgrade() -> None:
    op.drop_index("videos_queued", "videos")
    op.create_index(
        "videos_queued", "videos", ["model", "priority", "created"], sqlite_where=_QUEUED, postgresql_where=_QUEUED
    )
    op.create_index("videos_active", "videos", ["owner"], sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)


def downgrade() -> None:
    op.drop_index("videos_active", "videos")
    op.drop_index("videos_queued", "videos")
    op.create_index("videos_queued", "videos", ["priority", "created"], sqlite_where=_QUEUED, postgresql_where=_QUEUED)
