// Two tokenizers that encode and decode the same pictures.

import { dataUris } from "./files.js";
import { turns } from "./latest.js";
import { Picker, splitsOf, validationOf } from "./pick.js";
import { rowsOf, side, valuesTable } from "./sides.js";
import { count } from "./text.js";
import { button, el, empty, JobStatus, number, numberOf, select } from "./widgets.js";

const SHOWN = [["reconstructions", "Reconstructions"], ["originals", "As each tokenizer sees it"], ["differences", "Differences × 4"]];

export function compareTokenizers(contents) {
  const tokenizers = contents.tokenizers.filter((one) => one.modality === "rgb");
  if (!tokenizers.length) return empty("There is no tokenizer of pictures here. Train one, and open its run folder.");
  const sides = ["A", "B"].map((letter, index) => new Side(letter, tokenizers, tokenizers[index % tokenizers.length].name, changed));
  const source = new Source(contents, () => sides[0].tokenizer.value, start);
  const switches = SHOWN.map(([kind, title]) => button(title, () => show(kind), { className: "quiet", data: { kind } }));
  const results = rowsOf(["Original", "A", "B"]);
  const figures = el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Figures of both tokenizers" });
  const shown = el("div", { className: "actions", role: "group", "aria-label": "What to show of the pictures", hidden: true }, switches);
  const card = el("section", { className: "card", hidden: true }, el("h2", {}, "Figures of these pictures"), figures, el("p", { className: "note" },
    "PSNR is measured at the resolution of each tokenizer, on the picture as that tokenizer sees it."));
  let kind = SHOWN[0][0];

  function changed() {
    show();
    source.refresh();
  }

  function show(chosen = kind) {
    kind = chosen;
    for (const one of switches) one.setAttribute("aria-pressed", one.dataset.kind === kind);
    const found = sides.map((one) => one.found);
    const finest = found.filter(Boolean).sort((one, other) => other.resolution - one.resolution)[0];
    const notes = found.map((one) => (kind === "reconstructions" && one?.psnr_db.map((value) => `${value.toFixed(1)} dB`)) || []);
    results.show([finest?.originals ?? [], ...found.map((one) => one?.[kind] ?? [])], [[], ...notes], finest?.names);
    shown.hidden = card.hidden = !finest;
    const values = sides.map((one) => one.values());
    figures.replaceChildren(valuesTable([...new Set(values.flatMap(Object.keys))], values));
  }

  async function start(request, names) {
    sides.forEach((one) => { one.found = null; });
    show();
    await Promise.all(sides.map(async (one) => {
      const last = await one.job.start("reconstruct", { tokenizer: one.tokenizer.value, ...request });
      if (!last) return;
      one.found = names.length ? { ...last, names } : last;
      show();
    }));
  }

  return el("div", { className: "compare" }, source.form, el("div", { className: "compare-sides" }, sides.map((one) => one.node)), shown, results, card);
}

/** The form for the pictures: evenly spaced ones of shards, or those that the person chooses. Calls `onstart(request, names)`. */
class Source {
  constructor(contents, tokenizer, onstart) {
    Object.assign(this, { largest: contents.largest_file, onstart, first: 0, files: [], names: [], opening: turns() });
    const sources = splitsOf(contents.shards.filter((one) => one.tokenizer));
    this.source = select("Pictures of", [...sources, ["", "your choice"]], validationOf(sources), () => this.adapt());
    this.n = number("Pictures", 6, { min: 1, max: 16, step: 1, required: true });
    this.note = el("p", { className: "note", role: "status" });
    this.file = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.open() });
    this.chooser = button("Open pictures …", () => this.file.click());
    this.others = button("Other pictures", () => { this.first += 1; this.start(); });
    this.picked = new Picker(contents, tokenizer, ({ picture, name }) => this.take([picture], [name]));
    this.choice = el("details", { ontoggle: () => this.refresh() }, el("summary", {}, "Choose one picture of the shards of tokenizer A"), this.picked.node);
    const main = el("button", { type: "submit", className: "main" }, "Reconstruct");
    this.form = el("form", { className: "controls compare-shared", "aria-label": "Pictures that both tokenizers encode" },
      this.source.parentElement, this.n.parentElement,
      el("div", { className: "actions" }, main, this.others, this.chooser, this.file), this.note, this.choice);
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.start(); });
    this.adapt();
  }

  get ofShards() {
    return this.source.value !== "";
  }

  adapt() {
    this.n.parentElement.hidden = this.n.disabled = this.others.hidden = !this.ofShards;
    this.chooser.hidden = this.choice.hidden = this.ofShards;
    this.note.textContent = this.ofShards
      ? "Pictures of shards are decoded codes, which the tokenizer that made them reconstructs best. Pictures of your own compare fairly."
      : this.names.join(", ") || "Open pictures of the disk, or choose one.";
  }

  /** Offer the pictures of the tokenizer, if the person chooses one. */
  refresh() {
    if (this.choice.open) this.picked.refresh();
  }

  async open() {
    const [isLast, files] = [this.opening(), [...this.file.files]];
    this.file.value = "";
    try {
      const uris = await dataUris(files, this.largest);
      if (isLast()) this.take(uris, files.map((one) => one.name));
    } catch (error) {
      if (isLast()) this.note.textContent = error.message;
    }
  }

  take(files, names) {
    Object.assign(this, { files, names });
    this.adapt();
    this.start();
  }

  start() {
    if (!this.form.reportValidity()) return;
    const [shards, split] = this.ofShards ? JSON.parse(this.source.value) : [];
    if (shards) this.onstart({ shards, split, first: this.first, n: numberOf(this.n) }, []);
    else if (this.files.length) this.onstart({ pictures: this.files }, this.names);
    else this.file.click();
  }
}

class Side {
  constructor(letter, tokenizers, name, onchange) {
    this.job = new JobStatus();
    this.found = null;
    const about = el("p", { className: "note" });
    const adapt = () => {
      const chosen = tokenizers.find((one) => one.name === this.tokenizer.value);
      about.textContent = `${chosen.resolution} × ${chosen.resolution} pixels to ${chosen.grid.join(" × ")} codes, of ${count(chosen.codebook_size)} in the codebook`;
    };
    this.tokenizer = select(`Tokenizer ${letter}`, tokenizers.map((one) => one.name), name, () => {
      this.found = null;
      this.job.clear();
      adapt();
      onchange();
    });
    adapt();
    this.node = side(letter, el("div", { className: "controls" }, this.tokenizer.parentElement, about), this.job.node);
  }

  /** Name → text of what is known of the pictures. */
  values() {
    const found = this.found;
    if (!found) return {};
    return {
      "Mean PSNR": `${found.mean_psnr_db.toFixed(2)} dB`,
      "Codes per picture": count(found.grid[0] * found.grid[1]),
      "Codebook": count(found.codebook_size),
      "Bits per picture": `${count(Math.round(found.bits))} (${found.bits_per_pixel.toPrecision(3)} per pixel)`,
      "Codes used": `${count(found.used)} (${((100 * found.used) / found.codebook_size).toFixed(0)} % of the codebook)`,
      "Seconds per picture, here": found.seconds_per_picture.toPrecision(2),
    };
  }
}
