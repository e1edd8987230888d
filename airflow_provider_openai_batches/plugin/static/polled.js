// Data that is fetched again and again while somebody looks at it.

import { useEffect, useRef, useState } from "./host.js";
import { ApiError } from "./api.js";

export const REFRESH_MS = 10_000;
const LONGEST_PAUSE_MS = 80_000;
const TIMEOUT_MS = 60_000;
const HOPELESS = new Set(["unauthenticated", "forbidden"]); // asking again helps no one

/**
 * Keeps `load(signal)`'s answer fresh: one request at a time, none while the tab is hidden, one at once when it shows
 * again, and longer pauses while requests fail. What arrives after the key changed is thrown away.
 *
 * key: what the data are of; another key is other data
 * isFinal(data): whether this answer will not change any more, so that asking stops
 * returns {data, error, at, stale, refresh}: the last good answer, what went wrong after it, when it came (ms), whether
 *   it still is of the key before, and a function that asks at once
 */
export function usePolled(key, load, { isFinal = () => false } = {}) {
  const [state, setState] = useState({ key, data: null, error: null, at: null });
  const latest = useRef({});
  latest.current = { load, isFinal };
  const refresh = useRef(() => {});

  useEffect(() => {
    let current = null; // the only request whose answer counts
    let timer = null;
    let failures = 0;
    let over = false;

    function ask() {
      clearTimeout(timer);
      current?.abort();
      const controller = (current = new AbortController());
      const timeout = setTimeout(
        () => controller.abort(new ApiError("unreachable", "Airflow took longer than a minute to answer.")),
        TIMEOUT_MS,
      );
      const settle = (react) => (outcome) => {
        clearTimeout(timeout);
        if (controller !== current) return;
        current = null;
        react(outcome);
        if (!over && !document.hidden) timer = setTimeout(ask, Math.min(REFRESH_MS * 2 ** failures, LONGEST_PAUSE_MS));
      };
      latest.current.load(controller.signal).then(settle(onData), settle(onError));
    }

    function onData(data) {
      failures = 0;
      over = latest.current.isFinal(data);
      setState({ key, data, error: null, at: Date.now() });
    }

    function onError(error) {
      failures += 1;
      over = HOPELESS.has(error.code);
      setState((last) => ({ ...(last.key === key ? last : { data: null, at: null }), key, error }));
    }

    function onVisibilityChange() {
      clearTimeout(timer);
      if (!document.hidden && !over && current === null) ask();
    }

    refresh.current = ask;
    document.addEventListener("visibilitychange", onVisibilityChange);
    ask();
    return () => {
      document.removeEventListener("visibilitychange", onVisibilityChange);
      clearTimeout(timer);
      const last = current;
      current = null;
      last?.abort();
    };
  }, [key]);

  const stale = state.key !== key;
  return { ...state, error: stale ? null : state.error, stale, refresh: () => refresh.current() };
}

/** The value, once it has not changed for a while. */
export function useDebounced(value, pause_ms = 350) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), pause_ms);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}
