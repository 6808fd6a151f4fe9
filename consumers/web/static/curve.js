// A curve of a few values: an SVG path needs no library.

import { drawn, mark } from "./elements.js";
import { rate } from "./format.js";

const WIDTH = 300;
const HEIGHT = 44;

export class Curve {
  constructor() {
    this.area = drawn("path", { class: "area" });
    this.line = drawn("path", { class: "line" });
    this.node = drawn(
      "svg",
      { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Rate" },
      this.area, this.line,
    );
  }

  show(values, seconds) {
    const known = values.filter((value) => value !== null);
    this.node.toggleAttribute("hidden", known.length < 2);
    const top = Math.max(1, ...known);
    const step = WIDTH / Math.max(1, values.length - 1);
    const height = (value) => (HEIGHT - 3 - (value / top) * (HEIGHT - 8)).toFixed(1);
    let line = "";
    let area = "";
    let run = [];
    const end = () => {
      if (run.length) {
        line += `M${run.map(([x, y]) => `${x} ${y}`).join("L")}`;
        area += `M${run[0][0]} ${HEIGHT}L${run.map(([x, y]) => `${x} ${y}`).join("L")}L${run[run.length - 1][0]} ${HEIGHT}Z`;
      }
      run = [];
    };
    values.forEach((value, index) => {
      if (value === null) end();
      else run.push([(index * step).toFixed(1), height(value)]);
    });
    end();
    mark(this.line, "d", line);
    mark(this.area, "d", area);
    const minutes = Math.max(1, Math.round((values.length * seconds) / 60));
    const last = known.length ? rate(known[known.length - 1]) : "unknown";
    mark(this.node, "aria-label", `Rate over ${minutes} min: now ${last}, at most ${rate(known.length ? Math.max(...known) : 0)}`);
  }
}
