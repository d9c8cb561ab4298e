// Choose a picture: from the shards, or from the disk.

import { ask } from "./api.js";
import { button, el, empty, select } from "./widgets.js";

const PER_PAGE = 12;

/**
 * A chooser of pictures. Calls `onpick({codes, picture, decoded, name, label, shards, split, index})` with a picture that has
 * the codes of `tokenizer()`, a name; shards, split, index and label are there if it is a row of shards.
 */
export function picker(contents, tokenizer, onpick) {
  const grid = el("div", { className: "choices", role: "group", "aria-label": "Pictures of the shards" });
  const note = el("p", { className: "note", role: "status" });
  const splits = select("Pictures of", [], "", () => show(0));
  const file = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => file.files[0] && upload(file.files[0]) });
  const back = button("←", () => show(first - PER_PAGE), { className: "quiet", "aria-label": "Previous pictures" });
  const next = button("→", () => show(first + PER_PAGE), { className: "quiet", "aria-label": "Next pictures" });
  const open = button("Open a picture …", () => file.click(), { className: "quiet" });
  const node = el("div", { className: "picker" }, splits.parentElement, grid, el("div", { className: "actions" }, back, next, open, file), note);
  let first = 0;

  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });

  /** Offer the pictures that fit the tokenizer; call it when the tokenizer has changed. */
  function refresh() {
    const fitting = contents.shards.filter((shards) => shards.tokenizer === tokenizer());
    const options = fitting.flatMap((shards) => Object.keys(shards.splits).map((split) => [JSON.stringify([shards.name, split]), `${shards.name}, ${split}`]));
    splits.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    const validation = options.find(([value]) => JSON.parse(value)[1] === "val");
    if (validation) splits.value = validation[0];
    splits.parentElement.hidden = back.hidden = next.hidden = !options.length;
    return options.length ? show(0) : grid.replaceChildren(empty("No shards of this tokenizer are here: open a picture of your own."));
  }

  async function show(start) {
    const [shards, split] = JSON.parse(splits.value);
    try {
      const found = await ask("rows", { shards, split, first: Math.max(0, start), count: PER_PAGE });
      first = Math.max(0, start);
      back.disabled = first === 0;
      next.disabled = first + PER_PAGE >= found.total;
      note.textContent = `${first + 1} to ${first + found.rows.length} of ${found.total}`;
      grid.replaceChildren(...found.rows.map((row) => choice(row, shards, split)));
    } catch (error) {
      note.textContent = error.message;
    }
  }

  function choice(row, shards, split) {
    const values = { ...row, decoded: row.picture, name: row.key, shards, split };
    return button("", () => onpick(values), { className: "choice", title: row.key, "aria-label": `Picture ${row.key}`,
      style: null, data: { key: row.key } }).appendChild(el("img", { src: row.picture, alt: "" })).parentElement;
  }

  async function upload(chosen) {
    note.textContent = `Encoding ${chosen.name} …`;
    try {
      const found = await ask("encode", { tokenizer: tokenizer(), picture: await dataUri(chosen) });
      note.textContent = chosen.name;
      onpick({ ...found, name: chosen.name });
    } catch (error) {
      note.textContent = error.message;
    } finally {
      file.value = "";
    }
  }

  return { node, refresh };
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
