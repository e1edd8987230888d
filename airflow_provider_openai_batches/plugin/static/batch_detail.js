// All there is to know of one batch, in a panel over the list, and what can be done to it.

import { ExternalLink, Fragment, h, useId, useState } from "./host.js";
import { ENDED_STATUSES, cancelBatch, deleteFiles, getBatch } from "./api.js";
import { Confirm, Modal } from "./dialog.js";
import { Errors, Files, Metadata, Preview, Timeline, hasRows } from "./detail_parts.js";
import { Age, Button, Empty, Facts, Failure, Foreign, Icon, Maker, Notice, ProgressBar, RiskFlag, Skeleton } from "./widgets.js";
import { StaleNotice, StatusBadge, hasEnded, tokenFacts } from "./widgets.js";
import { count, duration, money } from "./format.js";
import { usePolled } from "./polled.js";

const CANCELLABLE = ["validating", "in_progress", "finalizing"];

/** `onChange()`: the batch was changed by the user; `onClose()`: the user is done with it. */
export function BatchDetail({ id, conn_id, onChange, onClose }) {
  const detail = usePolled(id, (signal) => getBatch(id, conn_id, signal), { isFinal: hasEnded });
  const title = useId();
  const refresh = () => {
    detail.refresh();
    onChange();
  };
  let content;
  if (detail.data) {
    content = h(
      Fragment,
      null,
      detail.error && h(StaleNotice, { error: detail.error, at: detail.at, onRetry: detail.refresh }),
      h(Batch, { batch: detail.data, conn_id, refresh }),
    );
  } else if (detail.error?.code === "not_found") content = h(NotFound, { conn_id });
  else if (detail.error) content = h(Failure, { error: detail.error, onRetry: detail.refresh });
  else content = h(Skeleton, { label: "Loading the batch" });

  return h(
    Modal,
    { onClose, className: "oab-drawer", "aria-labelledby": title },
    h(
      "header",
      { className: "oab-row oab-drawer-head" },
      h("h2", { id: title, className: "oab-mono" }, h(Foreign, { text: id })),
      h(Button, { kind: "ghost", onClick: onClose, "aria-label": "Close", title: "Close" }, h(Icon, { name: "close" })),
    ),
    content,
  );
}

function NotFound({ conn_id }) {
  return h(
    Empty,
    { icon: "search", title: "There is no such batch" },
    `The project behind the connection ${conn_id} does not have it. A batch can be seen only with a key of its own project.`,
  );
}

function Batch({ batch, conn_id, refresh }) {
  return h(
    Fragment,
    null,
    h("div", { className: "oab-row" }, h(StatusBadge, batch), batch.at_risk && h(RiskFlag), h(Actions, { batch, conn_id, refresh })),
    h(ProgressBar, { ...batch, label: "Progress" }),
    h(Facts, {
      entries: [
        ["Made by", h(Maker, { batch }), true],
        ["Age", h(Age, { at: batch.created_at })],
        ["Done in", !hasEnded(batch) && batch.eta_s !== null && duration(batch.eta_s)],
        ["Took", batch.ended_at && duration(batch.ended_at - batch.created_at)],
        ["Model", batch.model && h(Foreign, { text: batch.model })],
        ["Endpoint", batch.endpoint && h(Foreign, { text: batch.endpoint })],
        ...tokenFacts(batch.usage),
        ["Cost", batch.cost_usd !== null && money(batch.cost_usd)],
        ["At OpenAI", batch.dashboard_url && h(ExternalLink, { href: batch.dashboard_url }, "Open the dashboard")],
      ],
    }),
    h(Errors, batch),
    h(Timeline, { batch }),
    hasRows(batch) && h(Preview, { batch, conn_id }),
    h(Files, batch),
    h(Metadata, batch),
  );
}

function Actions({ batch, conn_id, refresh }) {
  const [asking, setAsking] = useState(null); // "cancel" or "delete"
  const [said, setSaid] = useState(null);
  const close = () => setAsking(null);
  const act = (work, report) => async () => {
    const answer = await work(batch.id, conn_id);
    setSaid(report(answer));
    close();
    refresh();
  };
  const deletable = hasEnded(batch) ? batch.files.filter((file) => !file.deleted) : [];

  return h(
    Fragment,
    null,
    h(
      "div",
      { className: "oab-row oab-push" },
      batch.can_act &&
        CANCELLABLE.includes(batch.status) &&
        h(Button, { kind: "danger-outline", onClick: () => setAsking("cancel") }, "Cancel batch"),
      batch.can_act &&
        deletable.length > 0 &&
        h(Button, { kind: "danger-outline", onClick: () => setAsking("delete") }, "Delete files"),
    ),
    said && !(said.untilOver && hasEnded(batch)) && h("div", { className: "oab-full" }, h(Notice, { tone: said.tone }, said.text)),
    asking === "cancel" &&
      h(
        Confirm,
        {
          title: "Cancel this batch?",
          yes: "Cancel batch",
          no: "Keep it running",
          act: act(cancelBatch, cancelReport),
          onClose: close,
        },
        h("p", null, "Requests that are done are paid and stay available. The rest will not run."),
        batch.made_by &&
          h(
            "p",
            null,
            batch.job
              ? "Its job sends the rest again, in another batch. To stop the whole job, mark its task as failed."
              : "The task that waits for it goes on with what there is, or fails, as its DAG says.",
          ),
      ),
    asking === "delete" &&
      h(
        Confirm,
        {
          title: `Delete ${deletable.length === 1 ? "one file" : `${deletable.length} files`} at OpenAI?`,
          yes: "Delete files",
          no: "Keep files",
          act: act(deleteFiles, deletionReport),
          onClose: close,
        },
        h("p", null, "Results that nobody has downloaded are lost. This cannot be undone."),
        h("ul", null, deletable.map((file) => h("li", { key: file.id }, `${file.kind}: `, h(Foreign, { text: file.filename ?? file.id })))),
      ),
  );
}

function cancelReport({ status }) {
  if (status === "cancelled") return { tone: "good", text: "The batch is cancelled." };
  if (ENDED_STATUSES.includes(status)) return { tone: "warning", text: `It was too late: the batch is ${status}.` };
  return { tone: "good", text: "OpenAI is cancelling the batch. That can take ten minutes.", untilOver: true };
}

function deletionReport({ deleted, kept }) {
  const text = deleted.length === 1 ? "One file is deleted." : `${count(deleted.length)} files are deleted.`;
  if (kept.length === 0) return { tone: "good", text };
  return { tone: "warning", text: `${text} Kept: ${kept.map(({ id, reason }) => `${id} (${reason})`).join("; ")}` };
}
