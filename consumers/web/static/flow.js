// The picture of what flows where: databases, topics, migrations, with the numbers of this second.

import { drawn, show, write } from "./elements.js";
import { brief, duration, rate } from "./format.js";
import { byUrgency, keyOf, kind, label, progressOf } from "./states.js";

const WIDTH = 1120;
const COLUMNS = [{ x: 0, width: 240 }, { x: 400, width: 320 }, { x: 880, width: 240 }];
const NODE = 46;
const GAP = 14;
const TOP = 26;
const MOST = 12;
const SLOTS = { reserved: "good", extended: "good" };

const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

export class Flow {
  constructor(parent, leftOut) {
    this.parent = parent;
    this.leftOut = leftOut;
    this.drawn = "";
  }

  show(snapshot) {
    const migrations = snapshot.migrations.filter((one) => one.partitions.length).sort(byUrgency);
    const shownMigrations = migrations.slice(0, MOST);
    const used = new Set(shownMigrations.flatMap((one) => one.partitions.map((each) => each.topic)));
    const topics = snapshot.topics.filter((one) => used.has(one.name)).slice(0, MOST);
    const names = new Set(topics.flatMap((one) => one.sources));
    const sources = snapshot.sources.filter((one) => names.has(one.name)).slice(0, MOST);
    const more = migrations.length - shownMigrations.length;
    show(this.leftOut, more > 0);
    write(this.leftOut, `Drawn are ${MOST} of ${migrations.length} migrations, and what they read; the cards have all.`);
    const nodes = [
      sources.map((one) => ({
        key: one.name, text: one.name, look: SLOTS[one.slot_status] ?? (one.slot_status === null ? "idle" : "bad"),
        small: one.lag_seconds === null ? "lag unknown" : `${duration(one.lag_seconds)} behind`,
      })),
      topics.map((one) => ({ key: one.name, text: one.name, look: one.rate > 0 ? "busy" : "good", small: `${brief(one.events)} events · ${rate(one.rate)} in` })),
      shownMigrations.map((one) => ({
        key: keyOf(one), text: `${one.name} → ${one.database}`, look: kind(one.state),
        small: `${label(one.state)} · ${rate(one.rate)} · lag ${brief(progressOf(one).lag)}`,
      })),
    ];
    const edges = [
      ...topics.flatMap((one) => one.sources.filter((name) => names.has(name)).map((name) => ({ from: [0, name], to: [1, one.name], flows: one.rate > 0 }))),
      ...shownMigrations.flatMap((one) =>
        [...new Set(one.partitions.map((each) => each.topic))].map((topic) => ({ from: [1, topic], to: [2, keyOf(one)], flows: one.rate > 0 }))),
    ];
    const next = JSON.stringify([nodes, edges]);
    if (next === this.drawn) return; // the same picture: the animation continues undisturbed
    this.drawn = next;
    this.parent.replaceChildren(picture(nodes, edges));
  }
}

function picture(nodes, edges) {
  const rows = Math.max(1, ...nodes.map((column) => column.length));
  const height = TOP + rows * (NODE + GAP);
  const places = new Map();
  const boxes = nodes.flatMap((column, index) => {
    const { x, width } = COLUMNS[index];
    const first = TOP + ((rows - column.length) * (NODE + GAP)) / 2;
    return column.map((one, row) => {
      const y = first + row * (NODE + GAP);
      places.set(`${index} ${one.key}`, { left: x, right: x + width, middle: y + NODE / 2 });
      const length = Math.floor(width / 7.6);
      return drawn(
        "g", { class: "node", "data-kind": one.look },
        drawn("title", {}, `${one.text}: ${one.small}`),
        drawn("rect", { x, y, width, height: NODE, rx: 9 }),
        drawn("text", { x: x + 12, y: y + 19 }, cut(one.text, length)),
        drawn("text", { class: "small", x: x + 12, y: y + 36 }, one.small),
      );
    });
  });
  const lines = edges.flatMap(({ from, to, flows }) => {
    const start = places.get(from.join(" "));
    const end = places.get(to.join(" "));
    if (!start || !end) return [];
    const bend = (end.left - start.right) / 2;
    const d = `M${start.right} ${start.middle}C${start.right + bend} ${start.middle} ${end.left - bend} ${end.middle} ${end.left} ${end.middle}`;
    return [drawn("path", { d, "data-flows": flows ? "yes" : "no" })];
  });
  const titles = ["Databases", "Topics", "Migrations"].map((text, index) => drawn("text", { class: "column", x: COLUMNS[index].x, y: 12 }, text));
  const said = nodes.map((column, index) => `${column.length} ${["databases", "topics", "migrations"][index]}`).join(", ");
  return drawn(
    "svg", { viewBox: `-2 0 ${WIDTH + 4} ${height}`, role: "img", "aria-label": `Flow through ${said}; the cards below have the same numbers` },
    ...titles, ...lines, ...boxes,
  );
}
