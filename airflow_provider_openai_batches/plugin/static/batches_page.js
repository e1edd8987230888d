// The page "OpenAI Batches": choose a connection, see its batches, open one.

import { AirflowLink, Fragment, h, useEffect, useQuery, useState } from "./host.js";
import { listBatches, listConnections } from "./api.js";
import { BatchDetail } from "./batch_detail.js";
import { BatchTable } from "./batch_table.js";
import { Filters, filtersOf } from "./filters.js";
import { batches, clock } from "./format.js";
import { usePolled } from "./polled.js";
import { Button, Empty, Failure, Icon, Skeleton, StaleNotice } from "./widgets.js";

export function BatchesPage() {
  const [query, change] = useQuery();
  const connections = usePolled("connections", listConnections, { isFinal: () => true });
  const chosen = query.conn_id ?? connections.data?.default ?? connections.data?.connections[0]?.conn_id;

  let content;
  if (chosen) content = h(ConnectionBatches, { key: chosen, conn_id: chosen, query, change });
  else if (connections.error) content = h(Failure, { error: connections.error, onRetry: connections.refresh });
  else if (connections.data) content = h(NoConnection, { onChoose: (conn_id) => change({ conn_id }) });
  else content = h(Skeleton, { label: "Loading the connections" });

  const choose = (conn_id) => change({ conn_id, cursor: null, batch: null }, { push: true });
  return h(
    "main",
    { className: "oab oab-page" },
    h(
      "header",
      { className: "oab-row" },
      h("h1", null, "OpenAI Batches"),
      chosen && h(ConnectionChoice, { chosen, known: connections.data?.connections ?? [], onChoose: choose }),
    ),
    content,
  );
}

function ConnectionChoice({ chosen, known, onChoose }) {
  // One from an environment variable or a secrets backend is not listed, but may well be in the link.
  const ids = [...new Set([...known.map((connection) => connection.conn_id), chosen])];
  return h(
    "label",
    { className: "oab-row oab-push" },
    h("span", { className: "oab-small oab-muted" }, "Connection"),
    h(
      "select",
      { className: "oab-input", value: chosen, onChange: (event) => onChoose(event.target.value) },
      ids.map((id) => h("option", { key: id, value: id }, id)),
    ),
  );
}

function NoConnection({ onChoose }) {
  const [conn_id, setId] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (conn_id.trim()) onChoose(conn_id.trim());
  };
  return h(
    Empty,
    {
      icon: "plug",
      title: "No connection to OpenAI",
      action: h(AirflowLink, { to: "connections", className: "oab-button oab-button-primary" }, "Go to connections"),
    },
    h(
      "p",
      null,
      "There is none yet, or none that you may see. Add one of type openai_batches: ",
      "its password is the API key, the rest may stay empty.",
    ),
    h(
      "form",
      { onSubmit: submit, className: "oab-row oab-center" },
      h("label", { htmlFor: "oab-conn-id" }, "Is it in an environment variable or a secrets backend? Its id:"),
      h("input", { id: "oab-conn-id", className: "oab-input", value: conn_id, onChange: (event) => setId(event.target.value) }),
      h(Button, { type: "submit" }, "Use it"),
    ),
  );
}

function ConnectionBatches({ conn_id, query, change }) {
  const filters = filtersOf(query);
  const wanted = { conn_id, cursor: query.cursor, ...filters };
  const page = usePolled(JSON.stringify(wanted), (signal) => listBatches(wanted, signal));
  const [scans, setScans] = useState({}); // cursor -> how many batches the pages before it have scanned
  const filtered = Object.values(filters).some(Boolean);
  const scanned = (scans[query.cursor] ?? 0) + (page.data?.scanned ?? 0);
  const goOn = () => {
    setScans({ ...scans, [page.data.next_cursor]: scanned });
    change({ cursor: page.data.next_cursor }, { push: true });
  };
  const goBack = () => change({ cursor: null }, { push: true });
  const lost = page.error?.code === "bad_cursor"; // an old link, or the connection has another key now
  useEffect(() => {
    if (lost) change({ cursor: null });
  }, [lost]);

  return h(
    Fragment,
    null,
    h(
      "div",
      { className: "oab-row" },
      h(Filters, { query, seen: page.data?.batches ?? [], onChange: (changes) => change({ ...changes, cursor: null }) }),
      h(Freshness, { page }),
    ),
    page.error && page.data && h(StaleNotice, { error: page.error, at: page.at, onRetry: page.refresh }),
    h(Page, {
      page,
      filtered,
      scanned,
      goOn,
      goBack: query.cursor ? goBack : null,
      clear: () => change({ dag_id: null, status: null, text: null, cursor: null }),
      open: (id) => change({ batch: id }, { push: true }),
    }),
    query.batch &&
      h(BatchDetail, {
        key: query.batch,
        id: query.batch,
        conn_id,
        onChange: page.refresh,
        onClose: () => change({ batch: null }),
      }),
  );
}

function Freshness({ page }) {
  return h(
    "div",
    { className: "oab-row oab-push oab-small oab-muted" },
    page.at && !page.stale && h("span", { title: "Every 10 seconds, while this tab is in view." }, `Updated ${clock(page.at / 1000)}`),
    h(Button, { onClick: page.refresh, "aria-label": "Refresh", title: "Refresh" }, h(Icon, { name: "refresh" })),
  );
}

function Page({ page, filtered, scanned, goOn, goBack, clear, open }) {
  if (!page.data) {
    if (page.error) return h(Failure, { error: page.error, onRetry: page.refresh });
    return h(Skeleton, { label: "Loading the batches" });
  }
  const more = page.data.next_cursor !== null;
  const found = page.data.batches.length > 0;
  if (page.stale && !found) return h(Skeleton, { label: "Looking for batches" });
  const buttons = [
    goBack && h(Button, { key: "back", onClick: goBack }, "Back to newest"),
    more && h(Button, { key: "on", onClick: goOn, disabled: page.stale }, filtered || !found ? "Continue search" : "Next"),
  ].filter(Boolean);
  if (!found && (filtered || more)) return h(NoMatch, { scanned, more, buttons, clear: filtered && clear });
  if (!found) return h(NoBatches, { first: !goBack, buttons });
  return h(
    "section",
    { "aria-busy": page.stale, className: page.stale ? "oab-stale" : undefined, "aria-label": "Batches" },
    h(BatchTable, { batches: page.data.batches, open }),
    h(
      "footer",
      { className: "oab-row oab-footer" },
      filtered && h("span", { className: "oab-small oab-muted" }, `${batches(scanned)} scanned`),
      h("div", { className: "oab-row oab-push" }, buttons),
    ),
  );
}

function NoMatch({ scanned, more, buttons, clear }) {
  const text = more
    ? "None of them is what you look for. Older ones have not been looked at."
    : "None of them is what you look for, and there are no older ones.";
  return h(
    Empty,
    {
      icon: "search",
      title: `Scanned ${batches(scanned)}`,
      action: [...buttons, clear && h(Button, { key: "clear", onClick: clear }, "Clear filters")],
    },
    text,
  );
}

function NoBatches({ first, buttons }) {
  if (!first) return h(Empty, { title: "No older batches", action: buttons }, "This is the end of the list.");
  return h(
    Empty,
    { title: "No batches yet" },
    "Batches of this connection's project appear here as soon as a task, or anybody with the key, makes one.",
  );
}
