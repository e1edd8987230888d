"""What Airflow reads to show the provider. It is imported in every Airflow process: it imports nothing itself."""

from __future__ import annotations

from typing import Any

_PACKAGE = "airflow_provider_openai_batches"
_INTEGRATION = "OpenAI Batches"
_DIALECTS = ("openai", "azure", "groq", "together", "dashscope", "doubleword", "litellm")


def get_provider_info() -> dict[str, Any]:
    """Describe this package to Airflow's providers manager."""
    return {
        # Airflow refuses every provider of the installation if this differs from the distribution's name.
        "package-name": "airflow-provider-openai-batches",
        "name": "OpenAI Batches",
        "description": "Run OpenAI batch jobs: nothing bought twice, nothing paid for lost.",
        "versions": ["0.1.0"],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://platform.openai.com/docs/guides/batch",
                "tags": ["service", "ai"],
            }
        ],
        "hooks": _modules("hooks.openai_batches"),
        "operators": _modules("operators.openai_batches"),
        "sensors": _modules("sensors.openai_batches"),
        "triggers": _modules("triggers.openai_batch_finished", "triggers.openai_batches"),
        "transfers": [
            _transfer("SQL", "transfers.openai_batches_to_sql"),
            _transfer("Parquet", "transfers.openai_batches_to_parquet"),
        ],
        "task-decorators": [
            {"name": "openai_batch", "class-name": f"{_PACKAGE}.decorators.openai_batch.openai_batch_task"}
        ],
        "extra-links": [
            f"{_PACKAGE}.links.OpenAIBatchLink",
            f"{_PACKAGE}.links.OpenAIBatchesPageLink",
            f"{_PACKAGE}.links.OpenAIBatchResultsLink",
        ],
        # For listings such as `airflow providers`. What loads the plugin is its entry point.
        "plugins": [{"name": "openai_batches", "plugin-class": f"{_PACKAGE}.plugin.OpenAIBatchesPlugin"}],
        "connection-types": [
            {
                "connection-type": "openai_batches",
                "hook-name": "OpenAI Batches",
                "hook-class-name": f"{_PACKAGE}.hooks.openai_batches.OpenAIBatchesHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "port"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {"host": "https://api.openai.com/v1", "password": "sk-..."},
                },
                "conn-fields": {
                    "organization": _field("Organization", "Sent as OpenAI-Organization."),
                    "project": _field("Project", "Sent as OpenAI-Project. Batches and files belong to a project."),
                    "timeout": _field("Timeout (seconds)", "Longest silence of the server, 60 by default.", "number"),
                    "dialect": _field("Dialect", "Which service it is, where that is not OpenAI itself.")
                    | {"schema": {"type": ["string", "null"], "enum": list(_DIALECTS)}},
                    "auth": _field(
                        "Auth",
                        "bearer, or api-key for services that want that header (default: what the dialect has); entra "
                        "for Azure without a key.",
                    )
                    | {"schema": {"type": ["string", "null"], "enum": ["bearer", "api-key", "entra"]}},
                    "headers": _field("Headers", "Further request headers, as a JSON object.", "object"),
                    "query": _field(
                        "Query",
                        "Query parameters added to every request, as a JSON object. Not for secrets: URLs are logged "
                        "at debug level.",
                        "object",
                    ),
                    "prices": _field(
                        "Prices",
                        'For cost estimates: {"model": {"input": 0.1, "output": 0.4}}, USD per million.',
                        "object",
                    ),
                    "enqueued_token_limits": _field(
                        "Enqueued token limits", 'Prompt tokens all DAGs may queue: {"model": 2000000}.', "object"
                    ),
                    "webhook_secret": _field(
                        "Webhook secret", "The signing secret (whsec_...) of the webhook endpoint at OpenAI."
                    )
                    | {"schema": {"type": ["string", "null"], "format": "password"}},
                },
            }
        ],
    }


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{name}" for name in names]}]


def _transfer(target: str, name: str) -> dict[str, str]:
    return {
        "source-integration-name": _INTEGRATION,
        "target-integration-name": target,
        "python-module": f"{_PACKAGE}.{name}",
    }


def _field(label: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"]}}
