"""Leases and leaders' terms in tables of their own; how attempts have ended, and how long a job may take."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    """Go to this revision."""
    for name in ("oom_kills", "preemptions", "deaths_in_place"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("died_after_step", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("ran_seconds", sa.Double(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("max_runtime_seconds", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job_events", sa.Column("key", sa.Text(), nullable=True))
    op.create_table(
        "leases",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("team_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_leases_job_id"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_leases_team_id", ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("job_id", name="pk_leases"),
    )
    op.create_table(
        "leader_terms",
        sa.Column("term", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("term", name="pk_leader_terms"),
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_table("leader_terms")
    op.drop_table("leases")
    op.drop_column("job_events", "key")
    for name in (
        "deadline_at", "max_runtime_seconds", "ran_seconds", "died_after_step", "deaths_in_place", "preemptions",
        "oom_kills",
    ):  # fmt: skip
        op.drop_column("jobs", name)
