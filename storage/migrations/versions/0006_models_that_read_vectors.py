"""Models that read vectors, and so no tokens, beside those that read texts."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = ("jobs", "models")


def upgrade() -> None:
    """Go to this revision."""
    for table in _TABLES:
        op.add_column(table, sa.Column("reads", sa.Text(), server_default=sa.text("'texts'"), nullable=False))
        op.alter_column(table, "max_seq_length", nullable=True)


def downgrade() -> None:
    """Go back to the one before, which reads a length of 0 as no limit that a vector could exceed."""
    for table in _TABLES:
        op.execute(f"UPDATE {table} SET max_seq_length = 0 WHERE max_seq_length IS NULL")  # noqa: S608 (our own names)
        op.alter_column(table, "max_seq_length", nullable=False)
        op.drop_column(table, "reads")
