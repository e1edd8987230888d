"""Label every Python distribution installed here with a topic, one request per row, at batch prices.

The granular way: each step of a batch is a task of its own and the ids travel through XCom. `make demo` runs this DAG.
"""

from __future__ import annotations

import json
from importlib.metadata import distributions
from tempfile import gettempdir
from typing import Any

from airflow.sdk import ObjectStoragePath, Param, dag, task

from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchDownloadOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor

ENDPOINT = "/v1/chat/completions"
TOPICS = ["web and network", "data and storage", "text and formats", "command line", "testing and typing", "other"]
ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "topic",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": TOPICS}, "reason": {"type": "string"}},
            "required": ["label", "reason"],
            "additionalProperties": False,
        },
    },
}
PROMPT = "Which topic fits this Python library best? Give the reason in one short sentence."


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={
        "directory": Param(
            f"{gettempdir()}/openai-batches-demo",
            type="string",
            description="A path or URI that all workers see.",
        ),
        "model": Param("gpt-4o-mini", type="string", description="What answers the requests."),
        "rows": Param(None, type=["integer", "null"], minimum=1, description="At most this many; default: all."),
    },
)
def demo_labels() -> None:
    """### Rows in, labels out: requests, upload, submit, wait, download, join."""
    run_directory = "{{ params.directory }}/{{ run_id }}"

    @task
    def write_requests(directory: str, **context: Any) -> str:
        """Write one request line per row; `custom_id` is what brings the answer back to its row."""
        path = ObjectStoragePath(directory) / "requests.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lines:
            for name, summary in installed_distributions(context["params"]["rows"]).items():
                body = {
                    "model": context["params"]["model"],
                    "messages": [
                        {"role": "system", "content": PROMPT},
                        {"role": "user", "content": f"{name}: {summary}"},
                    ],
                    "response_format": ANSWER,
                    "max_completion_tokens": 200,
                }
                line = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
                lines.write(json.dumps(line) + "\n")
        return str(path)

    @task
    def join_answers(directory: str, downloaded: dict[str, Any], **context: Any) -> dict[str, Any]:
        """Put each answer beside its row, in the rows' order: the server answers in any order."""
        answers = {}
        for path in (downloaded["output_path"], downloaded["error_path"]):
            if path:
                answers |= {line["custom_id"]: line for line in read_lines(path)}
        labelled = [
            {"name": name, "summary": summary, **label_of(answers.get(name))}
            for name, summary in installed_distributions(context["params"]["rows"]).items()
        ]
        results = ObjectStoragePath(directory) / "labels.jsonl"
        with results.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in labelled)
        failed = sum(row["error"] is not None for row in labelled)
        return {
            "results": str(results),
            "requests": len(labelled),
            "succeeded": len(labelled) - failed,
            "failed": failed,
            "usage": downloaded["usage"],
        }

    requests_path = write_requests(run_directory)
    upload = OpenAIBatchUploadOperator(task_id="upload", source=requests_path)
    submit = OpenAIBatchSubmitOperator(task_id="submit", input_file_id=upload.output, endpoint=ENDPOINT)
    # Deferred, so that no worker slot is held while OpenAI works. For batches of hours leave poll_interval at its 60 s.
    wait = OpenAIBatchSensor(task_id="wait", batch_id=submit.output, deferrable=True, poll_interval=5)
    download = OpenAIBatchDownloadOperator(task_id="download", batch_id=submit.output, output_path=run_directory)
    wait >> download
    join_answers(run_directory, download.output)


def installed_distributions(most: int | None = None) -> dict[str, str]:
    """Return name and summary of installed distributions: rows that any machine has.

    :param most: how many, spread over the alphabet; default: all
    """
    found = {dist.name: dist.metadata.get("Summary", "") for dist in distributions()}
    rows = sorted(found.items(), key=lambda row: row[0].lower())
    step = max(1, len(rows) // (most or len(rows)))
    return dict(rows[::step][:most])


def read_lines(path: str) -> list[dict[str, Any]]:
    """Read a JSONL file. Its lines end in \\n only; a JSON string may hold other line separators."""
    with ObjectStoragePath(path).open("r", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def label_of(line: dict[str, Any] | None) -> dict[str, Any]:
    """Return label and reason of an answer, or why there is none."""
    if line is None:
        return {"label": None, "reason": None, "error": "the batch has no answer for this row"}
    response = line["response"]
    if response is None or response["status_code"] != 200:
        error = line["error"] or response["body"]["error"]
        return {"label": None, "reason": None, "error": error["message"]}
    choice = response["body"]["choices"][0]
    if choice["message"].get("refusal") or choice["finish_reason"] != "stop":
        error = choice["message"].get("refusal") or f"the answer ended early: {choice['finish_reason']}"
        return {"label": None, "reason": None, "error": error}
    answer = json.loads(choice["message"]["content"])
    return {"label": answer["label"], "reason": answer["reason"], "error": None}


demo_labels()
