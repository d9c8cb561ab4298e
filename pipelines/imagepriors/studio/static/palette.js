// The labels of a mask, to choose from.

import { button, el } from "./widgets.js";

const KEYS = 9;
const FEW = 16;

/** A palette: the labels that occur in pictures first, the others behind a search. Calls `onpick(label)`. */
export class Palette {
  constructor(colors, names, onpick) {
    Object.assign(this, { colors, names, onpick, chosen: 1, occur: [] });
    this.often = el("div", { className: "palette", role: "group", "aria-label": "Labels" });
    this.others = el("div", { className: "palette", role: "group", "aria-label": "More labels" });
    this.search = el("input", { type: "search", placeholder: "Find a label", "aria-label": "Find a label", oninput: () => this.filter() });
    this.more = el("details", {}, el("summary", {}, "More labels"), this.search, this.others);
    this.node = el("div", { className: "options" }, this.often, this.more);
    this.show();
  }

  name(label) {
    return this.names[label] || `label ${label}`;
  }

  /** Offer the labels first that occur in these further pictures; `counts` are pixels by label. Known ones keep their place. */
  add(counts) {
    const labels = this.colors.map((_, label) => label);
    const further = labels.filter((label) => counts[label] && !this.occur.includes(label));
    this.occur.push(...further.sort((a, b) => counts[b] - counts[a]));
    this.show();
  }

  show() {
    const labels = this.colors.map((_, label) => label);
    this.first = this.occur.length ? this.occur : labels.slice(0, FEW);
    const rest = labels.filter((label) => !this.first.includes(label));
    this.often.replaceChildren(...this.first.map((label, index) => this.swatch(label, index < KEYS ? index + 1 : null)));
    this.others.replaceChildren(...rest.map((label) => this.swatch(label, label === 0 ? 0 : null)));
    this.more.hidden = !rest.length;
    this.choose(this.chosen);
  }

  swatch(label, key) {
    const color = el("span", { className: "swatch", "aria-hidden": "true" });
    color.style.background = `rgb(${this.colors[label].join(" ")})`;
    const made = button("", () => this.onpick(label), { className: "label", data: { label } });
    made.append(color, el("span", {}, this.name(label)), ...(key === null ? [] : [el("kbd", { "aria-hidden": "true" }, String(key))]));
    return made;
  }

  choose(label) {
    this.chosen = label;
    for (const one of this.node.querySelectorAll(".label")) one.setAttribute("aria-pressed", String(Number(one.dataset.label) === label));
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const one of this.others.children) one.hidden = !this.name(Number(one.dataset.label)).toLowerCase().includes(wanted);
  }

  /** The label of a digit key, undefined if there is none. */
  ofDigit(digit) {
    return digit === 0 ? 0 : this.first[digit - 1];
  }
}
