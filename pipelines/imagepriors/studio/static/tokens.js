// Tokens: a picture beside its codes. Look at a code, change it, paste others, and see orders and scales.

import { ask } from "./api.js";
import { CodeCard } from "./codecard.js";
import { Board, cellColours, drawCodes, numberColour } from "./codegrid.js";
import { asJson, asNumpy, Edits } from "./edits.js";
import { canvasOf, loaded, savePng } from "./files.js";
import { cellName, cellsOf, hasCells, shape } from "./grid.js";
import { undoKeys } from "./keys.js";
import { latest } from "./latest.js";
import { OrderPlayer } from "./orders.js";
import { pasteRegion } from "./paste.js";
import { Picker } from "./pick.js";
import { drawDifference, patch } from "./picturediff.js";
import { Pyramid } from "./pyramid.js";
import { count } from "./text.js";
import { button, copyButton, el, empty, JobStatus, number, select, switchOff } from "./widgets.js";

export const tokens = { id: "tokens", title: "Tokens", mount };

const COUNTED_AT_ONCE = 2 ** 26; // codes in shards; more are counted when a person asks for it
const VIEWS = { picture: "Picture", original: "Original", difference: "Difference", upload: "As uploaded" };

function mount(panel, contents) {
  const known = contents.tokenizers.filter((one) => one.modality === "rgb");
  if (known.length) new Tab(panel, contents, known).change();
  else panel.append(empty("There is no tokenizer of pictures here. Train or import one, and open its folder."));
}

class Tab {
  constructor(panel, contents, known) {
    [this.contents, this.known, this.counted, this.declined] = [contents, known, new Map(), new Set()];
    const first = known.find((one) => contents.shards.some((shards) => shards.tokenizer === one.name)) ?? known[0];
    this.choice = select("Tokenizer", known.map((one) => one.name), first.name, () => this.change());
    this.about = el("p", { className: "note" });
    this.picker = new Picker(contents, () => this.choice.value, (picked) => this.open(picked));
    this.orders = new OrderPlayer();
    this.pyramid = new Pyramid();
    this.card = new CodeCard((code) => {
      this.replace(code);
      this.right.node.focus({ preventScroll: true });
    });
    this.decode = latest((text) => this.decodeNow(text));
    this.makeBoards();
    this.makeTools();
    this.makeCounting();
    this.nothing = empty("Choose a picture to see its codes.");
    this.work = el("div", { className: "token-work", hidden: true, onkeydown: (event) => this.key(event) },
      this.boards, this.tools, this.status, this.card.node, this.counting, this.paste.node, this.orders.node, this.pyramid.node);
    panel.append(el("div", { className: "columns" },
      el("div", { className: "controls" }, this.choice.parentElement, this.about, this.picker.node),
      el("div", { className: "stage" }, this.nothing, this.work)));
  }

  makeBoards() {
    this.image = el("img", { alt: "Picture of the codes" });
    this.difference = el("canvas", { hidden: true, role: "img", "aria-label": "Difference from the original" });
    this.canvas = el("canvas");
    const calls = {
      onlook: (cell) => this.look(cell), onleave: () => this.look(this.cell), onchoose: (cell) => this.choose(cell),
    };
    const keys = "Arrow keys move, Enter chooses a cell";
    this.left = new Board(`Picture. ${keys}`, el("div", { className: "board-layers" }, this.image, this.difference), calls);
    this.right = new Board(`Codes. ${keys}`, this.canvas, calls);
    this.views = Object.entries(VIEWS).map(([view, text]) => button(text, () => this.see(view), { className: "quiet", data: { view } }));
    this.numbers = button("Numbers", () => this.drawGrid(!this.numbered), { className: "quiet", "aria-pressed": "true" });
    this.numbered = true;
    this.seen = el("p", { className: "note" });
    this.readable = el("p", { className: "note" });
    const show = (nodes, label) => el("div", { className: "actions", role: "group", "aria-label": label }, nodes);
    this.boards = el("div", { className: "boards" },
      el("div", {}, this.left.node, show(this.views, "What to see"), this.seen),
      el("div", {}, this.right.node, show([this.numbers], "How to see the codes"), this.readable));
    new ResizeObserver(() => this.drawGrid()).observe(this.canvas);
  }

  makeTools() {
    this.code = number("Code", 0, { min: 0, step: 1, required: true }, (code) => this.replace(code));
    this.back = button("Undo", () => this.undo(), { className: "quiet", title: "Ctrl+Z" });
    this.forth = button("Redo", () => this.redo(), { className: "quiet", title: "Ctrl+Shift+Z" });
    this.reset = button("Reset", () => this.put([...this.edits.original], "Reset."), { className: "quiet" });
    this.done = button("Do not paste", () => this.hold(null), { className: "quiet", hidden: true });
    this.status = el("p", { className: "note", role: "status" });
    this.paste = pasteRegion(this.contents, () => this.tokenizer, (region) => this.hold(region));
    this.tools = el("div", { className: "token-tools" }, this.code.parentElement,
      el("div", { className: "actions" }, this.back, this.forth, this.reset, this.done,
        copyButton(() => asJson(this.edits.state, this.tokenizer.grid), "Copy as JSON"),
        copyButton(() => asNumpy(this.edits.state, this.tokenizer.grid), "Copy for NumPy"),
        button("Download PNG", () => this.now && savePng(canvasOf(this.now), `${this.picked.name.replace(/\.\w+$/, "").replace(/\W+/g, "-")}.png`), { className: "quiet" })));
  }

  makeCounting() {
    this.job = new JobStatus();
    this.start = button("Count the codes of the shards", () => this.count(), { className: "quiet" });
    this.counting = el("div", { className: "counting" }, this.start, this.job.node);
  }

  get tokenizer() {
    return this.known.find((one) => one.name === this.choice.value);
  }

  /** Another tokenizer: other pictures, grid and orders. */
  change() {
    const { grid, codebook_size: size, resolution } = this.tokenizer;
    this.about.textContent = `${resolution} × ${resolution} pixels → ${grid.join(" × ")} codes, of ${count(size)} in the codebook`;
    this.code.max = size - 1;
    [this.edits, this.work.hidden, this.nothing.hidden, this.paste.node.hidden] = [null, true, false, !hasCells(grid)];
    this.hold(null);
    this.orders.open(this.tokenizer, hasCells(grid));
    this.paste.refresh();
    this.picker.refresh({ first: true });
  }

  /** Open a picture that the picker has found. */
  open(picked) {
    const [rows, columns] = shape(this.tokenizer.grid);
    [this.picked, this.edits, this.now, this.originalImage] = [picked, new Edits(picked.codes), null, null];
    [this.work.hidden, this.nothing.hidden] = [false, true];
    const owned = this.contents.shards.find((one) => one.tokenizer === this.tokenizer.name);
    this.shards = picked.shards ?? owned?.name ?? "";
    for (const side of [this.left, this.right]) side.layout(rows, columns, picked.codes.length);
    this.cell = (Math.floor(rows / 2) * columns + Math.floor(columns / 2)) % picked.codes.length;
    this.views.at(-1).hidden = Boolean(picked.shards);
    this.see("picture");
    this.adapt();
    this.decode("");
    this.offerCounting();
  }

  /** Decode the codes, and show everything that follows from them. */
  async decodeNow(text) {
    const { edits, originalImage } = this;
    if (!edits) return;
    const request = this.scalesRequest();
    const codes = originalImage || !edits.changed ? [edits.state] : [edits.state, edits.original];
    try {
      const { pictures } = await ask("decode", { tokenizer: request.tokenizer, codes, exact: true });
      const [image, original = originalImage ?? image] = await Promise.all(pictures.map(loaded));
      if (edits !== this.edits) return;
      [this.now, this.originalImage] = [image, original];
      this.status.textContent = text && `${text} Decoded in ${Math.round(performance.now() - this.since)} ms.`;
      this.see(this.view);
      this.drawGrid();
      this.look(this.cell);
      this.orders.show(image);
      this.pyramid.show(request, image.src);
    } catch (error) {
      if (edits === this.edits) this.status.textContent = error.message;
    }
  }

  scalesRequest() {
    const { shards, split, index } = this.picked;
    const row = shards && !this.edits.changed ? { shards, split, index } : {};
    return { tokenizer: this.tokenizer.name, codes: this.edits.state, ...row };
  }

  /** Show what can be done now. */
  adapt() {
    switchOff(this.back, !this.edits.canUndo);
    switchOff(this.forth, !this.edits.canRedo);
    switchOff(this.reset, !this.edits.changed);
    this.code.value = this.edits.state[this.cell];
    this.code.labels[0].textContent = `Code in ${this.where(this.cell)}`;
  }

  /** Show the picture, the original, or how they differ. */
  see(view) {
    this.view = view;
    for (const one of this.views) one.setAttribute("aria-pressed", one.dataset.view === view);
    this.difference.hidden = view !== "difference";
    this.image.hidden = !this.difference.hidden;
    const shown = { original: this.originalImage?.src, upload: this.picked.picture }[view] ?? this.now?.src;
    this.image.src = shown ?? this.picked.decoded;
    this.image.classList.toggle("crisp", this.tokenizer.resolution <= 128);
    this.seen.textContent = "";
    if (view !== "difference" || !this.originalImage) return;
    const largest = drawDifference(this.difference, this.now, this.originalImage);
    const changed = this.edits.changed;
    this.seen.textContent = largest
      ? `${changed} changed ${changed === 1 ? "code" : "codes"}; white is the largest difference, ${largest} of 255.`
      : "The picture is as it was.";
  }

  drawGrid(numbered = this.numbered) {
    if (!this.edits || !this.now) return;
    const grid = shape(this.tokenizer.grid);
    this.numbered = numbered;
    const codes = this.edits.state;
    const known = this.counted.get(this.shards)?.colours ?? {};
    const cells = hasCells(this.tokenizer.grid) ? cellColours(this.now, grid) : codes.map(numberColour);
    const readable = drawCodes(this.canvas, codes, grid, codes.map((code, cell) => known[code] ?? cells[cell]), numbered);
    this.numbers.setAttribute("aria-pressed", numbered);
    this.readable.textContent = numbered && !readable ? "The cells are too small for numbers." : "";
  }

  where(cell) {
    return hasCells(this.tokenizer.grid) ? cellName(cell, this.tokenizer.grid[1]) : `place ${cell + 1}`;
  }

  /** Show a cell and its code, or where the region that is held would go. */
  look(cell) {
    if (!this.now) return;
    const [rows, columns] = shape(this.tokenizer.grid);
    const placed = hasCells(this.tokenizer.grid);
    const [high, wide] = this.region ? [this.region.rows, this.region.columns] : [1, 1];
    const [row, column] = [Math.min(rows - high, Math.floor(cell / columns)), Math.min(columns - wide, cell % columns)];
    const rectangle = { row, column, rows: high, columns: wide };
    this.left.show(placed ? rectangle : null);
    this.right.show(rectangle);
    this.left.at = this.right.at = cell;
    this.card.show({
      tokenizer: this.tokenizer.name, shards: this.shards, code: this.edits.state[cell], where: this.where(cell),
      here: placed ? patch(this.now, this.tokenizer.grid, cell) : null,
    });
  }

  /** Keep a cell, or put the region that is held there. */
  choose(cell) {
    this.cell = cell;
    if (this.region) this.place(cell);
    this.adapt();
    this.look(cell);
  }

  replace(code) {
    const codes = [...this.edits.state];
    const before = codes[this.cell];
    codes[this.cell] = code;
    this.put(codes, `Code ${before} is now ${code} in ${this.where(this.cell)}.`);
  }

  /** Hold a region to paste; null holds none. */
  hold(region) {
    this.region = region;
    if (!region) this.paste.rest();
    this.done.hidden = !region;
    this.work?.classList.toggle("pasting", Boolean(region));
    if (!this.edits) return;
    this.status.textContent = region ? `Choose where the ${region.rows} × ${region.columns} codes of ${region.name} go; Escape ends it.` : "";
    this.look(this.cell);
    if (!region) return;
    this.boards.scrollIntoView({ block: "nearest" });
    this.left.node.focus({ preventScroll: true });
  }

  place(cell) {
    const [rows, columns] = this.tokenizer.grid;
    const { region } = this;
    this.hold(null);
    const [top, left] = [Math.min(rows - region.rows, Math.floor(cell / columns)), Math.min(columns - region.columns, cell % columns)];
    const codes = [...this.edits.state];
    cellsOf({ ...region, row: top, column: left }, columns).forEach((to, index) => { codes[to] = region.codes[index]; });
    this.put(codes, `${region.rows} × ${region.columns} codes of ${region.name} are pasted.`);
  }

  put(codes, text) {
    if (this.edits.keep(codes)) this.changed(text);
  }

  undo() {
    if (this.edits.undo()) this.changed("Undone.");
  }

  redo() {
    if (this.edits.redo()) this.changed("Redone.");
  }

  /** The codes are others: show so at once, and the picture when it is decoded. */
  changed(text) {
    this.since = performance.now();
    if (this.view !== "difference") this.view = "picture";
    this.status.textContent = `${text} Decoding …`;
    this.adapt();
    this.drawGrid();
    this.decode(text);
  }

  key(event) {
    if (event.key === "Escape" && this.region) {
      this.hold(null);
      event.preventDefault();
    } else if (event.target.tagName !== "INPUT") undoKeys(event, this);
  }

  offerCounting() {
    const shards = this.contents.shards.find((one) => one.name === this.shards);
    const rows = Object.values(shards?.splits ?? {}).reduce((sum, one) => sum + one, 0);
    this.counting.hidden = !shards || this.counted.has(this.shards);
    if (this.counting.hidden || this.underway === this.shards) return;
    this.start.hidden = rows * this.edits.state.length <= COUNTED_AT_ONCE && !this.declined.has(this.shards);
    if (this.start.hidden) this.count();
  }

  /** Count the codes of the shards, and find what they look like. */
  async count() {
    const { shards } = this;
    this.underway = shards;
    this.start.hidden = true;
    const found = await this.job.start("usage", { shards });
    if (this.underway !== shards) return;
    this.underway = null;
    if (!found) {
      this.declined.add(shards);
      this.start.hidden = false;
      return;
    }
    this.counted.set(shards, found);
    this.card.forget();
    this.counting.hidden = this.counted.has(this.shards);
    this.drawGrid();
    this.look(this.cell);
  }
}
