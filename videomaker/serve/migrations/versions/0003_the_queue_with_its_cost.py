"""What is before a job is counted and summed within one index, instead of reading the rows of all that wait."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_QUEUED = sa.text("state = 'queued'")


def _index(name: str, *columns: str) -> None:
    op.create_index(name, "videos", list(columns), sqlite_where=_QUEUED, postgresql_where=_QUEUED)


def upgrade() -> None:
    op.drop_index("videos_queued_cost", "videos")
    op.drop_index("videos_queued", "videos")
    _index("videos_queued", "model", "priority", "created", "cost", "state")


def downgrade() -> None:
    op.drop_index("videos_queued", "videos")
    _index("videos_queued", "model", "priority", "created")
    _index("videos_queued_cost", "model", "cost")
