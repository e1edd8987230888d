// Modal dialogs on the browser's own <dialog>, which keeps the focus inside, closes on Esc and gives the focus back.

import { h, useId, useLayoutEffect, useRef, useState } from "./host.js";
import { Button, Notice } from "./widgets.js";

/** A dialog that is open as long as it is rendered. `onClose` is asked to stop rendering it. */
export function Modal({ onClose, className, children, ...rest }) {
  const dialog = useRef(null);
  useLayoutEffect(() => {
    const element = dialog.current;
    element.showModal();
    return () => element.close();
  }, []);
  return h(
    "dialog",
    {
      ref: dialog,
      className: `oab ${className}`,
      onCancel: (event) => {
        if (event.target !== dialog.current) return;
        event.preventDefault();
        onClose();
      },
      onClose: (event) => event.target === dialog.current && onClose(),
      onClick: (event) => event.target === dialog.current && onClose(), // the backdrop is part of the dialog
      ...rest,
    },
    h("div", { className: "oab-dialog-content" }, children),
  );
}

/**
 * Asks before something is done that cannot be undone, does it, and says so if it fails.
 *
 * title, children: what will happen
 * yes, no: the two answers, as verbs; `no` has the focus first
 * act: does it; the dialog stays until the promise settles
 */
export function Confirm({ title, children, yes, no, act, onClose }) {
  const [pending, setPending] = useState(false);
  const [error, setError] = useState(null);
  const id = useId();

  async function confirm() {
    setPending(true);
    setError(null);
    try {
      await act();
    } catch (problem) {
      setError(problem);
      setPending(false);
    }
  }

  return h(
    Modal,
    {
      onClose: () => pending || onClose(),
      className: "oab-confirm",
      role: "alertdialog",
      "aria-labelledby": `${id}title`,
      "aria-describedby": `${id}text`,
    },
    h("h2", { id: `${id}title` }, title),
    h("div", { id: `${id}text` }, children),
    error && h(Notice, { tone: "bad" }, error.message),
    h(
      "div",
      { className: "oab-row oab-row-end" },
      h(Button, { onClick: onClose, disabled: pending }, no),
      h(Button, { kind: "danger", onClick: confirm, disabled: pending }, pending ? "…" : yes),
    ),
  );
}
