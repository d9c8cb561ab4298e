// Scales: a picture as a pyramid of coarser and coarser codes.

import { ask } from "./api.js";
import { latest } from "./latest.js";
import { sentence } from "./text.js";
import { el, picture, range } from "./widgets.js";

/** The section about scales: `show(request, finest)` shows those of codes. */
export class Pyramid {
  constructor() {
    Object.assign(this, { scales: [], wanted: null, visible: false, find: latest(() => this.ask()) });
    this.note = el("p", { className: "note", role: "status" });
    this.tiers = el("div", { className: "tiers" });
    this.whole = el("img", { alt: "Picture of the scales that are kept", className: "kept" });
    this.kept = range("Keep the first scales", 1, { min: 1, max: 1, step: 1 }, (k) => this.keep(k));
    this.text = el("p", { className: "note", role: "status" });
    this.parts = el("div", { className: "pyramid", hidden: true },
      this.tiers, el("div", { className: "kept-scales" }, this.whole, this.kept.parentElement, this.text));
    this.node = el("section", { "aria-label": "Scales" }, el("h2", {}, "Scales"), this.note, this.parts);
    new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible && this.wanted) this.find();
    }, { rootMargin: "200px" }).observe(this.node);
  }

  /** Show the scales of codes when they come into view; `finest` is the decoded picture of all codes. */
  show(request, finest) {
    this.wanted = { request, finest };
    if (!this.scales.length) this.note.textContent = "Decoding …";
    if (this.visible) this.find();
  }

  async ask() {
    const { request, finest } = this.wanted;
    this.wanted = null;
    try {
      const found = await ask("scales", request);
      if (this.wanted) return; // those of other codes follow
      const side = Math.sqrt(request.codes.length);
      this.fill(found.why ? [] : [...found.scales, { side, picture: finest, stored: false }], found.why);
    } catch (error) {
      if (!this.wanted) [this.parts.hidden, this.note.textContent] = [true, error.message];
    }
  }

  fill(found, why) {
    const before = this.scales.length;
    const all = Number(this.kept.value) === before;
    this.scales = found;
    this.parts.hidden = !found.length;
    this.note.textContent = found.length ? origin(found) : sentence(why);
    this.tiers.replaceChildren(...found.map((one) => {
      const tier = picture(one.picture, `Scale of ${one.side} × ${one.side} codes`, `${one.side} × ${one.side}`);
      tier.style.flexGrow = Math.sqrt(one.side);
      return tier;
    }));
    this.kept.max = found.length;
    if (found.length !== before || all) this.kept.value = found.length;
    this.kept.dispatchEvent(new Event("input"));
  }

  keep(k) {
    if (!this.scales.length) return;
    const last = this.scales[k - 1];
    this.whole.src = last.picture;
    const codes = (some) => some.reduce((sum, one) => sum + one.side ** 2, 0);
    this.text.textContent = `${codes(this.scales.slice(0, k))} of ${codes(this.scales)} codes; the picture is decoded from ${last.side} × ${last.side} codes.`;
    [...this.tiers.children].forEach((tier, index) => tier.classList.toggle("dropped", index >= k));
  }
}

function origin(scales) {
  const sides = (some) => some.map((one) => `${one.side} × ${one.side}`).join(", ");
  const [stored, made] = [scales.filter((one) => one.stored), scales.slice(0, -1).filter((one) => !one.stored)];
  return [
    stored.length ? `Stored in the shards: ${sides(stored)}.` : "",
    made.length ? `Computed from the codes: ${sides(made)}. The code vectors of each block are averaged, and the nearest code is taken.` : "",
    "A prior of scales draws them one after the other, coarse to fine.",
  ].filter(Boolean).join(" ");
}
