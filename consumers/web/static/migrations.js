// The cards of the migrations.

import { Curve } from "./curve.js";
import { Children, element, mark, show, write } from "./elements.js";
import { brief, count, duration, moment, percent, rate } from "./format.js";
import { kind, label, progressOf, why } from "./states.js";

const STATS = ["Rate", "Time left", "Lag", "Changed", "Skipped", "Consumers"];

export class MigrationCard {
  constructor(one, actions) {
    this.one = one;
    this.title = element("h3", {}, one.name);
    this.where = element("p", { class: "muted" });
    this.state = element("span", { class: "pill" });
    this.why = element("p", { class: "why" });
    this.bar = element("progress", { max: "1", value: "0", "aria-label": `Progress of ${one.name}` });
    this.done = element("strong");
    this.events = element("span", { class: "muted" });
    this.curve = new Curve();
    this.stats = Object.fromEntries(STATS.map((name) => [name, element("dd")]));
    this.pause = this.button("Pause", () => actions.pause(this.one));
    this.replay = this.button("Replay…", () => actions.replay(this.one));
    this.pace = this.button("Pace…", () => actions.pace(this.one));
    this.letters = this.button("Dead letters", () => actions.letters(this.one));
    this.paceText = element("p", { class: "muted pace" });
    this.verified = element("p", { class: "muted pace" });
    const rows = element("tbody");
    this.partitions = new Children(rows, (each) => `${each.topic}/${each.partition}`, partitionRow);
    this.reasons = element("p", { class: "muted" });
    this.node = element(
      "article",
      { class: "card", "data-migration": one.name, "data-database": one.database },
      element("header", {}, element("div", {}, this.title, this.where), this.state),
      this.why,
      element("div", { class: "bar" }, element("p", {}, this.done, this.events), this.bar),
      this.curve.node,
      element("dl", { class: "stats" }, ...STATS.map((name) => element("div", {}, element("dt", {}, name), this.stats[name]))),
      this.paceText,
      this.verified,
      element("div", { class: "actions" }, this.pause, this.replay, this.pace, this.letters),
      element(
        "details", {},
        element("summary", {}, "Partitions and consumers"),
        this.reasons,
        element(
          "div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Partitions of ${one.name}` },
          element(
            "table", {},
            element("thead", {}, element(
              "tr", {},
              element("th", { scope: "col" }, "Partition"), element("th", { scope: "col", class: "number" }, "Offset"),
              element("th", { scope: "col", class: "number" }, "Lag"), element("th", { scope: "col" }, "Consumer"),
            )),
            rows,
          ),
        ),
      ),
    );
  }

  button(text, act) {
    return element("button", { type: "button", onclick: act, "aria-label": `${text.replace("…", "")} ${this.one.name}` }, text);
  }

  update(one) {
    this.one = one;
    const { done, total, lag } = progressOf(one);
    const look = kind(one.state);
    write(this.where, one.database ? `${one.database} · ${one.run ? `run ${one.run}` : "never ran"}` : "");
    write(this.state, label(one.state));
    mark(this.state, "data-kind", look);
    const [reason, tone] = why(one);
    show(this.why, reason !== null);
    write(this.why, reason ?? "");
    mark(this.why, "data-kind", tone);
    const complete = one.state === "complete" || (total > 0 && lag === 0);
    mark(this.bar, "max", Math.max(1, total));
    this.bar.value = complete ? Math.max(1, total) : done;
    mark(this.bar, "data-kind", look);
    write(this.done, complete ? "100 %" : percent(done, total) || "no events yet");
    write(this.events, total ? `${count(done)} of ${count(total)} events` : "");
    write(this.stats.Rate, rate(one.rate));
    write(this.stats["Time left"], lag === 0 && total ? "none" : duration(one.eta_seconds));
    write(this.stats.Lag, `${brief(lag)} events`);
    write(this.stats.Changed, `${brief(one.applied)} rows`);
    write(this.stats.Skipped, `${brief(one.skipped)} events`);
    write(this.stats.Consumers, String(one.members.length));
    write(this.paceText, `${one.max_rate ? `At most ${brief(one.max_rate)} rows/s` : "No rate limit"} for each consumer, transactions of ${one.transaction_ms} ms`);
    show(this.verified, one.verified !== null);
    if (one.verified) write(this.verified, `${count(one.verified.remaining)} rows were left when counted, ${moment(one.verified.at)}`);
    const paused = one.paused || one.state === "failed";
    write(this.pause, paused ? "Resume" : "Pause");
    mark(this.pause, "aria-label", `${paused ? "Resume" : "Pause"} ${one.name}`);
    const letters = one.dead_letters + one.given_up;
    write(this.letters, letters ? `Dead letters (${brief(letters)})` : "Dead letters");
    this.letters.classList.toggle("danger", letters > 0);
    mark(this.letters, "aria-label", `${letters} dead letters of ${one.name}`);
    const reasons = Object.entries(one.skip_reasons).map(([text, number]) => `${text}: ${count(number)}`);
    write(this.reasons, reasons.length ? `Skipped: ${reasons.join("; ")}` : "");
    this.partitions.show(one.partitions);
    const changes = document.body.dataset.changes === "yes";
    this.letters.disabled = !one.database;
    for (const each of [this.pause, this.replay, this.pace]) {
      each.disabled = !one.database || !changes;
      mark(each, "title", changes ? null : "The console is read-only: no token is configured");
    }
  }

  draw(values, seconds) {
    this.curve.show(values, seconds);
  }
}

function partitionRow(each) {
  const offset = element("td", { class: "number" });
  const lag = element("td", { class: "number" });
  const consumer = element("td");
  const node = element("tr", {}, element("td", {}, `${each.topic}/${each.partition}`), offset, lag, consumer);
  const update = (now) => {
    write(offset, count(now.offset));
    write(lag, count(Math.max(0, now.end_offset - now.offset)));
    write(consumer, now.consumer ?? "none yet");
  };
  return { node, update };
}
