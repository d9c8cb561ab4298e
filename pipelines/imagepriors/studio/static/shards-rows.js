// Rows of shards: pages of them, a filter, and a row with all of its columns.

import { ask } from "./api.js";
import { turns } from "./latest.js";
import { count } from "./text.js";
import { button, el, empty, JobStatus, switchOff } from "./widgets.js";

const PER_PAGE = 24;

export class Rows {
  constructor() {
    this.job = new JobStatus();
    [this.paging, this.working] = [turns(), turns()]; // which rows are shown, and what the job is for
    this.note = el("p", { className: "note", role: "status" });
    this.grid = el("div", { className: "rows", role: "group", "aria-label": "Rows", onkeydown: (event) => this.move(event) });
    this.back = button("←", () => this.page(this.first - PER_PAGE), { className: "quiet", "aria-label": "Previous rows" });
    this.next = button("→", () => this.page(this.first + PER_PAGE), { className: "quiet", "aria-label": "Next rows" });
    this.detail = new Detail(this);
    this.node = el("div", {}, el("div", { className: "rows-bar" }, this.note, this.job.node, this.back, this.next), this.grid, this.detail.node);
  }

  /** Show a split from its first row. */
  async show(shards, split) {
    if (this.shards === shards && this.split === split) return;
    Object.assign(this, { shards, split, found: null });
    await this.page(0);
  }

  /** Show the rows that match a filter; null shows all. */
  async filter(values) {
    const found = values && await this.find(values);
    if (values && !found) return;
    this.found = found;
    await this.page(0);
  }

  /** Show the row with a number or a key among all rows. */
  async go(target) {
    const total = this.shards.splits[this.split];
    let index = /^(0|[1-9]\d*)$/.test(target) && Number(target) < total ? Number(target) : null;
    if (index === null) {
      const found = await this.find({ key: target });
      if (!found) return;
      if (!found.indices.length) {
        this.job.fail(new Error(`No row of ${this.split} has the key ${target}; indices are 0 to ${count(total - 1)}.`));
        return;
      }
      [index] = found.indices;
    }
    this.found = null;
    await this.page(index - (index % PER_PAGE), index);
  }

  /** Find rows; null if this has failed, or the person did something else meanwhile. */
  async find(values) {
    const isLast = this.working();
    const found = await this.job.start("find", { shards: this.shards.name, split: this.split, ...values });
    if (!found || !isLast()) return null;
    this.job.clear();
    return found;
  }

  /** Show the rows from `first` on, their texts at once and their pictures when they are decoded; focus one of them. */
  async page(first, focused = null) {
    const [isShown, isLast] = [this.paging(), this.working()];
    this.job.clear();
    const total = this.found ? this.found.indices.length : this.shards.splits[this.split];
    this.first = Math.min(Math.max(0, first), Math.max(0, total - 1));
    const chosen = this.found ? { indices: this.found.indices.slice(this.first, this.first + PER_PAGE) } : { first: this.first, count: PER_PAGE };
    const request = { shards: this.shards.name, split: this.split, ...chosen };
    switchOff(this.back, this.first === 0);
    switchOff(this.next, this.first + PER_PAGE >= total);
    this.grid.setAttribute("aria-busy", total > 0);
    if (!total) {
      this.note.textContent = "";
      this.grid.replaceChildren(empty(this.found ? "No row matches this filter." : "This split has no rows."));
      return;
    }
    try {
      const { rows } = await ask("rows", { ...request, decoded: false, columns: true });
      if (!isShown()) return;
      this.put(rows, total);
      this.grid.querySelector(`[data-index="${focused}"]`)?.focus();
      if (isLast()) await this.decode(request, isShown);
    } catch (error) {
      if (isLast()) this.job.fail(error);
    } finally {
      if (isShown()) this.grid.setAttribute("aria-busy", false);
    }
  }

  put(rows, total) {
    this.rows = rows;
    this.note.textContent = this.about(total);
    const conditions = Object.entries(this.shards.conditions).filter(([, tokenizer]) => tokenizer).sort();
    for (const row of rows) row.conditions = Object.fromEntries(conditions.map(([name]) => [name, null]));
    this.grid.replaceChildren(...rows.map((row) => this.card(row)));
  }

  async decode(request, isShown) {
    if (!this.shards.tokenizer) this.note.textContent += ". The tokenizer of these codes is not on this page: open the studio with its folder, too.";
    const last = await this.job.start("row_pictures", request, (event) => {
      if (isShown()) event.pictures?.forEach((decoded) => this.fill(decoded));
    });
    if (last) this.job.clear();
  }

  fill(decoded) {
    const row = this.rows.find((one) => one.index === decoded.index);
    Object.assign(row, decoded);
    const card = this.grid.querySelector(`[data-index="${row.index}"]`);
    card?.querySelector(".row-pictures").replaceChildren(...images(row));
    this.detail.refresh(row);
  }

  about(total) {
    const last = Math.min(this.first + PER_PAGE, total);
    if (!this.found) return `Index ${count(this.first)} to ${count(last - 1)} of ${count(total)} rows`;
    const all = this.found.complete ? count(total) : `at least ${count(total)}`;
    return `${count(this.first + 1)} to ${count(last)} of ${all} rows that match`;
  }

  card(row) {
    const name = this.labelOf(row);
    return button("", () => this.detail.open(row), { className: "row", data: { index: row.index }, "aria-label": `Index ${row.index}, ${row.key}${name ? `, ${name}` : ""}` })
      .appendChild(el("span", { className: "row-pictures" }, images(row))).parentElement
      .appendChild(el("span", { className: "row-text" },
        name ? el("strong", {}, name) : null,
        el("span", {}, row.key),
        el("small", {}, [`index ${row.index}`, row.view ? `view ${row.view}` : null].filter(Boolean).join(", ")),
        row.carried.caption ? el("span", { className: "row-caption" }, row.carried.caption) : null)).parentElement;
  }

  labelOf(row) {
    return row.label === null ? "" : this.shards.class_names[row.label] || `class ${row.label}`;
  }

  /** Arrow keys move between the rows of the page. */
  move(event) {
    const cards = [...this.grid.querySelectorAll(".row")];
    const at = cards.indexOf(document.activeElement);
    const across = getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (!step || at < 0 || !cards[at + step]) return;
    cards[at + step].focus();
    event.preventDefault();
  }
}

/** The pictures of a row: its own, and its conditions. An empty frame stands for one that is not decoded yet. */
function images(row) {
  const all = [[row.picture, `Picture ${row.key}`], ...Object.entries(row.conditions).map(([name, source]) => [source, `${name} of ${row.key}`])];
  return all.map(([src, alt]) => (src ? el("img", { src, alt, title: alt, className: "crisp" }) : el("span", { className: "row-frame" })));
}

/** A dialog with all columns of a row. */
class Detail {
  constructor(rows) {
    this.rows = rows;
    this.title = el("h2", { id: "row-title" });
    this.pictures = el("div", { className: "row-large" });
    this.body = el("div", { className: "row-body" });
    this.back = button("←", () => this.step(-1), { className: "quiet", "aria-label": "Previous row" });
    this.next = button("→", () => this.step(1), { className: "quiet", "aria-label": "Next row" });
    const close = button("Close", () => this.node.close(), { className: "quiet" });
    this.node = el("dialog", { className: "row-dialog", "aria-labelledby": this.title.id },
      el("header", {}, this.title, this.back, this.next, close), this.pictures, this.body);
    this.node.addEventListener("click", (event) => event.target === this.node && this.node.close());
    this.node.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) this.step(step);
    });
  }

  open(row) {
    this.row = row;
    const at = this.rows.rows.indexOf(row);
    switchOff(this.back, at === 0);
    switchOff(this.next, at === this.rows.rows.length - 1);
    this.title.textContent = row.key;
    const values = [["Index", row.index], ["Class", row.label === null ? "none" : `${this.rows.labelOf(row)} (${row.label})`], ["View", row.view],
      ...Object.entries(row.carried).map(([name, value]) => [name, value ?? "none"])];
    this.body.replaceChildren(
      el("dl", { className: "facts" }, values.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])),
      ...Object.entries(row.sequences).map(([name, codes]) => el("details", {}, el("summary", {}, name), el("p", { className: "row-codes" }, codes.join(" ")))));
    this.refresh(row);
    if (!this.node.open) this.node.showModal();
  }

  /** Show the pictures of a row, if it is this one. */
  refresh(row) {
    if (row !== this.row) return;
    const conditions = Object.entries(row.conditions);
    this.pictures.replaceChildren(...images(row).map((image, index) => el("figure", {}, image, el("figcaption", {}, index ? conditions[index - 1][0] : "picture"))));
  }

  step(by) {
    const row = this.rows.rows[this.rows.rows.indexOf(this.row) + by];
    if (row) this.open(row);
  }
}
