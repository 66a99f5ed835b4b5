"""Evaluations of jobs, and what models were evaluated on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this revision."""
    evaluation = sa.Column("evaluation", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True)
    op.add_column("jobs", evaluation)
    op.add_column("models", sa.Column("evaluation_split", sa.Text(), nullable=True))


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("models", "evaluation_split")
    op.drop_column("jobs", "evaluation")
