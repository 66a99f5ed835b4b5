"""Aliases of models, and a word to all who listen when a name may stand for something else."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_TELLING = ("models", "api_keys", "aliases")


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "aliases",
        sa.Column("team_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_aliases_team_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("team_id", "name", name=op.f("pk_aliases")),
    )
    op.execute(
        "CREATE FUNCTION tell_names_changed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_notify('likeness_names', ''); RETURN NULL; END $$"
    )
    for table in _TELLING:
        op.execute(
            f"CREATE TRIGGER tell_names_changed AFTER INSERT OR UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION tell_names_changed()"
        )


def downgrade() -> None:
    """Go back to the one before."""
    for table in _TELLING:
        op.execute(f"DROP TRIGGER tell_names_changed ON {table}")
    op.execute("DROP FUNCTION tell_names_changed()")
    op.drop_table("aliases")
