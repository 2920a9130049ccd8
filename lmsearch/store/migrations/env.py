"""What Alembic runs: the migrations of our two tables, on the connection and in the transaction of the caller."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,  # the caller has started the transaction, also on SQLite
)
context.run_migrations()
