"""Where Alembic meets our tables. Run through `storage.schema`, never through alembic.ini."""

from alembic import context

from storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # What is done stays done when a later one has to be tried again.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
