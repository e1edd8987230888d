// The list of batches.

import { Fragment, h } from "./host.js";
import { UNKNOWN, compact, count, duration, money } from "./format.js";
import { Age, Foreign, Maker, ProgressBar, RiskFlag, StatusBadge, hasEnded } from "./widgets.js";

const COLUMNS = [
  ["Batch", Name],
  ["Status", ({ batch }) => h("div", { className: "oab-stack" }, h(StatusBadge, batch), batch.at_risk && h(RiskFlag))],
  ["Progress", ({ batch }) => h(ProgressBar, { ...batch, label: `Progress of ${batch.id}` })],
  ["Age", ({ batch }) => h(Age, { at: batch.created_at }), "oab-nowrap"],
  ["ETA", Arrival, "oab-nowrap"],
  ["Model", Model],
  ["Tokens", ({ batch }) => h(Tokens, batch), "oab-number"],
  ["Cost", ({ batch }) => money(batch.cost_usd), "oab-number"],
  ["Made by", Maker],
];

/** `open(id)`: show one batch in detail. */
export function BatchTable({ batches, open }) {
  return h(
    "div",
    { className: "oab-scroll" },
    h(
      "table",
      { className: "oab-table" },
      h("caption", { className: "oab-hidden" }, "Batches, newest first"),
      h("thead", null, h("tr", null, COLUMNS.map(([name, , kind]) => h("th", { key: name, scope: "col", className: kind }, name)))),
      h(
        "tbody",
        null,
        batches.map((batch) =>
          h(
            "tr",
            { key: batch.id },
            COLUMNS.map(([name, Cell, kind]) => h("td", { key: name, className: kind }, h(Cell, { batch, open }))),
          ),
        ),
      ),
    ),
  );
}

function Name({ batch, open }) {
  return h(
    "button",
    { type: "button", className: "oab-link oab-mono", onClick: () => open(batch.id), title: batch.id, "aria-haspopup": "dialog" },
    h(Foreign, { text: batch.id, className: "oab-line oab-id" }),
  );
}

function Arrival({ batch }) {
  if (hasEnded(batch)) {
    const took = batch.ended_at && duration(batch.ended_at - batch.created_at);
    return h("span", { className: "oab-muted" }, took ? `took ${took}` : UNKNOWN);
  }
  return batch.eta_s === null ? UNKNOWN : `in ${duration(batch.eta_s)}`;
}

function Model({ batch }) {
  return h(
    Fragment,
    null,
    h(Foreign, { text: batch.model ?? UNKNOWN, title: batch.model, className: "oab-line" }),
    h(Foreign, { text: batch.endpoint, className: "oab-line oab-small oab-muted" }),
  );
}

function Tokens({ usage }) {
  if (!usage) return UNKNOWN;
  const { input_tokens, output_tokens } = usage;
  return h("span", { title: `${count(input_tokens)} in, ${count(output_tokens)} out` }, compact(input_tokens + output_tokens));
}
