"""How Alembic runs here: on the connection that `videomaker.serve.migrate` hands over."""

from alembic import context

from videomaker.serve.tables import metadata

connection = context.config.attributes["connection"]
# SQLite alters a table by copying it.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
