"""``@task.openai_batch``: the function gives the rows, the task the answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_openai_batches.operators.job import OpenAIBatchOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class _OpenAIBatchDecoratedOperator(DecoratedOperator, OpenAIBatchOperator):
    """Calls the function when rows are needed: once per plan, not on a resume or a retry that goes on."""

    custom_operator_name = "@task.openai_batch"
    # `requests` is the function's to give; what it returns is never rendered.
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in OpenAIBatchOperator.template_fields if name != "requests"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {**DecoratedOperator.template_fields_renderers}

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            requests=SET_DURING_EXECUTION,
            **kwargs,
        )

    def _rows(self, context: Context) -> Any:
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        return self.python_callable(*self.op_args, **arguments)


def openai_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn a function that returns or yields rows into a task that answers them.

    All parameters of :class:`~airflow_provider_openai_batches.operators.openai_batches.OpenAIBatchOperator` but
    ``requests`` can be given.

    The function is called when rows are needed: once per plan, not by a retry that goes on. What it returns is never
    rendered; arguments written in the DAG file are, as with every ``@task``.

    :param python_callable: the function; its rows are those of the operator's ``requests``
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_OpenAIBatchDecoratedOperator, **kwargs
    )
