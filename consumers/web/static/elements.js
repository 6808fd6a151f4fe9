// Elements are made once and then only changed where they differ, so that focus, selection and a screen reader stay put.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const element = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);

export const drawn = (name, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, name), attributes, children);

export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

export const byId = (id) => document.getElementById(id);

// Keeps one child of `parent` for each item, in order; `make` returns { node, update }.
export class Children {
  constructor(parent, key, make) {
    this.parent = parent;
    this.key = key;
    this.make = make;
    this.made = new Map();
  }

  show(items) {
    const wanted = new Set(items.map(this.key));
    for (const [key, child] of this.made) {
      if (!wanted.has(key)) {
        child.node.remove();
        this.made.delete(key);
      }
    }
    const focused = document.activeElement;
    let before = null;
    for (const item of items) {
      const key = this.key(item);
      if (!this.made.has(key)) this.made.set(key, this.make(item));
      const child = this.made.get(key);
      child.update(item);
      const place = before === null ? this.parent.firstChild : before.nextSibling;
      if (child.node !== place) this.parent.insertBefore(child.node, place);
      before = child.node;
    }
    // An element that is moved loses the focus.
    if (document.activeElement !== focused && this.parent.contains(focused)) focused.focus({ preventScroll: true });
  }
}
