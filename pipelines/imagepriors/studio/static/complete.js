// Complete: erase a part of a picture, and let a prior draw it anew.

import { ask } from "./api.js";
import { Cells, mask, outline } from "./cells.js";
import { Controls } from "./controls.js";
import { canvasOf, loaded, savePng } from "./files.js";
import { hasCells } from "./grid.js";
import { turns } from "./latest.js";
import { Picker } from "./pick.js";
import { button, copyButton, el, empty, JobStatus, picture, pictures, range, switchOff } from "./widgets.js";

export const complete = { id: "complete", title: "Complete", mount };

const NAMES = { upper: "Upper half", left: "Left half", corner: "Corner", centre: "Centre", checkerboard: "Checkerboard" };

function mount(panel, contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer);
  if (!priors.length) {
    panel.append(empty("There is no prior with its tokenizer here. Train one, and open its run folder."));
    return;
  }
  const controls = new Controls(priors, { legend: "How to complete", action: "Complete", most: 8 });
  const editor = new Editor();
  const results = new Results();
  const job = new JobStatus();
  const chooser = new Picker(contents, () => controls.chosen.tokenizer, (chosen) => {
    editor.choose(chosen);
    takeClass();
  });
  const begin = turns();
  let tokenizer = null;

  function adapt() {
    begin(); // what is under way is of another prior
    job.clear();
    results.clear();
    editor.adapt(controls.chosen);
    if (controls.chosen.tokenizer === tokenizer) return takeClass();
    tokenizer = controls.chosen.tokenizer;
    editor.choose(null);
    chooser.refresh({ first: true });
  }

  function takeClass() {
    if (Number.isInteger(editor.chosen?.label)) controls.label.value = editor.chosen.label;
  }

  async function start() {
    if (!controls.form.reportValidity()) return;
    const isLast = begin();
    try {
      const [prior, values, part] = [controls.chosen, controls.values(), editor.part()];
      results.begin(part);
      values.conditions = { ...await conditionsOf(prior, part.chosen), ...values.conditions };
      if (!isLast()) return;
      const request = { ...values, codes: part.chosen.codes, ...part.kept };
      const last = await job.start("draw", request, (event) => event.pictures && results.show(event.pictures));
      if (last) results.finish(last, values.conditions.class === undefined ? prior.class_names : []);
    } catch (error) {
      if (isLast()) job.fail(error);
    }
  }

  controls.form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  controls.prior.addEventListener("change", adapt);
  panel.append(el("div", { className: "columns completing" },
    el("div", { className: "stage editing" }, editor.node, el("div", { className: "card" }, el("h2", {}, "Picture"), chooser.node)),
    controls.form,
    el("div", { className: "stage" }, job.node, results.node)));
  adapt();
}

/** The codes of a row of shards for a prior that draws from a picture condition. */
async function conditionsOf(prior, { shards, split, index }) {
  if (shards === undefined || prior.conditions.every((part) => part.name === "class")) return {};
  return (await ask("row_conditions", { prior: prior.name, shards, split, index })).conditions;
}

/** The picture, and which part of it is kept. */
class Editor {
  constructor() {
    this.chosen = null;
    this.cells = new Cells(() => this.changed());
    this.nothing = empty("Choose a picture to complete.");
    this.status = el("p", { className: "note", role: "status" });
    this.about = el("p", { className: "note" });
    this.first = range("Codes to keep", 0, { min: 0, max: 1, step: 1 }, (count) => this.cells.keepFirst(count));
    this.first.addEventListener("change", () => this.cells.remember());
    this.scales = range("Scales to keep", 1, { min: 1, max: 1, step: 1 }, () => this.changed());
    this.presets = el("div", { className: "actions", role: "group", "aria-label": "Regions to keep" });
    const tool = (text, rectangle) => button(text, () => this.use(rectangle), { className: "quiet" });
    this.tools = [tool("Brush", false), tool("Rectangle", true)];
    this.brushes = el("div", { className: "actions", role: "group", "aria-label": "Tools" }, this.tools);
    this.undo = button("Undo", () => this.cells.undo(), { className: "quiet" });
    this.redo = button("Redo", () => this.cells.redo(), { className: "quiet" });
    this.invert = button("Invert", () => this.cells.invert(), { className: "quiet" });
    this.work = el("div", { className: "options", hidden: true }, this.cells.node,
      this.status, this.first.parentElement, this.scales.parentElement,
      el("div", { className: "actions" }, this.brushes, this.invert, this.undo, this.redo, this.presets), this.about);
    this.node = el("div", {}, this.nothing, this.work);
    this.use(false);
  }

  use(rectangle) {
    this.cells.rectangle = rectangle;
    this.tools.forEach((one, index) => one.setAttribute("aria-pressed", Boolean(index) === rectangle));
  }

  /** Offer what a prior can keep. */
  adapt(prior) {
    this.prior = prior;
    this.order = prior.objective === "ordered" || !hasCells(prior.grid);
    const cells = prior.grid[0] * prior.grid[1];
    const scaled = prior.scales.length > 0;
    this.first.max = cells - 1;
    this.scales.max = prior.scales.length;
    this.cells.cover(!scaled && hasCells(prior.grid));
    this.first.parentElement.hidden = scaled || !this.order;
    this.scales.parentElement.hidden = !scaled;
    this.brushes.hidden = this.invert.hidden = scaled || this.order;
    this.undo.hidden = this.redo.hidden = scaled;
    this.about.textContent = about(prior);
    this.offer(prior.regions, cells);
    const kept = new Set(this.order ? prior.permutation.slice(0, Math.floor(cells / 2)) : prior.regions.upper);
    this.cells.adapt(prior.grid, this.order ? prior.permutation : null, Array.from({ length: cells }, (_, cell) => kept.has(cell)));
    this.scales.value = prior.scales.length;
    this.scales.dispatchEvent(new Event("input"));
  }

  offer(regions, cells) {
    const all = { all: Array.from({ length: cells }, (_, cell) => cell), none: [] };
    const named = Object.entries({ ...(this.order ? {} : all), ...regions });
    const names = { all: "Everything", none: "Nothing", ...NAMES };
    this.presets.replaceChildren(...named.map(([name, kept]) => button(names[name] ?? name, () => this.cells.keepOnly(kept), { className: "quiet" })));
    this.presets.hidden = !named.length;
  }

  choose(chosen) {
    this.chosen = chosen;
    this.nothing.hidden = Boolean(chosen);
    this.work.hidden = !chosen;
    if (!chosen) return;
    this.cells.image.src = chosen.decoded;
    this.cells.image.alt = `The picture ${chosen.name}`;
    this.cells.image.onload = () => this.cells.image.classList.toggle("crisp", this.cells.image.naturalWidth <= 128);
  }

  changed() {
    const { scales } = this.prior;
    switchOff(this.undo, !this.cells.history.canUndo);
    switchOff(this.redo, !this.cells.history.canRedo);
    this.first.value = this.cells.count;
    this.first.parentElement.querySelector("output").value = this.cells.count;
    const kept = Number(this.scales.value);
    this.status.textContent = scales.length
      ? `The first ${kept} of ${scales.length + 1} scales are kept: ${scales.slice(0, kept).map((grid) => grid.join(" × ")).join(", ")}.`
      : `${this.cells.count} of ${this.cells.kept.length} codes are kept.`;
  }

  /** What a request needs: the chosen picture, and what of it is kept. */
  part() {
    if (!this.chosen) throw new Error("Choose a picture first.");
    const scaled = this.prior.scales.length > 0;
    return {
      chosen: this.chosen,
      grid: this.prior.grid,
      cells: scaled ? null : [...this.cells.kept],
      kept: scaled ? { scales: Number(this.scales.value) } : { known: this.cells.known },
    };
  }
}

/** What a person can keep, in a sentence. */
function about(prior) {
  if (prior.scales.length) return "This prior draws coarse scales first: it keeps the first scales, and draws the finer ones.";
  if (prior.objective === "ordered") return `This prior draws in ${prior.order}, which the line shows: it keeps what the order begins with. A prior of any order keeps any cells.`;
  if (!hasCells(prior.grid)) return "The codes of this tokenizer are in a row, without places on the picture: keep the first of them.";
  return "Draw over the picture to erase cells, and over erased ones to keep them.";
}

/** The completions beside the original, and the command that draws them. */
class Results {
  constructor() {
    this.original = el("div", { className: "apart" });
    this.drawn = pictures("Completion", "apart");
    this.shown = el("input", { type: "checkbox", checked: true, id: "outlined", onchange: () => this.node.classList.toggle("outlined", this.shown.checked) });
    this.command = el("code");
    this.save = el("div", { className: "actions" },
      button("Save picture.png", () => this.download("picture.png"), { className: "quiet" }),
      button("Save mask.png", () => this.download("mask.png"), { className: "quiet" }));
    this.copied = el("div", { className: "command" }, this.command, copyButton(() => this.command.textContent));
    this.note = el("p", { className: "note" });
    this.below = el("div", { hidden: true }, this.copied, this.save, this.note);
    this.toggle = el("label", { className: "check", htmlFor: "outlined" }, this.shown, "Outline the kept cells");
    this.node = el("div", { className: "results outlined", hidden: true }, this.toggle,
      el("div", { className: "pictures" }, this.original, this.drawn), this.below);
  }

  clear() {
    this.node.hidden = true;
  }

  begin(part) {
    this.part = part;
    this.node.hidden = false;
    this.below.hidden = true;
    this.toggle.hidden = !part.cells || !hasCells(part.grid);
    this.original.replaceChildren(this.marked(picture(part.chosen.decoded, "The original", "Original, decoded")));
    this.drawn.replaceChildren();
  }

  show(sources, names = []) {
    this.drawn.show(sources, sources.map((_, index) => names[index] || `Completion ${index + 1}`));
    for (const figure of this.drawn.children) if (!figure.querySelector("svg")) this.marked(figure);
  }

  marked(figure) {
    if (!this.toggle.hidden) figure.append(outline(this.part.cells, this.part.grid));
    return figure;
  }

  finish({ pictures: drawn, classes, kept, command }, names) {
    this.show(drawn, classes.map((label) => names[label]));
    if (!this.part.cells) this.original.append(picture(kept[0], "The scales that are kept", "Kept, decoded"));
    const own = this.part.chosen.shards === undefined;
    const files = command.includes("picture.png");
    const usable = command && (own || !files);
    this.command.textContent = usable ? command : "";
    this.copied.hidden = !usable;
    this.save.hidden = !usable || !files;
    this.note.textContent = note(own, command, files);
    this.below.hidden = false;
  }

  async download(name) {
    const { chosen, cells, grid } = this.part;
    const image = await loaded(chosen.picture);
    savePng(name === "mask.png" ? mask(cells, grid, [image.naturalHeight, image.naturalWidth]) : canvasOf(image), name);
  }
}

/** What to know about the command. */
function note(own, command, files) {
  if (!command) return "Only this page draws this: imagepriors sample takes such scales and conditions from validation pictures.";
  if (files && !own) return "Shards store codes, not pixels, so no command completes this row: open the picture itself for one.";
  if (files) return "Save both files where the command runs. Each picture that it names is completed equally often, until there are n.";
  return "";
}
