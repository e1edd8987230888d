// Numbers, times and money as people read them. Unknown is always a dash.

import { timezone } from "./host.js";

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
export const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? whole.format(value) : UNKNOWN);
export const compact = (value) => (known(value) ? short.format(value) : UNKNOWN);

export const batches = (value) => `${count(value)} batch${value === 1 ? "" : "es"}`;

/** US dollars; fractions of a cent are shown, because batches of ten rows cost that. Only what costs nothing is $0. */
export function money(usd) {
  if (!known(usd)) return UNKNOWN;
  if (usd === 0) return "$0";
  if (usd > 0 && usd < 0.0001) return "< $0.0001";
  const digits = Math.abs(usd) < 0.1 ? 4 : 2;
  return `$${usd.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

export function bytes(size) {
  if (!known(size)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(size, 1)) / 3), units.length - 1);
  return `${(size / 1000 ** power).toLocaleString("en-US", { maximumFractionDigits: power ? 1 : 0 })} ${units[power]}`;
}

/** The two largest units of a time span: "45 s", "12 min", "3 h 20 min", "2 d 4 h". */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 60) return `${minutes} min`;
  const [hours, days] = [Math.floor(minutes / 60), Math.floor(minutes / 1440)];
  if (days === 0) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** Date and time to the second, in the time zone of Airflow's UI. */
export function moment(unix_s) {
  if (!known(unix_s)) return UNKNOWN;
  return format(unix_s, { dateStyle: "medium", timeStyle: "medium" });
}

export const clock = (unix_s) => format(unix_s, { timeStyle: "medium" });

function format(unix_s, options) {
  const date = new Date(unix_s * 1000);
  try {
    return date.toLocaleString("en-GB", { ...options, timeZone: timezone() });
  } catch {
    return date.toLocaleString("en-GB", options); // a time zone this browser does not know
  }
}

/** A time as a machine reads it, for `<time datetime>`. */
export const iso = (unix_s) => new Date(unix_s * 1000).toISOString();

export const now = () => Date.now() / 1000;
