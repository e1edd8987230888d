// The tab of a task instance: its job alone.

import { AirflowLink, Fragment, PAGE_PATH, h } from "./host.js";
import { getJob } from "./api.js";
import { count, money } from "./format.js";
import { usePolled } from "./polled.js";
import { Empty, Facts, Failure, Foreign, Notice, ProgressBar, Skeleton, StaleNotice, StatusBadge, tokenFacts } from "./widgets.js";

const DONE = ["succeeded", "answered"]; // what was answered in a job that goes on may still be judged
const FAILED = ["failed", "expired", "cancelled", "invalid_output", "missing"];

export function JobTab({ dagId, runId, taskId, mapIndex }) {
  const index = Number(mapIndex ?? -1); // Airflow takes it from its address, where it is text
  const job = usePolled(
    JSON.stringify([dagId, runId, taskId, index]),
    (signal) => getJob(dagId, runId, taskId, index, signal),
    { isFinal: (data) => data.finished },
  );
  let content;
  if (job.data && !job.stale) {
    content = h(
      Fragment,
      null,
      job.error && h(StaleNotice, { error: job.error, at: job.at, onRetry: job.refresh }),
      job.data.found ? h(Job, { job: job.data }) : h(NoJob, job.data),
    );
  } else if (job.error) content = h(Failure, { error: job.error, onRetry: job.refresh });
  else content = h(Skeleton, { label: "Loading the job" });
  return h("div", { className: "oab oab-page" }, content);
}

function NoJob({ note }) {
  return h(
    Empty,
    { title: "No batch job here" },
    note ?? "This task instance has made none yet, or it is not a task of the OpenAI Batches provider.",
  );
}

function Job({ job }) {
  const rows = job.by_status;
  const sum = (statuses) => statuses.reduce((total, status) => total + (rows[status] ?? 0), 0);
  const counts = { total: job.requests, completed: sum(DONE), failed: sum(FAILED) };
  return h(
    Fragment,
    null,
    job.note && h(Notice, null, job.note),
    h(ProgressBar, { counts, label: "Rows answered" }),
    h(
      "ul",
      { className: "oab-row oab-tally", "aria-label": "Rows by status" },
      Object.entries(rows).map(([status, number]) =>
        h("li", { key: status }, h(StatusBadge, { status }), ` ${count(number)}`),
      ),
    ),
    h(Facts, {
      entries: [
        ["Requests", count(job.requests)],
        [job.finished ? "Cost" : "Cost so far", job.cost !== null && money(job.cost)],
        ["Estimated cost", job.estimated_cost !== null && money(job.estimated_cost)],
        ["Without a batch", job.direct?.requests > 0 && withoutBatch(job.direct)],
        ["Not bought again", reused(job.reused)],
        ...tokenFacts(job.usage),
        ["Output", job.output_path && h(Foreign, { text: job.output_path }), true],
      ],
    }),
    h(Shards, { job }),
  );
}

/** Rows that have another's answer, by where it came from; false if there are none. */
function reused(rows) {
  const sources = [["kept", "kept"], ["cache", "from the cache"], ["duplicates", "duplicates"]];
  const parts = sources.filter(([name]) => rows?.[name]).map(([name, label]) => `${count(rows[name])} ${label}`);
  if (rows?.cost) parts.push(`worth ${money(rows.cost)}`);
  return parts.length > 0 && parts.join(", ");
}

function Shards({ job }) {
  return h(
    "div",
    { className: "oab-scroll" },
    h(
      "table",
      { className: "oab-table" },
      h("caption", { className: "oab-hidden" }, "Shards and their rounds"),
      h("thead", null, h("tr", null, ["Shard", "Round", "Status", "Requests", "Model", "Batch"].map((name) => h("th", { key: name, scope: "col" }, name)))),
      h(
        "tbody",
        null,
        job.shards.flatMap((shard) =>
          shard.rounds.map((round, position) =>
            h(
              "tr",
              { key: `${shard.index} ${round.number}` },
              h("td", null, position === 0 && count(shard.index)),
              h("td", null, count(round.number)),
              h(
                "td",
                { className: "oab-nowrap" },
                h(StatusBadge, { status: round.status ?? "not sent" }),
                round.landed && h("span", { className: "oab-small oab-muted" }, " results fetched"),
              ),
              h("td", null, count(round.requests)),
              h("td", null, position === 0 && shard.model && h(Foreign, { text: shard.model })),
              h("td", null, round.direct ? "sent without a batch" : round.batch_id && h(BatchLink, { id: round.batch_id, conn_id: job.conn_id })),
            ),
          ),
        ),
      ),
    ),
  );
}

function withoutBatch({ requests, cost }) {
  const bought = `${count(requests)} ${requests === 1 ? "request" : "requests"}`;
  return cost === null ? bought : `${bought}, ${money(cost)}`;
}

function BatchLink({ id, conn_id }) {
  const query = new URLSearchParams({ ...(conn_id && { conn_id }), batch: id });
  return h(AirflowLink, { to: `${PAGE_PATH}?${query}`, className: "oab-mono" }, h(Foreign, { text: id }));
}
