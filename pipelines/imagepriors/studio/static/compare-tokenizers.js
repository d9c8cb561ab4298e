// Two tokenizers that encode and decode the same pictures.

import { count, megabytes } from "./charts.js";
import { rowsOf, side, valuesTable } from "./compare.js";
import { dataUri, picker } from "./pick.js";
import { button, el, empty, jobStatus, number, numberOf, select } from "./widgets.js";

const SHOWN = [["reconstructions", "Reconstructions"], ["originals", "As each tokenizer sees it"], ["differences", "Differences × 4"]];

export function compareTokenizers(contents) {
  const tokenizers = contents.tokenizers.filter((one) => one.modality === "rgb");
  if (!tokenizers.length) return empty("There is no tokenizer of pictures here. Train one, and open its run folder.");
  const sides = ["A", "B"].map((letter, index) => new Side(letter, tokenizers, tokenizers[index % tokenizers.length].name, () => { choose(); if (choice.open) picked.refresh(); }));
  const decodable = contents.shards.filter((one) => one.tokenizer);
  const sources = decodable.flatMap((one) => Object.keys(one.splits).map((split) => [JSON.stringify([one.name, split]), `${one.name}, ${split}`]));
  const source = select("Pictures of", [...sources, ["", "your choice"]], sources.find(([value]) => JSON.parse(value)[1] === "val")?.[0], adapt);
  const n = number("Pictures", 6, { min: 1, max: 16, step: 1, required: true });
  const note = el("p", { className: "note", role: "status" });
  const file = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: open });
  const chooser = button("Open pictures …", () => file.click());
  const others = button("Other pictures", () => { first += 1; start(); });
  const picked = picker(contents, () => sides[0].tokenizer.value, ({ picture, name }) => take([picture], [name]));
  const choice = el("details", { ontoggle: () => choice.open && picked.refresh() }, el("summary", {}, "Choose one picture of the shards of tokenizer A"), picked.node);
  const form = el("form", { className: "controls compare-shared", "aria-label": "Pictures that both tokenizers encode" },
    source.parentElement, n.parentElement,
    el("div", { className: "actions" }, el("button", { type: "submit", className: "main" }, "Reconstruct"), others, chooser, file), note, choice);
  const switches = SHOWN.map(([kind, title]) => button(title, () => choose(kind), { className: "quiet", data: { kind } }));
  const results = rowsOf(["Original", "A", "B"]);
  const figures = el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Figures of both tokenizers" });
  const shown = el("div", { className: "actions", role: "group", "aria-label": "What to show of the pictures", hidden: true }, switches);
  const card = el("section", { className: "card", hidden: true }, el("h2", {}, "Figures of these pictures"), figures, el("p", { className: "note" },
    "PSNR is measured at the resolution of each tokenizer, on the picture as that tokenizer sees it."));
  let [first, kind, files, names] = [0, SHOWN[0][0], [], []];

  function adapt() {
    const ofShards = source.value !== "";
    n.parentElement.hidden = others.hidden = !ofShards;
    chooser.hidden = choice.hidden = ofShards;
    note.textContent = ofShards
      ? "Pictures of shards are decoded codes, which the tokenizer that made them reconstructs best. Pictures of your own compare fairly."
      : files.length ? names.join(", ") : "Open pictures of the disk, or choose one.";
  }

  async function open() {
    try {
      const size = [...file.files].reduce((sum, one) => sum + one.size, 0);
      if (size > contents.largest_file) throw new Error(`These pictures have ${megabytes(size)}: open at most ${megabytes(contents.largest_file)}.`);
      await take(await Promise.all([...file.files].map(dataUri)), [...file.files].map((one) => one.name));
    } catch (error) {
      note.textContent = error.message;
    } finally {
      file.value = "";
    }
  }

  function take(pictures, titles) {
    [files, names] = [pictures, titles];
    adapt();
    return start();
  }

  function choose(chosen = kind) {
    kind = chosen;
    for (const one of switches) one.setAttribute("aria-pressed", one.dataset.kind === kind);
    const found = sides.map((one) => one.found);
    const captions = names.length && source.value === "" ? names : found.find(Boolean)?.names ?? [];
    const finest = found.filter(Boolean).sort((one, other) => other.resolution - one.resolution)[0];
    results.show([finest?.originals ?? [], ...found.map((one) => one?.[kind] ?? [])], [[], ...found.map((one) => one?.psnr_db.map((value) => `${value.toFixed(1)} dB`) ?? [])], captions);
    shown.hidden = card.hidden = !found.some(Boolean);
    const values = sides.map((one) => one.values());
    figures.replaceChildren(valuesTable([...new Set(values.flatMap(Object.keys))], values));
  }

  async function start() {
    if (!form.reportValidity()) return;
    if (source.value === "" && !files.length) return file.click();
    const [shards, split] = source.value === "" ? [] : JSON.parse(source.value);
    const request = shards ? { shards, split, first, n: numberOf(n) } : { pictures: files };
    sides.forEach((one) => { one.found = null; });
    await Promise.all(sides.map(async (one) => {
      one.found = await one.job.start("reconstruct", { tokenizer: one.tokenizer.value, ...request });
      choose();
    }));
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  adapt();
  return el("div", { className: "compare" }, form, el("div", { className: "compare-sides" }, sides.map((one) => one.node)), shown, results, card);
}

class Side {
  constructor(letter, tokenizers, name, onchange) {
    this.job = jobStatus();
    this.found = null;
    const about = el("p", { className: "note" });
    const adapt = () => {
      const chosen = tokenizers.find((one) => one.name === this.tokenizer.value);
      about.textContent = `${chosen.resolution} × ${chosen.resolution} pixels to ${chosen.grid.join(" × ")} codes, of ${count(chosen.codebook_size)} in the codebook`;
    };
    this.tokenizer = select(`Tokenizer ${letter}`, tokenizers.map((one) => one.name), name, () => {
      this.found = null;
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
