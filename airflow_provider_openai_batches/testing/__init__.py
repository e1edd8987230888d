"""A kit for testing DAGs against a real HTTP emulator with scripted faults: docs/testing.md.

pytest loads :mod:`.plugin` by itself; :mod:`.faults` names what can go wrong. Nothing is imported here, nor by the
plugin until a fixture is used: most test runs that load it are not about batches.
"""

from __future__ import annotations
