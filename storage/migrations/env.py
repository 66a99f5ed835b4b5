"""Where Alembic meets our tables. Run through `storage.schema`, never through alembic.ini."""

from alembic import context

from storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # A migration that waits for a lock makes everybody behind it wait too: rather fail and be run again.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
