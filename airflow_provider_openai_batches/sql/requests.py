"""The rows of a query as the requests of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import shown
from airflow_provider_openai_batches.jobs.sources import RowError, request_of
from airflow_provider_openai_batches.sql.prompts import PromptTemplate

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult

    Row = dict[str, Any]

_ROWS_PER_FETCH = 500


class SQLRequests:
    """Rows of a query, for the ``requests`` of ``OpenAIBatchOperator``. Read when the job is planned, and only then.

    They come through a server-side cursor, one fetch of 500 after the other, in one transaction that is rolled back at
    the end. All columns go to each result's ``context``.

    :param conn_id: Airflow connection to the database (templated)
    :param sql: the query (templated); values go in as ``:name``
    :param prompt: text with the names of columns in braces, ``Is this review positive? {review}``. ``{{`` and ``}}``
        are braces: it is not templated. Default: the query itself selects ``prompt``, ``messages`` or another field of
        a request, as the columns of a CSV or Parquet file do
    :param key: the column, or columns, that tell rows apart. Becomes the custom_id: the text of one, a JSON list of
        several. Default: the column ``custom_id`` if there is one, else the row's number
    :param parameters: values for the ``:name`` in the query (templated)
    """

    template_fields: Sequence[str] = ("conn_id", "sql", "parameters")

    def __init__(
        self,
        conn_id: str,
        sql: str,
        *,
        prompt: str | None = None,
        key: str | Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.conn_id = conn_id
        self.sql = sql
        self.prompt = prompt
        self.key = key
        self.parameters = parameters
        self._prompt = None if prompt is None else PromptTemplate(prompt)
        self._key = [key] if isinstance(key, str) else list(key or ())

    def __str__(self) -> str:
        # Airflow keeps this with the DAG and shows it as the rendered template: the same at each parse, no values.
        return f"{self.conn_id}: {self.sql}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the rows.

        :raises InvalidInputError: connection, query, prompt or key cannot work
        :raises RowError: a row cannot be a request
        """
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_provider_openai_batches.sql.database import open_database

        if not isinstance(self.sql, str) or len(self.sql.split()) < 2:
            raise InvalidInputError("sql", f"expected a query, got {self.sql!r}.")
        engine = open_database(self.conn_id)
        try:
            with engine.connect() as connection:
                try:
                    for row in _read(lambda: self._execute(connection), self._checked_columns):
                        yield self._request(row)
                except BaseException:
                    # MySQL would have to send all rows that are left before anything else, a rollback, too.
                    connection.invalidate()
                    raise
        except SQLAlchemyError as error:
            raise InvalidInputError("sql", f"the database refuses the query: {error}") from error
        finally:
            engine.dispose()

    def _execute(self, connection: Connection) -> CursorResult[Any]:
        from sqlalchemy import BindParameter, text
        from sqlalchemy.sql.visitors import iterate

        statement, values = text(self.sql), dict(self.parameters or {})
        named = {part.key for part in iterate(statement) if isinstance(part, BindParameter)}
        if missing := sorted(named - values.keys()):
            raise InvalidInputError(
                "parameters",
                f"the query names :{', :'.join(missing)}, but there is no such value. If that is text of the query, "
                f"write \\:{missing[0]}.",
            )
        if unused := sorted(values.keys() - named):
            raise InvalidInputError("parameters", f"the query does not name :{', :'.join(unused)}. Take it out.")
        streamed = connection.execution_options(stream_results=True, yield_per=_ROWS_PER_FETCH)
        return streamed.execute(statement, values)

    def _checked_columns(self, result: CursorResult[Any]) -> list[str]:
        if not result.returns_rows:
            raise InvalidInputError("sql", "it returns no rows. Give a query.")
        columns = list(result.keys())
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise InvalidInputError("sql", f"it selects {', '.join(twice)} more than once. Rename one with AS.")
        if unknown := [name for name in self._key if name not in columns]:
            raise InvalidInputError(
                "key", f"the query has no column {', '.join(map(repr, unknown))}; it has {', '.join(columns)}."
            )
        if self._prompt is not None:
            self._prompt.check(columns)
        elif self._key and "custom_id" in columns and self._key != ["custom_id"]:
            raise InvalidInputError("key", "the query selects custom_id as well. Take one of the two out.")
        return columns

    def _request(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._prompt is not None:
            request = {"prompt": self._prompt.fill(row), "context": row}
        else:
            request = request_of({name: _field(name, value) for name, value in row.items()})
        if self._key:
            request["custom_id"] = self._custom_id(row)
        return request

    def _custom_id(self, row: dict[str, Any]) -> str:
        values = []
        for name in self._key:
            value = row[name]
            if value is None:
                raise RowError(
                    f"the key {name!r} is NULL, so its answer could not be matched. Leave such rows out "
                    f"(WHERE {name} IS NOT NULL), or choose another key."
                )
            try:
                values.append(msgspec.to_builtins(value, builtin_types=()))
            except TypeError as error:
                raise RowError(f"the key {name!r} is {shown(value)}. Convert it to text in the query.") from error
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
        return msgspec.json.encode(values if len(values) > 1 else values[0]).decode()


def _read(execute: Callable[[], CursorResult[Any]], check: Callable[[CursorResult[Any]], list[str]]) -> Iterator[Row]:
    """Run a query and give its rows.

    :param check: returns the names of the result's columns, or refuses them
    :raises InvalidInputError: a value has no like in Python. It is not shown, though drivers do so
    """
    count = 0
    try:
        # Some drivers fetch the first rows at once.
        result = execute()
        columns = check(result)
        for values in result:
            count += 1
            yield dict(zip(columns, values, strict=True))
    except Exception as error:
        if not _is_about_reading(error):
            raise
        raise InvalidInputError(
            "sql",
            f"the driver cannot read a value in one of the {_ROWS_PER_FETCH} rows after the first {count:,}, "
            "such as an infinite date, a year before Christ, or text in another encoding. Convert its column in the "
            "query, e.g. CAST(day AS VARCHAR(30)) AS day, or leave such rows out.",
        ) from None


def _is_about_reading(error: Exception) -> bool:
    """Whether an error is the driver's own, and no word of the database."""
    from sqlalchemy.exc import DataError, DBAPIError, OperationalError

    if not isinstance(error, DBAPIError):
        return isinstance(error, (UnicodeDecodeError, OverflowError))
    orig: Any = error.orig
    if hasattr(orig, "sqlstate") or hasattr(orig, "pgcode"):
        code = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
        return isinstance(error, DataError) and code is None
    return isinstance(error, OperationalError) and str(orig).startswith("Could not decode")


def _field(name: str, value: Any) -> Any:
    """Return a column's value. Only some databases and drivers give JSON as what it says; the others give its text."""
    if name in ("messages", "body") and isinstance(value, str):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise RowError(f"the column {name!r} is not valid JSON ({error}).") from error
    return value
