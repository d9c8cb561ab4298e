// What is known of one code: its patches, its frequency, and its nearest codes.

import { ask } from "./api.js";
import { latest } from "./latest.js";
import { count, sentence } from "./text.js";
import { el, picture } from "./widgets.js";

const PAUSE_MS = 60; // of the pointer on a cell, before the server is asked

/** A card that describes a code. `onreplace(code)` is called for a nearest code that is clicked. */
export function codeCard(onreplace) {
  const title = el("h2", {});
  const place = el("p", { className: "note" });
  const patches = el("div", { className: "code-patches" });
  const facts = el("p", {});
  const nearest = el("div", { className: "nearest-codes" });
  const about = el("p", { className: "note" });
  const node = el("section", { className: "card code-card", "aria-label": "Code" },
    el("div", { className: "code-head" }, el("div", {}, el("div", { role: "status" }, title, place), facts), patches),
    el("div", {}, el("h3", {}, "Nearest codes"), nearest, about));
  let known = new Map();
  let [waiting, wanted] = [0, ""];

  /** Describe a code; `here` is its patch in the picture, null where codes have no cells. */
  function show({ tokenizer, shards, code, where, here }) {
    const key = wanted = JSON.stringify([tokenizer, shards, code]);
    clearTimeout(waiting);
    title.textContent = `Code ${code}`;
    place.textContent = where;
    if (known.has(key)) return fill(known.get(key), here);
    patches.replaceChildren(...(here ? [figure(here, "In this picture", "Patch of this picture")] : []));
    facts.textContent = "…";
    waiting = setTimeout(() => find(key, { tokenizer, code, shards }, here), PAUSE_MS);
  }

  const find = latest(async (key, request, here) => {
    const table = known;
    try {
      const found = table.get(key) ?? await ask("code", request);
      table.set(key, found);
      if (wanted === key) fill(found, here);
    } catch (error) {
      if (wanted !== key) return;
      facts.textContent = error.message;
      nearest.replaceChildren();
    }
  });

  function fill(found, here) {
    facts.textContent = frequency(found, JSON.parse(wanted)[1]);
    const typical = found.patch && figure(found.patch, "Typical", "Typical patch of this code");
    patches.replaceChildren(...[here && figure(here, "In this picture", "Patch of this picture"), typical].filter(Boolean));
    nearest.replaceChildren(...found.nearest.map((one) => candidate(one, found.measure)));
    about.textContent = [found.why && sentence(found.why), found.patch && kind(found), measured(found)].filter(Boolean).join(" ");
  }

  function candidate(one, measure) {
    const image = one.patch ? el("img", { src: one.patch, alt: "" }) : null;
    const distance = one.distance.toPrecision(3);
    const label = `Use code ${one.code}, ${measure} ${distance}`;
    return el("button", { type: "button", className: "candidate", title: label, "aria-label": label, onclick: () => onreplace(one.code) },
      image, el("b", {}, String(one.code)), el("small", {}, distance));
  }

  /** Ask again: the codes have been counted. */
  function forget() {
    known = new Map();
  }

  return { node, show, forget };
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
