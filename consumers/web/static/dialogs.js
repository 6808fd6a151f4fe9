// The dialogs: a token, a confirmed change with its reason, and dead letters.

import { change, enter, forget, read, who } from "./api.js";
import { byId, element, write } from "./elements.js";
import { count, moment } from "./format.js";

const MOST_LISTED = 1000;

export const told = (error) => (error.remedy ? `${error.message}; ${error.remedy}` : error.message);

export class TokenDialog {
  constructor(changed) {
    this.changed = changed;
    this.dialog = byId("token-dialog");
    this.field = byId("token");
    this.refused = byId("token-refused");
    this.then = null;
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.use();
    });
    byId("token-cancel").addEventListener("click", () => this.dialog.close());
    byId("token-forget").addEventListener("click", () => {
      forget();
      this.changed();
      this.dialog.close();
    });
    this.dialog.addEventListener("close", () => {
      this.field.value = "";
      write(this.refused, "");
    });
  }

  // `then` is called once there is a token; `problem` says why one is asked for.
  open(then = null, problem = "") {
    this.then = then;
    write(this.refused, problem);
    this.dialog.showModal();
    this.field.focus();
  }

  async use() {
    try {
      await enter(this.field.value.trim());
    } catch (error) {
      write(this.refused, told(error));
      return;
    }
    this.dialog.close();
    this.changed();
    if (this.then) this.then();
  }
}

export class ChangeDialog {
  constructor(token, announce) {
    this.token = token;
    this.announce = announce;
    this.dialog = byId("change-dialog");
    this.reason = byId("change-reason");
    this.refused = byId("change-refused");
    this.confirm = byId("change-confirm");
    this.wanted = null;
    byId("change-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("change-cancel").addEventListener("click", () => this.dialog.close());
  }

  // `wanted`: title, text, confirm, path, fields (elements), body(), done(answer), and refused() if something follows.
  open(wanted) {
    if (who() === null) {
      this.token.open(() => this.open(wanted));
      return;
    }
    this.wanted = wanted;
    write(byId("change-title"), wanted.title);
    write(byId("change-text"), wanted.text);
    write(byId("change-operator"), who());
    write(this.confirm, wanted.confirm);
    this.confirm.disabled = false;
    write(this.refused, "");
    this.reason.value = "";
    byId("change-fields").replaceChildren(...(wanted.fields ?? []));
    this.dialog.showModal();
    (byId("change-fields").querySelector("input, select") ?? this.reason).focus();
  }

  async send() {
    const wanted = this.wanted;
    this.confirm.disabled = true;
    write(this.refused, "");
    try {
      const answer = await change(wanted.path, { ...wanted.body(), reason: this.reason.value });
      if (this.wanted === wanted) this.dialog.close();
      this.announce(wanted.done(answer));
    } catch (error) {
      if (this.wanted !== wanted) {
        this.announce(told(error)); // the dialog shows another change by now
        return;
      }
      this.confirm.disabled = false;
      if (error.status === 401) this.token.open(() => write(byId("change-operator"), who()), told(error));
      else {
        write(this.refused, told(error));
        wanted.refused?.();
      }
    }
  }
}

const pathOf = (one, what) => `/api/migrations/${encodeURIComponent(one.name)}/${what}`;

function labelled(id, text, field) {
  field.id = id;
  return element("div", {}, element("label", { for: id }, text), field);
}

export function pauseWish(one) {
  const paused = one.paused || one.state === "failed";
  return {
    title: `${paused ? "Resume" : "Pause"} ${one.name}`,
    text: paused
      ? "Its consumers continue within a second. A recorded failure is cleared."
      : "Its consumers finish their transaction, stay in the group and write nothing until you resume it.",
    confirm: paused ? "Resume" : "Pause",
    path: pathOf(one, paused ? "resume" : "pause"),
    body: () => ({ database: one.database }),
    done: () => `${one.name} is ${paused ? "resumed" : "paused"}`,
  };
}

export function replayWish(one) {
  const start = element("input", { type: "text", value: "beginning", spellcheck: "false", "aria-describedby": "replay-forms" });
  return {
    title: `Replay ${one.name}`,
    text: "A new run reads the topics again; rows that are already up to date stay untouched. Stop its consumers first: it is refused while they are alive.",
    confirm: "Start a new run",
    path: pathOf(one, "replay"),
    fields: [
      labelled("replay-start", "From", start),
      element("p", { class: "muted", id: "replay-forms" }, "beginning, timestamp:2026-01-31T12:00:00Z or lsn:16/B374D848"),
    ],
    body: () => ({ database: one.database, start: start.value.trim() }),
    done: (answer) => `${one.name} is at run ${answer.run}`,
  };
}

export function paceWish(one) {
  const most = element("input", { type: "number", min: "0", step: "any", value: String(one.max_rate) });
  const time = element("input", { type: "number", min: "1", step: "1", value: String(one.transaction_ms) });
  const value = (field) => (field.value === "" ? null : Number(field.value));
  return {
    title: `Pace of ${one.name}`,
    text: "Running consumers follow within a second, and others when they start. Leave a field empty to return to the settings.",
    confirm: "Change the pace",
    path: pathOf(one, "pace"),
    fields: [
      labelled("pace-rate", "Rows per second of each consumer (0: no limit)", most),
      labelled("pace-time", "Milliseconds of a transaction", time),
    ],
    body: () => ({ database: one.database, max_rate: value(most), transaction_ms: value(time) }),
    done: () => `${one.name} has another pace`,
  };
}

export class LettersDialog {
  constructor(changes) {
    this.changes = changes;
    this.dialog = byId("letters-dialog");
    this.rows = byId("letters-rows");
    this.all = byId("letters-all");
    this.refused = byId("letters-refused");
    this.one = null;
    byId("letters-close").addEventListener("click", () => this.dialog.close());
    byId("letters-retry").addEventListener("click", () => this.settle("retry"));
    byId("letters-discard").addEventListener("click", () => this.settle("discard"));
    this.all.addEventListener("change", () => {
      for (const box of this.boxes()) box.checked = this.all.checked;
      this.count();
    });
    this.rows.addEventListener("change", () => this.count());
  }

  boxes() {
    return [...this.rows.querySelectorAll("input")];
  }

  chosen() {
    return this.boxes().filter((box) => box.checked).map((box) => box.value);
  }

  count() {
    const chosen = this.chosen().length;
    byId("letters-retry").disabled = chosen === 0;
    byId("letters-discard").disabled = chosen === 0;
  }

  async open(one) {
    this.one = one;
    write(byId("letters-title"), `Dead letters of ${one.name}`);
    write(byId("letters-text"), "Reading…");
    this.rows.replaceChildren();
    this.all.checked = false;
    write(this.refused, "");
    this.count();
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const found = await read(`${pathOf(one, "dead-letters")}?database=${encodeURIComponent(one.database)}`);
      if (this.one === one) this.list(found);
    } catch (error) {
      if (this.one !== one) return; // another list was opened meanwhile
      write(byId("letters-text"), "");
      write(this.refused, told(error));
    }
  }

  list(found) {
    const rows = [
      ...found.dead_letters.map((each) => ({
        name: each.event, reason: each.reason, since: each.recorded_at,
        key: Object.entries(each.key).map(([column, value]) => `${column}=${value}`).join(" "),
      })),
      ...found.given_up.map((each) => ({ name: each.name, reason: each.reason, since: each.since, key: "" })),
    ];
    write(byId("letters-text"), rows.length
      ? `Events that could not be applied. Retry them once the cause is removed; a discarded one is never applied.${found.dead_letters.length < MOST_LISTED ? "" : ` These are the first ${count(MOST_LISTED)}.`}`
      : "There are none.");
    this.rows.replaceChildren(...rows.map((each) => element(
      "tr", {},
      element("td", {}, element("input", { type: "checkbox", value: each.name, "aria-label": `Choose ${each.name}` })),
      element("td", { class: "mono" }, each.name), element("td", { class: "mono" }, each.key),
      element("td", {}, each.reason), element("td", {}, moment(each.since)),
    )));
    this.count();
  }

  settle(what) {
    const one = this.one;
    const events = this.chosen();
    const many = `${events.length} dead letter${events.length === 1 ? "" : "s"} of ${one.name}`;
    this.changes.open({
      title: what === "retry" ? `Retry ${many}` : `Discard ${many} for good`,
      text: what === "retry"
        ? "Each is applied exactly once. One that fails again stays a dead letter."
        : "Discarded events are never applied. This cannot be undone.",
      confirm: what === "retry" ? "Retry" : "Discard for good",
      path: pathOf(one, `dead-letters/${what}`),
      body: () => ({ database: one.database, events }),
      refused: () => this.open(one), // another operator may have settled some
      done: (answer) => {
        this.open(one);
        const stays = Object.keys(answer.stays).length;
        return what === "retry"
          ? `${answer.applied} applied, ${answer.unneeded} needed nothing, ${stays} still dead letters${answer.taken_up ? `, ${answer.taken_up} tried again` : ""}`
          : `${answer.discarded} discarded`;
      },
    });
  }
}
