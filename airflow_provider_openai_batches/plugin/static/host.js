// What the page takes from Airflow: its React, its router, its theme's name for things. There is no build step.

const { React, ReactRouterDOM } = globalThis;

export const { createElement: h, Fragment, useEffect, useId, useLayoutEffect, useRef, useState } = React;
const { useSyncExternalStore } = React;
const { Link, useLocation } = ReactRouterDOM;

const TIMEZONE_KEY = "timezone"; // where Airflow's UI keeps the time zone that the user chose

// This file is <Airflow>/openai-batches/static/host.js, wherever [api] base_url has put Airflow.
export const AIRFLOW_URL = new URL("../../", import.meta.url);
export const API_URL = new URL("../api/", import.meta.url);
export const PAGE_PATH = "plugin/openai-batches";

/** The time zone in which the rest of the UI shows times; undefined: the browser's. */
export function timezone() {
  try {
    return JSON.parse(localStorage.getItem(TIMEZONE_KEY)) || undefined;
  } catch {
    return undefined; // storage is switched off, or somebody else wrote there
  }
}

/** Adds the page's style sheet to the document, once; settles when it is there, or cannot be had. */
export function loadStyles() {
  const href = new URL("style.css", import.meta.url).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return undefined;
  return new Promise((settle) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
    link.onload = link.onerror = settle;
    document.head.append(link);
  });
}

/**
 * A link to a place in Airflow's UI, followed without loading the UI anew.
 *
 * `to`: a path of the UI, with or without the path under which Airflow is served
 */
export function AirflowLink({ to, children, ...rest }) {
  const root = AIRFLOW_URL.pathname;
  const path = to.startsWith(root) ? to.slice(root.length) : to.replace(/^\/+/, "");
  return h(Link, { to: `/${path}`, ...rest }, children);
}

/** A link to another site in a tab of its own; mere text if the address is not one a browser should follow. */
export function ExternalLink({ href, children }) {
  if (!/^https?:\/\//i.test(href)) return children;
  return h("a", { href, target: "_blank", rel: "noopener noreferrer" }, children, h("span", { "aria-hidden": true }, " ↗"));
}

/**
 * The page's state that a link carries: `[query, change]`, where `change({name: value})` replaces members and drops
 * empty ones. A change with `{push: true}` is undone by the browser's Back.
 *
 * It goes around Airflow's router, which would mount the whole page anew and take the focus away.
 */
export function useQuery() {
  useLocation(); // when the router does go somewhere, look again
  const search = useSyncExternalStore(subscribe, () => location.search);
  return [Object.fromEntries(new URLSearchParams(search)), changeQuery];
}

const listeners = new Set();

function subscribe(listener) {
  listeners.add(listener);
  window.addEventListener("popstate", listener);
  return () => {
    listeners.delete(listener);
    window.removeEventListener("popstate", listener);
  };
}

function changeQuery(changes, { push = false } = {}) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  if (push) {
    // The router numbers its entries, and names them.
    const state = { ...history.state, key: Math.random().toString(36).slice(2, 10), idx: (history.state?.idx ?? 0) + 1 };
    history.pushState(state, "", url);
  } else history.replaceState(history.state, "", url);
  for (const listener of listeners) listener();
}
