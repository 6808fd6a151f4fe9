// Asks for one snapshot a second while the page is seen, and shows it.

import { read, session, who } from "./api.js";
import { ChangeDialog, LettersDialog, TokenDialog, paceWish, pauseWish, replayWish, told } from "./dialogs.js";
import { Children, byId, element, mark, show, write } from "./elements.js";
import { Flow } from "./flow.js";
import { brief, rate } from "./format.js";
import { History } from "./history.js";
import { MigrationCard } from "./migrations.js";
import { SourceCard } from "./sources.js";
import { byUrgency, keyOf, label } from "./states.js";

const EVERY_MS = 1000;
const HIDDEN_MS = 15000;
const CURVES_MS = 5000;
const SNAPSHOT_MS = 10000;

let latest = null;
let states = new Map();
let timer = null;
let nextCurves = 0;
let asked = false;
let trouble = null;
let version = null;

const announce = (text) => write(byId("announcer"), text);
const token = new TokenDialog(() => {
  identify();
  ask();
});
const changes = new ChangeDialog(token, (text) => {
  announce(text);
  ask();
  history.again();
});
const letters = new LettersDialog(changes);
const actions = {
  pause: (one) => changes.open(pauseWish(one)),
  replay: (one) => changes.open(replayWish(one)),
  pace: (one) => changes.open(paceWish(one)),
  letters: (one) => letters.open(one),
};
const migrations = new Children(byId("migration-cards"), keyOf, (one) => new MigrationCard(one, actions));
const sources = new Children(byId("source-cards"), (one) => one.name, (one) => new SourceCard(one));
const flow = new Flow(byId("flow"), byId("flow-left-out"));
const history = new History(() => [...new Set((latest?.migrations ?? []).map((one) => one.database).filter(Boolean))].sort());

let access = { changes: false, reading_needs_token: false };

async function identify() {
  try {
    access = await session();
  } catch (error) {
    access = { changes: true, reading_needs_token: error.status === 401 };
  }
  const name = who();
  write(byId("identity"), name ? `As ${name}` : access.changes ? "Read-only: give a token" : "Read-only");
  byId("identity").disabled = !access.changes;
  document.body.dataset.changes = access.changes ? "yes" : "no";
}

function problems(texts) {
  const node = byId("problems");
  show(node, texts.length > 0);
  const text = texts.join("\n");
  if (node.dataset.text !== text) {
    node.dataset.text = text;
    node.replaceChildren(...texts.map((each) => element("p", {}, each)));
  }
}

function tell(snapshot) {
  const now = new Map(snapshot.migrations.map((one) => [keyOf(one), one]));
  const changed = [...now.entries()]
    .filter(([key, one]) => states.has(key) && states.get(key) !== one.state)
    .map(([, one]) => `${one.name} is ${label(one.state)}`);
  states = new Map([...now.entries()].map(([key, one]) => [key, one.state]));
  if (changed.length) announce(changed.join(", "));
}

function present(snapshot) {
  latest = snapshot;
  version ??= snapshot.version;
  const updated = version === snapshot.version ? [] : [`The console is of version ${snapshot.version} now: reload this page.`];
  problems([...updated, ...snapshot.problems]);
  write(byId("prefix"), snapshot.prefix === "headrace" ? "" : snapshot.prefix);
  write(byId("version"), snapshot.version);
  const ordered = [...snapshot.migrations].sort(byUrgency);
  migrations.show(ordered);
  sources.show(snapshot.sources);
  show(byId("no-migrations"), ordered.length === 0);
  show(byId("no-sources"), snapshot.sources.length === 0);
  const running = ordered.filter((one) => one.state === "running");
  const total = running.reduce((sum, one) => sum + one.rate, 0);
  const waiting = ordered.reduce((sum, one) => sum + one.dead_letters, 0);
  write(byId("summary"), `${running.length} running · ${rate(total)}${waiting ? ` · ${brief(waiting)} dead letters` : ""}`);
  document.title = waiting ? `(${brief(waiting)}) headrace` : "headrace";
  flow.show(snapshot);
  tell(snapshot);
}

async function curves() {
  if (Date.now() < nextCurves) return;
  nextCurves = Date.now() + CURVES_MS;
  const found = await read("/api/curves");
  for (const [key, card] of migrations.made) card.draw(found.curves[key] ?? [], found.seconds);
}

async function ask() {
  if (asked) return;
  asked = true;
  clearTimeout(timer);
  const operator = who();
  try {
    const snapshot = await read("/api/snapshot", SNAPSHOT_MS);
    // It may have been restarted with other tokens, or without any.
    if (trouble !== null) await identify();
    present(snapshot);
    mark(byId("live"), "data-state", "live");
    write(byId("live"), "live");
    trouble = null;
    await curves();
  } catch (error) {
    mark(byId("live"), "data-state", "away");
    write(byId("live"), error.status === 401 ? "needs a token" : "console does not answer");
    // Asked once: after the dialog is closed it is behind the button.
    if (error.status === 401 && trouble !== 401) {
      await identify();
      if (!byId("token-dialog").open) token.open(null, operator ? told(error) : "");
    }
    trouble = error.status ?? 0;
  }
  asked = false;
  timer = setTimeout(ask, document.hidden ? HIDDEN_MS : EVERY_MS);
}

byId("identity").addEventListener("click", () => token.open());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});
await identify();
await ask();
