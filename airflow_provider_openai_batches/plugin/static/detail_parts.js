// The sections of a batch's detail.

import { Fragment, h, useState } from "./host.js";
import { previewResults } from "./api.js";
import { UNKNOWN, bytes, count, duration } from "./format.js";
import { Button, Facts, Foreign, Moment, Notice, hasEnded, words } from "./widgets.js";

function Section({ title, children }) {
  return h("section", { className: "oab-section" }, h("h3", null, title), children);
}

function Table({ head, rows }) {
  return h(
    "div",
    { className: "oab-scroll" },
    h(
      "table",
      { className: "oab-table" },
      h("thead", null, h("tr", null, head.map((name) => h("th", { key: name, scope: "col" }, name)))),
      h("tbody", null, rows.map((cells, row) => h("tr", { key: row }, cells.map((cell, column) => h("td", { key: column }, cell))))),
    ),
  );
}

/** Why the batch failed, by line of its input file. */
export function Errors({ errors }) {
  if (errors.length === 0) return null;
  const rows = errors.map(({ line, code, message, param }) => [
    line === null ? UNKNOWN : count(line),
    h(
      Fragment,
      null,
      h(Foreign, { text: message ?? UNKNOWN, className: "oab-long" }),
      h(Foreign, { text: [code, param].filter(Boolean).join(" · "), className: "oab-small oab-muted oab-block" }),
    ),
  ]);
  return h(Section, { title: "Errors" }, h(Table, { head: ["Line", "Error"], rows }));
}

/** What happened when, and when time will be up. */
export function Timeline({ batch }) {
  const steps = batch.timeline.map((step, index, all) => ({ ...step, after: index && step.at - all[index - 1].at }));
  const open = !hasEnded(batch) && batch.expires_at;
  return h(
    Section,
    { title: "Timeline" },
    h(
      "ol",
      { className: "oab-timeline" },
      steps.map(({ event, at, after }, index) =>
        h(
          "li",
          { key: index },
          h("span", null, words(event)),
          h("span", { className: "oab-muted" }, h(Moment, { at }), after > 0 && ` (+${duration(after)})`),
        ),
      ),
      open && h("li", { className: "oab-future" }, h("span", null, "time is up"), h("span", { className: "oab-muted" }, h(Moment, { at: open }))),
    ),
  );
}

/** Its input, results and errors as files at OpenAI. */
export function Files({ files }) {
  if (files.length === 0) return null;
  const rows = files.map((file) => [
    words(file.kind),
    h(
      Fragment,
      null,
      h(Foreign, { text: file.filename ?? file.id, className: "oab-block" }),
      file.filename && h(Foreign, { text: file.id, className: "oab-small oab-muted oab-mono oab-block" }),
    ),
    file.deleted
      ? h("span", { className: "oab-badge oab-tone-quiet" }, "deleted")
      : file.problem
        ? h("span", { className: "oab-badge oab-tone-warning" }, "not readable")
        : h("span", { className: "oab-nowrap" }, bytes(file.bytes)),
    file.deleted ? UNKNOWN : h(Moment, { at: file.expires_at }),
  ]);
  const problem = files.find((file) => file.problem)?.problem;
  return h(
    Section,
    { title: "Files" },
    problem && h(Notice, null, h("strong", null, "The files cannot be read with this connection's key."), " ", h(Foreign, { text: problem })),
    h(Table, { head: ["Kind", "File", "Size", "Kept until"], rows }),
  );
}

/** What its maker wrote on it. */
export function Metadata({ metadata }) {
  const entries = Object.entries(metadata);
  if (entries.length === 0) return null;
  const facts = entries.map(([name, value]) => [
    h(Foreign, { text: name }),
    h(Foreign, { text: String(value), className: "oab-long" }),
  ]);
  return h(Section, { title: "Metadata" }, h(Facts, { entries: facts }));
}

/** Whether a batch is over and has rows that a preview would show: of its results, or of its errors if there are none. */
export function hasRows(batch) {
  const file = ["output", "errors"].map((kind) => batch.files.find((each) => each.kind === kind)).find(Boolean);
  return hasEnded(batch) && file !== undefined && !file.deleted && file.bytes !== 0;
}

/** The first result rows, fetched when asked for. */
export function Preview({ batch, conn_id }) {
  const [state, setState] = useState({}); // {pending} or {error} or {rows, truncated}

  async function load() {
    setState({ pending: true });
    try {
      setState(await previewResults(batch.id, conn_id));
    } catch (error) {
      setState({ error });
    }
  }

  return h(
    Section,
    { title: "First results" },
    !state.rows && h(Button, { onClick: load, disabled: state.pending }, state.pending ? "Loading …" : "Show the first rows"),
    state.error && h(Notice, { tone: "bad" }, state.error.message),
    state.rows?.length === 0 && h("p", { className: "oab-muted" }, "There are no result rows."),
    state.rows?.length > 0 && h(Table, { head: ["custom_id", "Status", "Answer"], rows: state.rows.map(previewCells) }),
    state.truncated && h("p", { className: "oab-small oab-muted" }, "There is more: the rest is in the results of the task."),
  );
}

function previewCells({ custom_id, status_code, text, error }) {
  return [
    h(Foreign, { text: custom_id ?? UNKNOWN, className: "oab-long" }),
    status_code ?? UNKNOWN,
    error
      ? h(Foreign, { text: error, className: "oab-long oab-fg-bad" })
      : h(Foreign, { text: text || UNKNOWN, className: "oab-long" }),
  ];
}
