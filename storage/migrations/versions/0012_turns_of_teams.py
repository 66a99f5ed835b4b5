"""Priorities of jobs, and when teams had their turns."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this revision."""
    op.add_column("jobs", sa.Column("priority", sa.Text(), server_default="normal", nullable=False))
    op.add_column("jobs", sa.Column("in_turn", sa.Boolean(), server_default=sa.false(), nullable=False))
    for queue in ("gpu", "cpu"):
        op.add_column("teams", sa.Column(f"{queue}_turn_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Go back to the one before."""
    for queue in ("gpu", "cpu"):
        op.drop_column("teams", f"{queue}_turn_at")
    op.drop_column("jobs", "in_turn")
    op.drop_column("jobs", "priority")
