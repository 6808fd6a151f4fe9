// What operators did last: read when the list is opened, not every second.

import { read } from "./api.js";
import { byId, element, write } from "./elements.js";
import { moment } from "./format.js";

export class History {
  constructor(databases) {
    this.databases = databases;
    this.details = byId("history-details");
    this.details.addEventListener("toggle", () => this.again());
    byId("history-again").addEventListener("click", () => this.again());
  }

  async again() {
    if (!this.details.open) return;
    const lists = await Promise.all(this.databases().map((database) => listOf(database)));
    byId("history-lists").replaceChildren(...lists);
  }
}

async function listOf(database) {
  const title = element("h3", {}, database);
  try {
    const found = await read(`/api/history/${encodeURIComponent(database)}`);
    if (!found.actions.length) return element("div", {}, title, element("p", { class: "muted" }, "Nothing is recorded."));
    const rows = found.actions.map((each) => element(
      "tr", {},
      element("td", {}, moment(each.at)), element("td", {}, each.action), element("td", {}, each.subject),
      element("td", {}, each.actor), element("td", {}, each.reason ?? ""),
    ));
    const heads = ["When", "What", "Of", "Who", "Why"].map((text) => element("th", { scope: "col" }, text));
    return element(
      "div", {}, title,
      element(
        "div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `What operators did in ${database}` },
        element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)),
      ),
    );
  } catch (error) {
    const text = element("p", { class: "refused" });
    write(text, error.message);
    return element("div", {}, title, text);
  }
}
