// Scales: a picture as a pyramid of coarser and coarser codes.

import { ask } from "./api.js";
import { latest } from "./latest.js";
import { sentence } from "./text.js";
import { el, picture, range } from "./widgets.js";

/** The section about scales. */
export function pyramid() {
  const note = el("p", { className: "note", role: "status" });
  const tiers = el("div", { className: "tiers" });
  const whole = el("img", { alt: "Picture of the scales that are kept", className: "kept" });
  const kept = range("Keep the first scales", 1, { min: 1, max: 1, step: 1 }, keep);
  const text = el("p", { className: "note", role: "status" });
  const parts = el("div", { className: "pyramid", hidden: true },
    tiers, el("div", { className: "kept-scales" }, whole, kept.parentElement, text));
  const node = el("section", { "aria-label": "Scales" }, el("h2", {}, "Scales"), note, parts);
  let [scales, wanted, visible] = [[], null, false];

  new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting;
    if (visible && wanted) find();
  }, { rootMargin: "200px" }).observe(node);

  /** Show the scales of codes when they come into view; `finest` is the decoded picture of all codes. */
  function show(request, finest) {
    wanted = { request, finest };
    if (!scales.length) note.textContent = "Decoding …";
    if (visible) find();
  }

  const find = latest(async () => {
    const { request, finest } = wanted;
    wanted = null;
    try {
      const found = await ask("scales", request);
      const side = Math.sqrt(request.codes.length);
      fill(found.why ? [] : [...found.scales, { side, picture: finest, stored: false }], found.why);
    } catch (error) {
      [parts.hidden, note.textContent] = [true, error.message];
    }
  });

  function fill(found, why) {
    const before = scales.length;
    const all = Number(kept.value) === before;
    scales = found;
    parts.hidden = !scales.length;
    note.textContent = scales.length ? origin(scales) : sentence(why);
    tiers.replaceChildren(...scales.map((one) => {
      const tier = picture(one.picture, `Scale of ${one.side} × ${one.side} codes`, `${one.side} × ${one.side}`);
      tier.style.flexGrow = Math.sqrt(one.side);
      return tier;
    }));
    kept.max = scales.length;
    if (scales.length !== before || all) kept.value = scales.length;
    kept.dispatchEvent(new Event("input"));
  }

  function keep(k) {
    if (!scales.length) return;
    const last = scales[k - 1];
    whole.src = last.picture;
    const count = (some) => some.reduce((sum, one) => sum + one.side ** 2, 0);
    text.textContent = `${count(scales.slice(0, k))} of ${count(scales)} codes; the picture is decoded from ${last.side} × ${last.side} codes.`;
    [...tiers.children].forEach((tier, index) => tier.classList.toggle("dropped", index >= k));
  }

  return { node, show };
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
