// Choose a picture: from the shards, from the disk, from the clipboard, or dropped.

import { ask } from "./api.js";
import { button, el, empty, select, setOptions } from "./widgets.js";

const PER_PAGE = 12;
/** Pickers of the page; one that is visible gets what is pasted. */
const pickers = [];

/**
 * A chooser of pictures. Calls `onpick({codes, picture, decoded, name, label, shards, split, index})` with a picture that has
 * the codes of `tokenizer()`, a name; shards, split, index and label are there if it is a row of shards.
 * `refresh()` offers the pictures that fit the tokenizer, `first()` picks the first of them.
 */
export function picker(contents, tokenizer, onpick) {
  const grid = el("div", { className: "choices", role: "group", "aria-label": "Pictures of the shards", onkeydown: moveBy });
  const note = el("p", { className: "note", role: "status" });
  const splits = select("Pictures of", [], "", () => show(0));
  const file = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => file.files[0] && upload(file.files[0]) });
  const back = button("←", () => show(start - PER_PAGE), { className: "quiet", "aria-label": "Previous pictures" });
  const next = button("→", () => show(start + PER_PAGE), { className: "quiet", "aria-label": "Next pictures" });
  const open = button("Open a picture …", () => file.click(), { className: "quiet" });
  const help = el("p", { className: "note" }, "You can also drop a picture here, or paste one.");
  const node = el("div", { className: "picker", ...dropping() },
    splits.parentElement, grid, el("div", { className: "actions" }, back, next, open, file), note, help);
  let [start, loads, uploads] = [0, 0, 0];
  let [shown, picked] = ["", ""];

  function dropping() {
    const mark = (over) => node.classList.toggle("over", over);
    return {
      ondragover: (event) => { event.preventDefault(); mark(true); },
      ondragleave: (event) => node.contains(event.relatedTarget) || mark(false),
      ondrop: (event) => { event.preventDefault(); mark(false); receive(event.dataTransfer); },
    };
  }

  /** Offer the pictures that fit the tokenizer; call it when the tokenizer has changed. */
  function refresh() {
    const fitting = contents.shards.filter((shards) => shards.tokenizer === tokenizer());
    const options = fitting.flatMap((shards) => Object.keys(shards.splits).map((split) => [JSON.stringify([shards.name, split]), `${shards.name}, ${split}`]));
    const validation = options.find(([value]) => JSON.parse(value)[1] === "val");
    setOptions(splits, options, validation?.[0]);
    splits.parentElement.hidden = back.hidden = next.hidden = !options.length;
    picked = "";
    say("");
    uploads++;
    if (options.length) return show(0);
    loads++;
    grid.replaceChildren(empty("No shards of this tokenizer are here: open a picture of your own."));
    return Promise.resolve();
  }

  async function show(from) {
    const [shards, split] = JSON.parse(splits.value);
    const mine = ++loads;
    const first = Math.max(0, from);
    grid.setAttribute("aria-busy", "true");
    say("Loading …");
    try {
      const found = await ask("rows", { shards, split, first, count: PER_PAGE });
      if (mine !== loads) return;
      start = first;
      back.disabled = start === 0;
      next.disabled = start + PER_PAGE >= found.total;
      say(shown = found.total ? `${start + 1} to ${start + found.rows.length} of ${found.total}` : "");
      grid.replaceChildren(...found.rows.map((row) => choice(row, shards, split)));
      if (!found.total) grid.append(empty("This split has no rows: choose another, or open a picture of your own."));
      mark();
    } catch (error) {
      if (mine === loads) fail(error.message);
    } finally {
      if (mine === loads) grid.removeAttribute("aria-busy");
    }
  }

  function choice(row, shards, split) {
    const values = { ...row, decoded: row.picture, name: row.key, shards, split };
    const properties = { className: "choice", title: row.key, "aria-label": `Picture ${row.key}`, data: { key: placeOf(values) } };
    const made = button("", () => { say(shown); uploads++; pick(values); }, properties);
    made.append(el("img", { src: row.picture, alt: "", draggable: false }));
    return made;
  }

  function pick(values) {
    picked = placeOf(values);
    mark();
    onpick(values);
  }

  /** Show which picture is chosen; the Tab key stops at it, or at the first. */
  function mark() {
    const choices = [...grid.querySelectorAll(".choice")];
    const chosen = choices.find((one) => one.dataset.key === picked);
    for (const one of choices) {
      one.setAttribute("aria-pressed", one === chosen);
      one.tabIndex = one === (chosen ?? choices[0]) ? 0 : -1;
    }
  }

  function moveBy(event) {
    const choices = [...grid.querySelectorAll(".choice")];
    const at = choices.indexOf(document.activeElement);
    const columns = choices.filter((one) => one.offsetTop === choices[0].offsetTop).length;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: choices.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    choices[to]?.focus();
  }

  /** Take the picture of a drop or a paste. */
  function receive(transfer) {
    const found = [...transfer.files].find((one) => one.type.startsWith("image/"));
    if (found) upload(found);
    else fail("This is no picture: use a file such as a JPEG or PNG.");
  }

  async function upload(chosen) {
    file.value = "";
    if (chosen.size > contents.largest_file) return fail(`${chosen.name} has ${megabytes(chosen.size)}: use a picture of at most ${megabytes(contents.largest_file)}.`);
    const mine = ++uploads;
    say(`Encoding ${chosen.name} …`);
    try {
      const found = await ask("encode", { tokenizer: tokenizer(), picture: await dataUri(chosen) });
      if (mine !== uploads) return;
      say(`${chosen.name} is chosen.`);
      pick({ ...found, name: chosen.name });
    } catch (error) {
      if (mine === uploads) fail(error.message);
    }
  }

  function say(text) {
    note.classList.remove("bad");
    note.textContent = text;
  }

  function fail(text) {
    note.classList.add("bad");
    note.textContent = text;
  }

  pickers.push({ node, receive });
  return { node, refresh, first: () => grid.querySelector(".choice")?.click() };
}

document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  const visible = pickers.filter(({ node }) => node.checkVisibility());
  (visible.find(({ node }) => node.contains(document.activeElement)) ?? visible[0])?.receive(event.clipboardData);
});

/** The place of a picture that is a row of shards, as a text. */
function placeOf({ shards, split, index }) {
  return shards === undefined ? "" : JSON.stringify([shards, split, index]);
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** The content of a file as a data URI. */
export function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
