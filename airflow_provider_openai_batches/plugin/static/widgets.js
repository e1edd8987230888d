// The small parts of which page and tab are made. Whatever a user or a service wrote goes in as text, never as markup.

import { AirflowLink, Fragment, h } from "./host.js";
import { ENDED_STATUSES } from "./api.js";
import { UNKNOWN, clock, count, duration, iso, known, moment, now } from "./format.js";

const TONES = {
  validating: "waiting",
  in_progress: "running",
  finalizing: "running",
  sending: "running",
  cancelling: "warning",
  completed: "good",
  succeeded: "good",
  answered: "good",
  failed: "bad",
  expired: "bad",
  missing: "bad",
  invalid_output: "bad",
};

export const words = (status) => String(status).replaceAll("_", " ");

export const hasEnded = (batch) => ENDED_STATUSES.includes(batch.status);

export function StatusBadge({ status }) {
  return h("span", { className: `oab-badge oab-tone-${TONES[status] ?? "quiet"}` }, words(status));
}

export function RiskFlag() {
  return h(
    "span",
    { className: "oab-badge oab-tone-warning", title: "At its present pace it will not be done when its 24 hours are over." },
    h(Icon, { name: "warning" }),
    "at risk",
  );
}

/** How much of a batch or job is done: a bar, and the same in words. */
export function ProgressBar({ counts: { total, completed, failed }, label, status }) {
  if (!total) {
    const said = { validating: "being checked", failed: "none ran" }[status] ?? UNKNOWN;
    return h("span", { className: "oab-muted" }, said);
  }
  const done = `${count(completed + failed)} of ${count(total)}`;
  const failures = failed ? `, ${count(failed)} failed` : "";
  const part = (value, tone) => value > 0 && h("span", { className: tone, style: { inlineSize: `${(100 * value) / total}%` } });
  return h(
    "div",
    { className: "oab-progress" },
    h(
      "div",
      {
        className: "oab-bar",
        role: "progressbar",
        "aria-label": label,
        "aria-valuemin": 0,
        "aria-valuemax": total,
        "aria-valuenow": completed + failed,
        "aria-valuetext": `${done} done${failures}`,
      },
      part(completed, "oab-bar-completed"),
      part(failed, "oab-bar-failed"),
    ),
    h("span", { className: "oab-small oab-nowrap" }, done, failed > 0 && h("span", { className: "oab-fg-bad" }, failures)),
  );
}

/** How long ago something was; the exact time on hover. */
export function Age({ at }) {
  if (!at) return UNKNOWN;
  return h("time", { dateTime: iso(at), title: moment(at) }, duration(now() - at));
}

export function Moment({ at }) {
  return at ? h("time", { dateTime: iso(at) }, moment(at)) : UNKNOWN;
}

/** Text that others wrote: its direction ends where it ends, and however long it is it takes little room. */
export function Foreign({ text, className = "", ...rest }) {
  return h("bdi", { className: `oab-foreign ${className}`, ...rest }, text);
}

export function Button({ kind = "plain", ...rest }) {
  return h("button", { type: "button", className: `oab-button oab-button-${kind}`, ...rest });
}

/** A line over data that are still shown although the last request failed, or over the page for any other news. */
export function Notice({ tone = "warning", children, action }) {
  return h(
    "div",
    { className: `oab-notice oab-tone-${tone}`, role: "status" },
    h(Icon, { name: tone === "good" ? "check" : "warning" }),
    h("div", null, children),
    action,
  );
}

/** What the last answer said, if the one after it failed. */
export function StaleNotice({ error, at, onRetry }) {
  return h(
    Notice,
    { action: h(Button, { onClick: onRetry }, "Try now") },
    h("strong", null, titleOf(error)),
    ` ${error.message} This is how things stood at ${clock(at / 1000)}.`,
  );
}

/** A whole area that has nothing to show, and why. */
export function Empty({ icon = "inbox", title, children, action }) {
  return h(
    "div",
    { className: "oab-empty" },
    h(Icon, { name: icon }),
    h("h2", null, title),
    h("div", { className: "oab-muted" }, children),
    action && h("div", { className: "oab-row" }, action),
  );
}

/** An area whose data could not be had. */
export function Failure({ error, onRetry }) {
  const locked = error.code === "forbidden";
  const again = !locked && error.code !== "unauthenticated";
  return h(
    "div",
    { role: "alert" },
    h(
      Empty,
      {
        icon: locked ? "lock" : "warning",
        title: titleOf(error),
        action: again && h(Button, { onClick: onRetry }, "Try again"),
      },
      error.message,
    ),
  );
}

const TITLES = {
  forbidden: "You have no access to this",
  unauthenticated: "You are signed out",
  unauthorized_key: "OpenAI refuses this connection's key",
  service_down: "OpenAI does not answer",
  rate_limited: "OpenAI asks for fewer calls",
  forbidden_key: "This key may not see batches",
  unreachable: "Airflow does not answer",
  not_found: "There is no such batch",
  no_connection: "There is no such connection",
};

const titleOf = (error) => TITLES[error.code] ?? "This did not work";

/** Grey lines where text will be. */
export function Skeleton({ lines = 8, label }) {
  return h(
    "div",
    { className: "oab-skeleton", role: "status" },
    h("span", { className: "oab-hidden" }, label),
    Array.from({ length: lines }, (_, line) => h("div", { key: line, "aria-hidden": true })),
  );
}

/** Names and values, and whether a value needs a line of its own. Entries without a value are left out. */
export function Facts({ entries }) {
  return h(
    "dl",
    { className: "oab-facts" },
    entries
      .filter(([, value]) => known(value) && value !== false)
      .map(([name, value, wide], index) =>
        h("div", { key: index, className: wide ? "oab-whole" : undefined }, h("dt", null, name), h("dd", null, value)),
      ),
  );
}

/** Tokens of a batch or job as facts. */
export function tokenFacts(usage) {
  if (!usage) return [];
  const { input_tokens, cached_input_tokens, output_tokens, reasoning_tokens } = usage;
  const share = (part, name) => (part ? h("span", { className: "oab-muted" }, ` (${count(part)} ${name})`) : null);
  return [
    ["Input tokens", h(Fragment, null, count(input_tokens), share(cached_input_tokens, "cached"))],
    ["Output tokens", h(Fragment, null, count(output_tokens), share(reasoning_tokens, "reasoning"))],
  ];
}

/** Who made a batch: the task instance, with a link if it is one of this Airflow, or nobody here. */
export function Maker({ batch: { made_by, job } }) {
  if (!made_by) return h("span", { className: "oab-badge oab-tone-quiet" }, "outside Airflow");
  const { dag_id, run_id, task_id, map_index, url } = made_by;
  const task = `${dag_id} › ${task_id}${map_index >= 0 ? ` [${map_index}]` : ""}`;
  const name = h(Foreign, { text: task, title: task, className: "oab-line" });
  const shard = known(job?.shard) ? `shard ${job.shard}, round ${job.round ?? 1} · ` : "";
  return h(
    Fragment,
    null,
    url ? h(AirflowLink, { to: url }, name) : h("span", { title: "A DAG that this Airflow does not have." }, name),
    h(Foreign, { text: `${shard}${run_id}`, title: run_id, className: "oab-line oab-small oab-muted" }),
  );
}

const SHAPES = {
  warning: "M12 9v4m0 4h.01M10.3 3.9 1.8 18a2 2 0 0 0 1.7 3h17a2 2 0 0 0 1.7-3L13.7 3.9a2 2 0 0 0-3.4 0z",
  check: "M20 6 9 17l-5-5",
  lock: "M7 11V7a5 5 0 0 1 10 0v4M5 11h14a2 2 0 0 1 2 2v7a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2v-7a2 2 0 0 1 2-2z",
  inbox: "M22 12h-6l-2 3h-4l-2-3H2M5.5 5.1 2 12v6a2 2 0 0 0 2 2h16a2 2 0 0 0 2-2v-6l-3.5-6.9A2 2 0 0 0 16.8 4H7.2a2 2 0 0 0-1.7 1.1z",
  search: "M11 3a8 8 0 1 0 0 16 8 8 0 0 0 0-16zm10 18-4.3-4.3",
  plug: "M9 2v6m6-6v6M6 8h12v4a6 6 0 0 1-12 0V8zm6 10v4",
  refresh: "M21 12a9 9 0 1 1-2.6-6.4L21 8m0-5v5h-5",
  close: "M18 6 6 18M6 6l12 12",
};

export function Icon({ name }) {
  return h(
    "svg",
    { viewBox: "0 0 24 24", className: "oab-icon", "aria-hidden": true },
    h("path", { d: SHAPES[name] }),
  );
}
