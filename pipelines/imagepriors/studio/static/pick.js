// Choose a picture: from the shards, from the disk, from the clipboard, or dropped.

import { ask } from "./api.js";
import { Choices } from "./choices.js";
import { dataUris } from "./files.js";
import { turns } from "./latest.js";
import { button, el, empty, select, setOptions, switchOff } from "./widgets.js";

const PER_PAGE = 12;
/** Pickers of the page; one that is visible gets what is pasted. */
const pickers = [];

/**
 * A chooser of pictures. Calls `onpick({codes, picture, decoded, name, label, shards, split, index})` with a picture that has
 * the codes of `tokenizer()`, a name; shards, split, index and label are there if it is a row of shards.
 */
export class Picker {
  constructor(contents, tokenizer, onpick) {
    Object.assign(this, { contents, tokenizer, onpick, start: 0, shown: "", page: turns(), choosing: turns() });
    this.choices = new Choices("Pictures of the shards", "Picture", placeOf, (row) => this.choose(row));
    this.splits = select("Pictures of", [], "", () => this.show(0));
    this.file = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => this.file.files[0] && this.upload(this.file.files[0]) });
    this.back = button("←", () => this.show(this.start - PER_PAGE), { className: "quiet", "aria-label": "Previous pictures" });
    this.next = button("→", () => this.show(this.start + PER_PAGE), { className: "quiet", "aria-label": "Next pictures" });
    const open = button("Open a picture …", () => this.file.click(), { className: "quiet" });
    this.note = el("p", { className: "note", role: "status" });
    this.node = el("div", { className: "picker", ...this.dropping() },
      this.splits.parentElement, this.choices.node, el("div", { className: "actions" }, this.back, this.next, open, this.file),
      this.note, el("p", { className: "note" }, "You can also drop a picture here, or paste one."));
    pickers.push(this);
  }

  dropping() {
    const mark = (over) => this.node.classList.toggle("over", over);
    return {
      ondragover: (event) => { event.preventDefault(); mark(true); },
      ondragleave: (event) => this.node.contains(event.relatedTarget) || mark(false),
      ondrop: (event) => { event.preventDefault(); mark(false); this.receive(event.dataTransfer); },
    };
  }

  /** Offer the pictures that fit the tokenizer when it has changed; `first` picks the first, unless the person is faster. */
  async refresh({ first = false } = {}) {
    const options = splitsOf(this.contents.shards.filter((shards) => shards.tokenizer === this.tokenizer()));
    setOptions(this.splits, options, validationOf(options));
    this.splits.parentElement.hidden = this.back.hidden = this.next.hidden = !options.length;
    const untouched = this.choosing();
    this.choices.chosen = "";
    this.choices.node.replaceChildren(); // their codes are of another tokenizer
    this.say("");
    if (options.length) await this.show(0);
    else this.nothing("No shards of this tokenizer are here: open a picture of your own.");
    if (first && untouched()) this.choices.first();
  }

  nothing(text, ...more) {
    this.page(); // no answer comes after it
    this.choices.node.removeAttribute("aria-busy");
    this.choices.node.replaceChildren(empty(text, ...more));
  }

  async show(from) {
    const [shards, split] = JSON.parse(this.splits.value);
    const isLast = this.page();
    const first = Math.max(0, from);
    this.choices.node.setAttribute("aria-busy", "true");
    this.say("Loading …");
    try {
      const { rows, total } = await ask("rows", { shards, split, first, count: PER_PAGE });
      if (!isLast()) return;
      this.start = first;
      switchOff(this.back, first === 0);
      switchOff(this.next, first + PER_PAGE >= total);
      this.say(this.shown = total ? `${first + 1} to ${first + rows.length} of ${total}` : "");
      this.choices.show(rows.map((row) => ({ ...row, shards, split })));
      if (!total) this.nothing("This split has no rows: choose another, or open a picture of your own.");
    } catch (error) {
      if (!isLast()) return;
      this.say("");
      switchOff(this.back, true);
      switchOff(this.next, true);
      this.nothing(error.message, button("Try again", () => this.show(from), { className: "quiet" }));
    } finally {
      if (isLast()) this.choices.node.removeAttribute("aria-busy");
    }
  }

  choose(row) {
    this.choosing();
    this.say(this.shown);
    this.pick({ ...row, decoded: row.picture, name: row.key });
  }

  pick(values) {
    this.choices.mark(placeOf(values));
    this.onpick(values);
  }

  /** Take the picture of a drop or a paste. */
  receive(transfer) {
    const found = [...transfer.files].find((one) => one.type.startsWith("image/"));
    if (found) this.upload(found);
    else this.fail("This is no picture: use a file such as a JPEG or PNG.");
  }

  async upload(file) {
    this.file.value = "";
    const isLast = this.choosing();
    this.say(`Encoding ${file.name} …`);
    try {
      const [picture] = await dataUris([file], this.contents.largest_file);
      if (!isLast()) return;
      const found = await ask("encode", { tokenizer: this.tokenizer(), picture });
      if (!isLast()) return;
      this.say(`${file.name} is chosen.`);
      this.pick({ ...found, name: file.name });
    } catch (error) {
      if (isLast()) this.fail(error.message);
    }
  }

  say(text) {
    this.note.classList.remove("bad");
    this.note.textContent = text;
  }

  fail(text) {
    this.note.classList.add("bad");
    this.note.textContent = text;
  }
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

/** Options of a select: the splits of shards, whose values are [shards, split] in JSON. */
export function splitsOf(shards) {
  return shards.flatMap((one) => Object.keys(one.splits).map((split) => [JSON.stringify([one.name, split]), `${one.name}, ${split}`]));
}

/** The value of the first validation split among options, undefined if there is none. */
export function validationOf(options) {
  return options.find(([value]) => JSON.parse(value)[1] === "val")?.[0];
}
