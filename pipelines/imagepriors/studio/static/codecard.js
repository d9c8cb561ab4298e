// What is known of one code: its patches, its frequency, and its nearest codes.

import { ask } from "./api.js";
import { latest } from "./latest.js";
import { count, sentence } from "./text.js";
import { el, picture } from "./widgets.js";

const PAUSE_MS = 60; // of the pointer on a cell, before the server is asked

/** A card that describes a code. `onreplace(code)` is called for a nearest code that is clicked. */
export class CodeCard {
  constructor(onreplace) {
    Object.assign(this, { onreplace, known: new Map(), waiting: 0, wanted: "" });
    this.title = el("h2", {});
    this.place = el("p", { className: "note" });
    this.patches = el("div", { className: "code-patches" });
    this.facts = el("p", {});
    this.nearest = el("div", { className: "nearest-codes" });
    this.about = el("p", { className: "note" });
    this.node = el("section", { className: "card code-card", "aria-label": "Code" },
      el("div", { className: "code-head" }, el("div", {}, el("div", { role: "status" }, this.title, this.place), this.facts), this.patches),
      el("div", {}, el("h3", {}, "Nearest codes"), this.nearest, this.about));
    this.find = latest((key, request, here) => this.ask(key, request, here));
  }

  /** Describe a code; `here` is its patch in the picture, null where codes have no cells. */
  show({ tokenizer, shards, code, where, here }) {
    const key = this.wanted = JSON.stringify([tokenizer, shards, code]);
    clearTimeout(this.waiting);
    this.title.textContent = `Code ${code}`;
    this.place.textContent = where;
    if (this.known.has(key)) return this.fill(this.known.get(key), here);
    this.patches.replaceChildren(...(here ? [figure(here, "In this picture", "Patch of this picture")] : []));
    this.facts.textContent = "…";
    this.nearest.classList.add("stale"); // they are those of the code before
    this.waiting = setTimeout(() => this.find(key, { tokenizer, code, shards }, here), PAUSE_MS);
  }

  async ask(key, request, here) {
    const { known } = this;
    try {
      const found = known.get(key) ?? await ask("code", request);
      known.set(key, found);
      if (this.wanted === key) this.fill(found, here);
    } catch (error) {
      if (this.wanted !== key) return;
      this.facts.textContent = error.message;
      this.nearest.replaceChildren();
    }
  }

  fill(found, here) {
    this.facts.textContent = frequency(found, JSON.parse(this.wanted)[1]);
    const typical = found.patch && figure(found.patch, "Typical", "Typical patch of this code");
    this.patches.replaceChildren(...[here && figure(here, "In this picture", "Patch of this picture"), typical].filter(Boolean));
    this.nearest.classList.remove("stale");
    this.nearest.replaceChildren(...found.nearest.map((one) => this.candidate(one, found.measure)));
    this.about.textContent = [found.why && sentence(found.why), found.patch && kind(found), measured(found)].filter(Boolean).join(" ");
  }

  candidate(one, measure) {
    const image = one.patch ? el("img", { src: one.patch, alt: "" }) : null;
    const distance = one.distance.toPrecision(3);
    const label = `Use code ${one.code}, ${measure} ${distance}`;
    return el("button", { type: "button", className: "candidate", title: label, "aria-label": label, onclick: () => this.onreplace(one.code) },
      image, el("b", {}, String(one.code)), el("small", {}, distance));
  }

  /** Ask again: the codes have been counted. */
  forget() {
    this.known = new Map();
  }
}

function figure(source, caption, alt) {
  return typeof source === "string" ? picture(source, alt, caption) : el("figure", { className: "picture" }, source, el("figcaption", {}, caption));
}

function frequency({ count: found, rank, used, share }, shards) {
  if (found === null) return shards ? "The codes of the shards are not counted yet." : "No shards of this tokenizer are here to count it in.";
  if (!found) return "It does not occur in the shards.";
  const times = found === 1 ? "Once" : `${count(found)} times`;
  return `${times} in the shards, ${(100 * share).toPrecision(2)} % of all codes: rank ${count(rank)} of ${count(used)} that occur.`;
}

function kind({ places, count }) {
  if (!places) return `The typical patch is from a picture of this code alone${count === null ? "" : ": it is in none of the pictures that were averaged"}.`;
  return `A typical patch is the mean of the pixels where the code occurs, here ${places === 1 ? "in one cell" : `in ${places} cells`} of decoded pictures of the shards.`;
}

function measured({ measure, nearest }) {
  if (!nearest.length) return "";
  return measure === "distance"
    ? "The distance is that of the code vectors. Choose a code to put it in the cell."
    : "This quantiser compares by the dot product of the code vectors. Choose a code to put it in the cell.";
}
