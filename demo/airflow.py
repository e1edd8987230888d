"""A real Airflow for one run (sqlite, LocalExecutor, scheduler, triggerer, API server) and its REST API."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from demo.processes import HOST, DemoError, Processes, WaitTimeoutError, claim_port, local_environment

USER = "admin"
PARALLEL_TASKS = 4
MIGRATE_TIMEOUT_S = 180
HEALTHY_TIMEOUT_S = 180
PARSED_TIMEOUT_S = 60
REQUEST_TIMEOUT_S = 30
FINISHED_STATES = frozenset({"success", "failed"})
DATABASE_TIMEOUT_S = 60
# Airflow's API server blocks its own event loop while it waits for sqlite, and whoever in it holds the lock waits for
# that loop. So it gives up before the others do: a scheduler would die of it, and a request is made again.
API_DATABASE_TIMEOUT_S = 3
COMPONENTS = ("metadatabase", "scheduler", "triggerer", "dag_processor")


@dataclass(frozen=True)
class TaskInstance:
    """What the REST API tells about one task of a run.

    :param state: Airflow's state; "none" while the scheduler has not looked at it
    :param duration_s: seconds of its current or last try, if it has one
    """

    task_id: str
    map_index: int
    state: str
    try_number: int
    duration_s: float | None

    @classmethod
    def from_api(cls, entry: Mapping[str, Any]) -> Self:
        """Read one element of the REST API's `task_instances`."""
        return cls(
            entry["task_id"], entry["map_index"], entry["state"] or "none", entry["try_number"], entry["duration"]
        )


class Airflow:
    """A running Airflow. `Airflow.start` makes one; it ends with the processes it was started through.

    :param url: base URL of UI and REST API, without a trailing slash
    :param password: of the user `admin`, and of any other
    :param processes: the children it consists of
    """

    def __init__(self, url: str, password: str, processes: Processes):
        self.url = url
        self.password = password
        self.processes = processes
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc: this talks to 127.0.0.1
        # A busy sqlite now and then makes the API server answer 500.
        again = Retry(
            5,
            connect=0,
            read=0,
            backoff_factor=0.5,
            status_forcelist=(500, 503),
            allowed_methods=None,  # A POST, too: what failed so was rolled back.
            raise_on_status=False,
        )
        self._session.mount("http://", HTTPAdapter(max_retries=again))

    @classmethod
    def start(
        cls,
        processes: Processes,
        home: Path,
        dags_folder: Path,
        *,
        port: int | None = None,
        users: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Start an Airflow of the running Python's environment and wait until all its parts are healthy.

        :param processes: starts and, in the end, stops the components
        :param home: AIRFLOW_HOME: configuration, sqlite database, task logs; must not exist yet
        :param dags_folder: where the DAG files are
        :param port: of the API server on 127.0.0.1; None: any free one
        :param users: roles of further users by name; they have the same password
        :param env: further variables, such as AIRFLOW_CONN_...; the shell's own Airflow settings are not inherited
        :raises DemoError: the port is taken, a component died, or they were not healthy in time
        """
        port = claim_port(port, "AIRFLOW_PORT")
        url = f"http://{HOST}:{port}"
        password = secrets.token_urlsafe(9)
        home.mkdir(parents=True, mode=0o700)
        passwords = home / "passwords.json"
        roles = {USER: "admin", **(users or {})}
        passwords.write_text(json.dumps(dict.fromkeys(roles, password)))
        settings = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(PARALLEL_TASKS),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in roles.items()),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API__HOST": HOST,
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            # Tasks find the API server by this one, too.
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

        def environment_of(database_timeout_s: int) -> dict[str, str]:
            database = f"sqlite:///{home.absolute()}/airflow.db?timeout={database_timeout_s}"
            ours = settings | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database} | dict(env or {})
            return local_environment(ours, without=("AIRFLOW", "_AIRFLOW", "OPENAI_"))

        environment = environment_of(DATABASE_TIMEOUT_S)
        airflow = (sys.executable, "-m", "airflow")
        processes.run("db-migrate", [*airflow, "db", "migrate"], env=environment, timeout_s=MIGRATE_TIMEOUT_S)
        processes.start("api-server", [*airflow, "api-server"], env=environment_of(API_DATABASE_TIMEOUT_S))
        # The log servers would listen on fixed ports of every interface, and all logs are on this disk anyway.
        processes.start("scheduler", [*airflow, "scheduler", "--skip-serve-logs"], env=environment)
        processes.start("dag-processor", [*airflow, "dag-processor"], env=environment)
        processes.start("triggerer", [*airflow, "triggerer", "--skip-serve-logs"], env=environment)
        running = cls(url, password, processes)
        processes.wait_for(running._is_healthy, timeout_s=HEALTHY_TIMEOUT_S, what="Airflow to become healthy")
        running._log_in()
        return running

    def api(self, method: str, path: str, body: object = None, *, params: Mapping[str, Any] | None = None) -> Any:
        """Call the public REST API.

        :param path: below `/api/v2`, starting with a slash
        :param body: sent as JSON; None: no body
        :param params: the query
        :return: the answer's JSON, None if it is empty
        :raises requests.HTTPError: any status of 400 and above
        :raises DemoError: nobody answers
        """
        try:
            answer = self._request(method, f"/api/v2{path}", body, params)
        except requests.ConnectionError as error:
            self.processes.require_all_alive()
            raise DemoError(f"Airflow's API server at {self.url} does not answer: {error}") from error
        if answer.status_code == requests.codes.unauthorized:
            self._log_in()  # tokens live for a day; a batch may take as long
            answer = self._request(method, f"/api/v2{path}", body, params)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text[:500]}", response=answer)
        return answer.json() if answer.content else None

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Unpause a DAG and start a run of it, waiting until the DAG processor has seen the DAG.

        :param conf: the run's parameters
        :return: the run id
        :raises DemoError: the DAG does not appear; the message carries the import errors
        """
        try:
            self.processes.wait_for(
                lambda: self._knows(dag_id), timeout_s=PARSED_TIMEOUT_S, what=f"the DAG {dag_id} to be parsed"
            )
        except WaitTimeoutError as error:
            broken = self.api("GET", "/importErrors")["import_errors"]
            traces = "\n".join(f"{entry['filename']}:\n{entry['stack_trace']}" for entry in broken)
            raise DemoError(f"{error}\n{traces}") from error
        self.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        run = self.api("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout_s: float,
        on_poll: Callable[[list[TaskInstance]], None] = lambda tasks: None,
    ) -> str:
        """Wait until a run is over.

        :param timeout_s: seconds it may take
        :param on_poll: given the run's tasks each time they were looked at
        :return: "success" or "failed"
        :raises DemoError: time is up or Airflow died
        """

        def finished_state() -> str | None:
            state = str(self.api("GET", _run_path(dag_id, run_id))["state"])
            on_poll(self.task_instances(dag_id, run_id))
            return state if state in FINISHED_STATES else None

        finished = self.processes.wait_for(finished_state, timeout_s=timeout_s, what=f"the run {run_id} of {dag_id}")
        return str(finished)

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """List a run's tasks, mapped ones each on their own."""
        answer = self.api("GET", f"{_run_path(dag_id, run_id)}/taskInstances", params={"limit": 100})
        return [TaskInstance.from_api(entry) for entry in answer["task_instances"]]

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", *, map_index: int = -1
    ) -> Any | None:
        """Read one XCom; None if there is none (yet).

        :param map_index: of a mapped task; -1: not mapped
        """
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        try:
            return self.api("GET", path, params={"map_index": map_index})["value"]
        except requests.HTTPError as error:
            if error.response.status_code == requests.codes.not_found:
                return None
            raise

    def task_log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, map_index: int = -1) -> str:
        """Read the log of one try, one line per event, tracebacks included.

        :param try_number: 1 for the first
        :param map_index: of a mapped task; -1: not mapped
        """
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{try_number}"
        answer = self.api("GET", path, params={"map_index": map_index, "full_content": True})
        return "\n".join(_log_line(event) for event in answer["content"])

    def _is_healthy(self) -> bool:
        try:
            health = self._request("GET", "/api/v2/monitor/health", None, None).json()
        except (requests.ConnectionError, requests.Timeout):
            return False
        return all(health.get(component, {}).get("status") == "healthy" for component in COMPONENTS)

    def _knows(self, dag_id: str) -> bool:
        return self._request("GET", f"/api/v2/dags/{dag_id}", None, None).ok

    def token(self, user: str = USER) -> str:
        """Log a user in, and return what their calls bring along as bearer token or as the cookie `_token`."""
        answer = self._request("POST", "/auth/token", {"username": user, "password": self.password}, None)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def _log_in(self) -> None:
        self._session.headers["Authorization"] = f"Bearer {self.token()}"

    def _request(self, method: str, path: str, body: object, params: Mapping[str, Any] | None) -> requests.Response:
        return self._session.request(method, self.url + path, json=body, params=params, timeout=REQUEST_TIMEOUT_S)


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _log_line(event: Mapping[str, Any] | str) -> str:
    if isinstance(event, str):
        return event
    errors = (f"{error.get('exc_type')}: {error.get('exc_value')}" for error in event.get("error_detail") or ())
    return " ".join([event.get("timestamp") or "", event.get("event", ""), *errors]).strip()
