"""What Airflow shows of the provider."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_openai_batches
from airflow_provider_openai_batches.api.dialects import DIALECTS
from airflow_provider_openai_batches.provider_info import get_provider_info

DISTRIBUTION = "airflow-provider-openai-batches"
REPOSITORY = Path(__file__).parents[2]


def named(value: Any) -> Iterator[str]:
    """Every dotted name of this package in the info."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from named(member)
    elif isinstance(value, str) and value.startswith("airflow_provider_openai_batches."):
        yield value


def test_every_name_in_it_imports() -> None:
    names = list(named(get_provider_info()))
    assert len(names) > 5
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(module), member), name


def test_every_operator_sensor_trigger_and_hook_module_is_in_it() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        [entry] = info[kind]
        found = {path.stem for path in (REPOSITORY / "airflow_provider_openai_batches" / kind).glob("openai_*.py")}
        assert {name.rpartition(".")[2] for name in entry["python-modules"]} == found


def test_every_transfer_module_is_in_it() -> None:
    named = {entry["python-module"].rpartition(".")[2] for entry in get_provider_info()["transfers"]}
    folder = REPOSITORY / "airflow_provider_openai_batches" / "transfers"
    assert named == {path.stem for path in folder.glob("openai_*.py")}


def test_names_and_versions_agree() -> None:
    info = get_provider_info()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert info["package-name"] == project["name"] == DISTRIBUTION
    assert info["versions"][0] == airflow_provider_openai_batches.__version__
    assert (
        info["description"]
        == project["description"].split(" from Apache Airflow")[0]
        + project["description"].split(" from Apache Airflow")[1]
    )


def test_entry_point_is_installed() -> None:
    [entry] = [
        entry
        for entry in importlib.metadata.entry_points(group="apache_airflow_provider")
        if entry.dist is not None and entry.dist.name == DISTRIBUTION
    ]
    assert entry.load()() == get_provider_info()


def airflow(*arguments: str) -> Any:
    """Run a command of Airflow's CLI in this process."""
    from airflow.cli.cli_parser import get_parser

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        args = get_parser().parse_args([*arguments, "--output", "json"])
        args.func(args)
    text = output.getvalue()
    return json.loads(text[text.index("[") :])


@pytest.mark.usefixtures("airflow_db")
class TestCommandLine:
    def test_providers_list(self) -> None:
        [found] = [row for row in airflow("providers", "list") if row["package_name"] == DISTRIBUTION]
        assert "Run OpenAI batch jobs" in found["description"]

    def test_providers_get(self) -> None:
        [found] = airflow("providers", "get", DISTRIBUTION)
        assert found["Provider"] == DISTRIBUTION

    def test_providers_hooks(self) -> None:
        [found] = [row for row in airflow("providers", "hooks") if row["connection_type"] == "openai_batches"]
        assert found["class"].endswith("OpenAIBatchesHook")
        assert found["conn_id_attribute_name"] == "conn_id"

    def test_providers_links(self) -> None:
        assert "airflow_provider_openai_batches.links.OpenAIBatchLink" in str(airflow("providers", "links"))


class TestConnectionForm:
    @pytest.fixture
    def form(self, airflow_db: None) -> Any:
        """What the page for connections gets for our type."""
        from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

        [form] = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "openai_batches"]
        if form.standard_fields is None and form.extra_fields is None:
            pytest.skip("this Airflow takes forms from hook classes, for which every one of them is imported (3.1)")
        return form.model_dump()

    def test_standard_fields_are_named_for_their_use(self, form: Any) -> None:
        assert form["hook_name"] == "OpenAI Batches"
        fields = form["standard_fields"]
        assert fields["password"]["title"] == "API key"
        assert fields["host"]["title"] == "Base URL"
        assert fields["host"]["placeholder"] == "https://api.openai.com/v1"
        assert all(fields[name]["hidden"] for name in ("login", "port", "url_schema"))

    def test_extra_fields_have_a_control_each(self, form: Any) -> None:
        kinds = {name: field["schema"]["type"] for name, field in form["extra_fields"].items()}
        assert kinds == {
            "organization": ["string", "null"],
            "project": ["string", "null"],
            "timeout": ["number", "null"],
            "dialect": ["string", "null"],
            "auth": ["string", "null"],
            "headers": ["object", "null"],
            "query": ["object", "null"],
            "prices": ["object", "null"],
            "enqueued_token_limits": ["object", "null"],
            "webhook_secret": ["string", "null"],
        }
        assert all(field["schema"]["title"] and field["description"] for field in form["extra_fields"].values())

    def test_what_is_typed_as_a_secret_is_hidden(self, form: Any) -> None:
        assert form["extra_fields"]["webhook_secret"]["schema"]["format"] == "password"

    def test_choices_are_all_texts(self, form: Any) -> None:
        # The page would show a null among them as an option labelled "null"; clearing the field is enough.
        assert form["extra_fields"]["auth"]["schema"]["enum"] == ["bearer", "api-key", "entra"]
        assert form["extra_fields"]["dialect"]["schema"]["enum"] == list(DIALECTS)

    def test_every_field_of_the_form_is_read(self, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

        extra = {"organization": "o", "project": "p", "timeout": 5, "auth": "api-key", "headers": {"H": "h"}}
        extra |= {"query": {"q": "1"}, "prices": {"m": {"input": 1}}, "enqueued_token_limits": {"m": 5}}
        extra |= {"webhook_secret": "whsec_1", "dialect": "groq"}
        assert set(extra) == set(form["extra_fields"])
        conn = {"conn_type": "openai_batches", "password": "sk-1", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_FORM", json.dumps(conn))
        hook = OpenAIBatchesHook("form")
        settings = hook.get_conn().settings
        assert (settings.organization, settings.project, settings.timeout_s, settings.auth) == ("o", "p", 5, "api-key")
        assert settings.dialect.service == "Groq"
        assert (settings.headers, settings.query) == ({"H": "h"}, {"q": "1"})
        assert (hook.prices["m"].input, hook.queue_limits) == (1, {"m": 5})
        assert hook.webhook_secret == "whsec_1"


HEAVY = ("aiohttp", "azure", "fastapi", "msal", "openai", "pandas", "pyarrow", "sqlalchemy")


def imported(code: str) -> set[str]:
    """Modules a fresh interpreter has after running some code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(done.stdout.splitlines()[-1].split())


def test_provider_info_imports_nothing_of_airflow() -> None:
    modules = imported("import airflow_provider_openai_batches as p; p.get_provider_info()")
    assert not {name for name in modules if name.partition(".")[0] in (*HEAVY, "airflow", "requests", "msgspec")}


def test_parsing_a_dag_imports_nothing_heavy() -> None:
    airflow_itself = imported("import airflow.sdk, airflow.providers.common.compat.sdk as c; c.BaseHook; c.Stats")
    ours = imported(
        "from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchSubmitOperator\n"
        "from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor\n"
        "from airflow_provider_openai_batches.sql import SQLRequests\n"
        "from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import *\n"
        "from airflow_provider_openai_batches.transfers.openai_batches_to_sql import *"
    )
    assert not {name for name in ours - airflow_itself if name.partition(".")[0] in HEAVY}
