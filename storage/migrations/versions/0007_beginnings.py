"""How far the validation of files is, and how often it and the preparation of jobs have begun."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this revision."""
    op.add_column("files", sa.Column("validations_begun", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("files", sa.Column("validation_started_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("files", sa.Column("validation_bytes_read", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("preparations_begun", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("jobs", "preparations_begun")
    op.drop_column("files", "validation_bytes_read")
    op.drop_column("files", "validation_started_at")
    op.drop_column("files", "validations_begun")
