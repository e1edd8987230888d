"""How hard properties are tried.

As they are, they try the same examples in each run, in about a minute on one core. ``PROPERTY_EFFORT=20`` tries twenty
times as many, and others each time: ``PROPERTY_EFFORT=20 pytest tests/properties -n 2``.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

EFFORT = int(os.environ.get("PROPERTY_EFFORT", "1"))

TIMEOUT_S = 900 * EFFORT
"""Of a test. It takes seconds; but to find the smallest example that fails may take five minutes."""


def effort(examples: int, **more: Any) -> settings:
    """Settings of a property.

    :param examples: how many to try in a usual run
    :param more: further settings
    """
    return settings(
        max_examples=examples * EFFORT,
        deadline=None,
        derandomize=EFFORT == 1,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **more,
    )
