"""Alembic's entry: runs the migrations on the connection that steering.store.migrate has opened, in its transaction."""

from alembic import context

from steering.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
