"""An Airflow connection to a SQL database, as SQLAlchemy has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, BaseHook

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError

if TYPE_CHECKING:
    from sqlalchemy import Engine


def open_database(conn_id: str, param: str = "conn_id") -> Engine:
    """Return an engine whose connections are those that the connection's own hook makes, with all that it has in extra.

    Its errors never show the values of a statement: they are the user's rows. A database that cannot be reached is an
    :class:`OpenAIBatchesError` when it is first used.

    :param conn_id: of a connection whose hook is a ``DbApiHook``
    :param param: what to name in an error
    :raises InvalidInputError: it is not such a connection
    """
    connection = BaseHook.get_connection(conn_id)
    try:
        hook = connection.get_hook()
    except (AirflowException, ImportError) as error:
        raise InvalidInputError(
            param,
            f"the connection {conn_id!r} is of type {connection.conn_type!r}, whose provider is not installed "
            f"({error}). For PostgreSQL: pip install apache-airflow-providers-postgres.",
        ) from error
    if not hasattr(hook, "get_sqlalchemy_engine"):
        raise InvalidInputError(
            param, f"the connection {conn_id!r} is of type {connection.conn_type!r}, which is no SQL database."
        )
    if "cursor" in connection.extra_dejson:
        raise InvalidInputError(
            param, f"the connection {conn_id!r} asks for cursors of its own (extra 'cursor'). Give one without that."
        )
    from sqlalchemy import event
    from sqlalchemy.pool import NullPool

    engine: Engine = hook.get_sqlalchemy_engine({"poolclass": NullPool, "hide_parameters": True})

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        # The URL lacks what the hook does besides: sslmode and certificates, IAM tokens.
        try:
            made = hook.get_conn()
        except Exception as error:  # Each driver has errors of its own.
            raise OpenAIBatchesError(
                f"The database of the connection {conn_id!r} cannot be opened: {str(error).strip()}. Is it up, and "
                "are the connection's host, port, schema and login right?",
                transient=True,
            ) from error
        if type(made).__module__.partition(".")[0] == dialect.dbapi.__name__.partition(".")[0]:
            return made
        # An extra chose another driver for SQLAlchemy than the hook's own. It connects by the URL, then.
        made.close()
        return None

    return engine
