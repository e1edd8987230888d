"""OpenTelemetry spans around the calls that move data or cost money; nothing where nobody traces.

Airflow sets the tracer up where it is told to trace (``[traces] otel_on``), and makes the task's span the parent.
Without OpenTelemetry installed, or set up, a span is nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

SPANS = (
    "openai_batches.upload",
    "openai_batches.create",
    "openai_batches.download",
    "openai_batches.land",
    "openai_batches.direct",
)


def traced(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make each call of a function a span.

    :param name: of the span, one of :data:`SPANS`
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with _span(name):
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def _span(name: str) -> Iterator[None]:
    try:
        from opentelemetry import trace
    except ImportError:
        yield
        return
    # The tracer is asked for each time: Airflow may set it up after this module is imported.
    with trace.get_tracer("airflow_provider_openai_batches").start_as_current_span(name):
        yield
