// The cards of the sources.

import { Children, element, mark, show, write } from "./elements.js";
import { brief, count, duration, percent, size } from "./format.js";

const STATS = ["Behind", "Not published", "Slot"];
const TROUBLE = ["lost", "missing", "unreserved"];

export class SourceCard {
  constructor(one) {
    this.state = element("span", { class: "pill" });
    this.where = element("p", { class: "muted" });
    this.why = element("p", { class: "why" });
    this.stats = Object.fromEntries(STATS.map((name) => [name, element("dd")]));
    this.retained = element("strong");
    this.bound = element("span", { class: "muted" });
    this.wal = element("progress", { max: "1", value: "0", "aria-label": `WAL retained for ${one.name}, of its bound` });
    this.copied = element("strong");
    this.copying = element("span", { class: "muted" });
    this.snapshot = element("progress", { max: "1", value: "0", "aria-label": `Snapshot of ${one.name}` });
    const list = element("ul", { class: "tables" });
    this.tables = new Children(list, (each) => each.table, tableLine);
    this.list = list;
    this.node = element(
      "article", { class: "card", "data-source": one.name },
      element("header", {}, element("div", {}, element("h3", {}, one.name), this.where), this.state),
      this.why,
      element("dl", { class: "stats" }, ...STATS.map((name) => element("div", {}, element("dt", {}, name), this.stats[name]))),
      element("div", { class: "bar" }, element("p", {}, this.retained, this.bound), this.wal),
      element("div", { class: "bar" }, element("p", {}, this.copied, this.copying), this.snapshot),
      list,
    );
  }

  update(one) {
    const stopped = one.copying.filter((each) => each.stopped);
    const copies = one.copying.length > stopped.length;
    const trouble = TROUBLE.includes(one.slot_status);
    const throttled = copies && one.snapshot_throttled_by !== null;
    const look = trouble || stopped.length ? "bad" : throttled ? "warn" : copies ? "busy" : "good";
    const state = stopped.length ? "tables stopped" : throttled ? "snapshot throttled" : copies ? "copying" : "streaming";
    write(this.state, trouble ? `slot ${one.slot_status}` : state);
    mark(this.state, "data-kind", one.slot_status === null && !trouble ? "idle" : look);
    write(this.where, one.slot ? `slot ${one.slot} · ${one.lsn ?? ""}` : "no slot");
    const reasons = [
      ...(trouble ? [`Its slot is ${one.slot_status}: see headrace check.`] : []),
      ...(one.lost_in_seconds !== null && one.lost_in_seconds < 3600 ? [`The slot is lost in ${duration(one.lost_in_seconds)} unless it is read.`] : []),
      ...(throttled ? [`The snapshot is throttled by ${one.snapshot_throttled_by}; changes are published meanwhile.`] : []),
      ...(one.waits_for.length ? [`The stream waits for ${one.waits_for.join(", ")}`] : []),
    ];
    show(this.why, reasons.length > 0);
    write(this.why, reasons.join(" "));
    mark(this.why, "data-kind", trouble ? "bad" : "warn");
    write(this.stats.Behind, duration(one.lag_seconds));
    write(this.stats["Not published"], size(one.lag_bytes));
    write(this.stats.Slot, one.slot_status ?? "unknown");
    const bound = one.retained_limit_bytes;
    write(this.retained, `${size(one.retained_bytes)} retained`);
    write(this.bound, bound ? `of ${size(bound)}${one.left_bytes !== null ? ` · lost after ${size(one.left_bytes)} more` : ""}` : "");
    mark(this.wal, "max", Math.max(1, bound ?? 1));
    this.wal.value = Math.min(bound ?? 1, one.retained_bytes ?? 0);
    mark(this.wal, "data-kind", bound && one.retained_bytes > bound ? "bad" : bound && one.retained_bytes > 0.8 * bound ? "warn" : "good");
    const found = one.snapshot;
    write(this.copied, copies && found ? `Snapshot ${percent(found.chunks_done, found.chunks)}` : "Snapshots done");
    write(this.copying, [
      `${count(one.tables_done)} of ${count(one.tables)} tables`,
      ...(copies && one.snapshot_eta_seconds !== null ? [`${duration(one.snapshot_eta_seconds)} left`] : []),
      ...(copies && one.snapshot_max_mb_per_second ? [`at most ${one.snapshot_max_mb_per_second} MB/s`] : []),
    ].join(" · "));
    mark(this.snapshot, "max", Math.max(1, copies && found ? found.chunks : 1));
    this.snapshot.value = copies && found ? found.chunks_done : one.tables ? 1 : 0;
    show(this.list, one.copying.length > 0);
    this.tables.show(one.copying);
  }
}

function tableLine(each) {
  const text = element("span", { class: "muted" });
  const bar = element("progress", { max: "1", value: "0", "aria-label": `Snapshot of ${each.table}` });
  const node = element("li", { class: "bar" }, element("p", {}, element("span", {}, each.table), text), bar);
  const update = (now) => {
    write(text, now.stopped ? `stopped: ${now.stopped}` : `${brief(now.rows)} rows · chunk ${count(now.chunks_done)} of ${count(now.chunks)}`);
    mark(bar, "max", Math.max(1, now.chunks));
    bar.value = now.chunks_done;
    mark(bar, "data-kind", now.stopped ? "bad" : "busy");
  };
  return { node, update };
}
