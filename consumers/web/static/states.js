// What each state of a migration looks like, and why it is in that state.

const STATES = {
  waiting: ["waiting", "idle"],
  running: ["running", "busy"],
  paused: ["paused", "warn"],
  throttled: ["throttled", "warn"],
  caught_up: ["caught up", "good"],
  complete: ["complete", "good"],
  given_up: ["given up", "bad"],
  failed: ["failed", "bad"],
};

export const label = (state) => (STATES[state] ?? [state])[0];
export const kind = (state) => (STATES[state] ?? [state, "idle"])[1];

export function why(one) {
  if (one.state === "failed") return [one.failed ?? one.error ?? "It failed.", "bad"];
  if (one.error) return [one.error, "bad"];
  if (one.state === "throttled") return [`Throttled by ${one.throttled_by}`, "warn"];
  if (one.state === "paused") return ["Paused by an operator: its consumers stay in the group and write nothing.", "warn"];
  if (one.state === "given_up") return [`${one.given_up} were given up: see the dead letters.`, "bad"];
  if (one.state === "waiting") {
    if (one.members.length) return ["Its consumers wait for its topics, or for their partitions.", "idle"];
    return [`No consumer is at work: start one with headrace consume ${one.name}`, "idle"];
  }
  return [null, "idle"];
}

export function progressOf(one) {
  let done = 0;
  let total = 0;
  for (const each of one.partitions) {
    total += each.end_offset;
    done += Math.min(each.offset, each.end_offset);
  }
  return { done, total, lag: total - done };
}

const ORDER = ["failed", "given_up", "throttled", "paused", "running", "caught_up", "waiting", "complete"];

export const byUrgency = (one, other) =>
  Number(one.run === 0) - Number(other.run === 0) ||
  ORDER.indexOf(one.state) - ORDER.indexOf(other.state) ||
  one.name.localeCompare(other.name) ||
  one.database.localeCompare(other.database);

export const keyOf = (one) => `${one.database}/${one.name}`;
