"""Read a DAG file into a metadata database three times, as DAG processors do: ``python -m tests.polling.parse FILE``.

A watcher is written down at the second time, when its DAG is known to be active, and has to be the same at the third.
"""

from __future__ import annotations

import sys

from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.utils.session import create_session

try:
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag, sync_bag_to_db


def main() -> None:
    """Read it."""
    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
    for _ in range(3):
        bag = DagBag(dag_folder=sys.argv[1])
        assert not bag.import_errors, bag.import_errors
        with create_session() as session:
            sync_bag_to_db(bag, "dags-folder", None, session=session)


if __name__ == "__main__":
    main()
