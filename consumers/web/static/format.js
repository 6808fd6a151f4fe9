// Numbers, sizes and times as a reader wants them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);

export const brief = (value) => (value < 10000 ? whole.format(value) : short.format(value));

export function rate(value) {
  if (value > 0 && value < 10) return `${value.toFixed(1)}/s`;
  return `${brief(value)}/s`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "unknown";
  for (const [unit, factor] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= factor) return `${(bytes / factor).toFixed(bytes < 10 * factor ? 1 : 0)} ${unit}`;
  }
  return `${whole.format(bytes)} bytes`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.round(hours / 24)} days`;
}

export function percent(part, total) {
  if (!total) return "";
  // Never 100 % before the end.
  const value = Math.floor((1000 * part) / total) / 10;
  return `${value.toFixed(1)} %`;
}

export const moment = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
