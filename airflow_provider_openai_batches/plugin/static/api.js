// The page's calls to its backend, and what can go wrong with them.

import { API_URL } from "./host.js";

export const ACTIVE_STATUSES = ["validating", "in_progress", "finalizing", "cancelling"];
export const ENDED_STATUSES = ["completed", "failed", "expired", "cancelled"];

/** A call that failed. `code` is the backend's, or one of `unreachable`, `unauthenticated`, `forbidden`, `broken`. */
export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** The connections whose batches the user may see: `{connections, default}`. */
export const listConnections = (signal) => call("connections", { signal });

/** One page of batches, newest first. `status` may be "active". */
export function listBatches({ conn_id, cursor, dag_id, status, text }, signal) {
  const statuses = status === "active" ? ACTIVE_STATUSES : [status];
  return call("batches", { query: { conn_id, cursor, dag_id, status: statuses, text }, signal });
}

/** All of one batch. An id that is several parts of an address, or none, would ask for something else. */
export async function getBatch(id, conn_id, signal) {
  if (/[/\\]|^\.{1,2}$/.test(id)) throw new ApiError("not_found", "This is no id of a batch.");
  return call(batchPath(id), { query: { conn_id }, signal });
}

/** The first rows of the results. */
export const previewResults = (id, conn_id, signal) => call(`${batchPath(id)}/preview`, { query: { conn_id }, signal });

export const cancelBatch = (id, conn_id) => call(`${batchPath(id)}/cancel`, { method: "POST", query: { conn_id } });

export const deleteFiles = (id, conn_id) => call(`${batchPath(id)}/delete-files`, { method: "POST", query: { conn_id } });

/** The job of a task instance. */
export const getJob = (dag_id, run_id, task_id, map_index, signal) =>
  call("job", { query: { dag_id, run_id, task_id, map_index }, signal });

const batchPath = (id) => `batches/${encodeURIComponent(id)}`;

async function call(path, { method = "GET", query = {}, signal } = {}) {
  const url = new URL(path, API_URL);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== undefined && one !== "") url.searchParams.append(name, one);
  }
  let answer;
  try {
    answer = await fetch(url, { method, signal, credentials: "same-origin", headers: { Accept: "application/json" } });
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new ApiError("unreachable", "Airflow's API server does not answer. The page tries again by itself.");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  throw asError(answer.status, body?.detail);
}

function asError(status, detail) {
  if (status === 401) return new ApiError("unauthenticated", "Your Airflow session has ended. Sign in again.");
  if (detail?.code) return new ApiError(detail.code, detail.message ?? "");
  if (status === 403) return new ApiError("forbidden", "Your Airflow user may not do this. Ask an administrator for access.");
  const words = typeof detail === "string" ? detail : "Airflow's API server log says more.";
  return new ApiError("broken", `The answer was ${status}. ${words}`);
}
