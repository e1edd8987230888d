// Which batches to show. What was chosen stands in the page's address.

import { Fragment, h, useEffect, useId, useRef, useState } from "./host.js";
import { ACTIVE_STATUSES, ENDED_STATUSES } from "./api.js";
import { useDebounced } from "./polled.js";
import { words } from "./widgets.js";

export const filtersOf = ({ dag_id = "", status = "", text = "" }) => ({ dag_id, status, text });

/** `seen`: batches whose DAGs are suggested; `onChange({name: value})`: a filter has a new value. */
export function Filters({ query, seen, onChange }) {
  const { dag_id, status, text } = filtersOf(query);
  const dags = [...new Set(seen.map((batch) => batch.made_by?.dag_id).filter(Boolean))].sort();
  const list = useId();
  return h(
    Fragment,
    null,
    h(TypedFilter, {
      label: "Search",
      type: "search",
      placeholder: "Search id, metadata, model, task …",
      className: "oab-input oab-wide",
      value: text,
      onSettled: (value) => onChange({ text: value }),
    }),
    h(TypedFilter, {
      label: "DAG",
      type: "search",
      placeholder: "All DAGs",
      className: "oab-input",
      list,
      value: dag_id,
      onSettled: (value) => onChange({ dag_id: value }),
    }),
    h("datalist", { id: list }, dags.map((dag) => h("option", { key: dag, value: dag }))),
    h(
      "select",
      {
        className: "oab-input",
        "aria-label": "Status",
        value: status,
        onChange: (event) => onChange({ status: event.target.value }),
      },
      h("option", { value: "" }, "All statuses"),
      h("option", { value: "active" }, "active (not ended)"),
      [...ACTIVE_STATUSES, ...ENDED_STATUSES].map((one) => h("option", { key: one, value: one }, words(one))),
    ),
  );
}

function TypedFilter({ label, value, onSettled, ...rest }) {
  const [typed, setTyped] = useState(value);
  const settled = useDebounced(typed.trim());
  const reported = useRef(value);
  useEffect(() => {
    if (settled === reported.current) return;
    reported.current = settled;
    onSettled(settled);
  }, [settled]);
  useEffect(() => {
    if (value === reported.current) return; // our own news comes back
    reported.current = value;
    setTyped(value);
  }, [value]);
  return h("input", { "aria-label": label, value: typed, onChange: (event) => setTyped(event.target.value), ...rest });
}
