// Complete: erase a part of a picture, and let a prior draw it anew.

import { ask } from "./api.js";
import { Cells, mask, outline } from "./cells.js";
import { Controls } from "./draw.js";
import { picker } from "./pick.js";
import { button, copyButton, el, empty, jobStatus, picture, pictures, range } from "./widgets.js";

export const complete = { id: "complete", title: "Complete", mount };

const NAMES = { upper: "Upper half", left: "Left half", corner: "Corner", centre: "Centre", checkerboard: "Checkerboard" };

function mount(panel, contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer);
  if (!priors.length) {
    panel.append(empty("There is no prior with its tokenizer here. Train one, and open its run folder."));
    return;
  }
  const controls = new Controls(priors, "How to complete");
  controls.form.querySelector("button.main").textContent = "Complete";
  controls.n.max = 8;
  const editor = new Editor(controls);
  const results = new Results();
  const job = jobStatus();
  const chooser = picker(contents, () => controls.chosen.tokenizer, (chosen) => {
    editor.choose(chosen);
    if (Number.isInteger(chosen.label)) controls.label.value = chosen.label;
  });
  let [tokenizer, ready] = [null, null];

  async function adapt() {
    try {
      const prior = controls.chosen;
      await editor.adapt(prior);
      if (prior.tokenizer !== tokenizer) {
        tokenizer = prior.tokenizer;
        editor.choose(null);
        await chooser.refresh();
        chooser.first();
      } else if (Number.isInteger(editor.chosen?.label)) controls.label.value = editor.chosen.label;
    } catch (error) {
      job.fail(error);
    }
  }

  async function start() {
    if (!controls.form.reportValidity()) return;
    try {
      await ready;
      const part = editor.part();
      const values = controls.values();
      results.begin(part);
      values.conditions = { ...await conditionsOf(controls.chosen, part.chosen), ...values.conditions };
      const request = { ...values, codes: part.chosen.codes, ...part.kept };
      const last = await job.start("draw", request, (event) => event.pictures && results.show(event.pictures));
      if (last) results.finish(last, values.conditions.class === undefined ? controls.chosen.class_names : []);
    } catch (error) {
      job.fail(error);
    }
  }

  controls.form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  controls.prior.addEventListener("change", () => { ready = adapt(); });
  panel.append(el("div", { className: "columns completing" },
    el("div", { className: "stage editing" }, editor.node, el("div", { className: "card" }, el("h2", {}, "Picture"), chooser.node)),
    controls.form,
    el("div", { className: "stage" }, job.node, results.node)));
  ready = adapt();
}

/** The codes of a row of shards for a prior that draws from a picture condition. */
async function conditionsOf(prior, { shards, split, index }) {
  if (shards === undefined || prior.conditions.every((part) => part.name === "class")) return {};
  return (await ask("row_conditions", { prior: prior.name, shards, split, index })).conditions;
}

/** The picture, and which part of it is kept. */
class Editor {
  constructor(controls) {
    this.controls = controls;
    this.chosen = null;
    this.cells = new Cells(() => this.changed());
    this.nothing = empty("Choose a picture to complete.");
    this.status = el("p", { className: "note", role: "status" });
    this.about = el("p", { className: "note" });
    this.first = range("Codes to keep", 0, { min: 0, max: 1, step: 1 }, (count) => this.cells.slide(count));
    this.first.addEventListener("change", () => this.cells.end());
    this.scales = range("Scales to keep", 1, { min: 1, max: 1, step: 1 }, () => this.changed());
    this.presets = el("div", { className: "actions", role: "group", "aria-label": "Regions to keep" });
    const tool = (text, rectangle) => button(text, () => this.use(rectangle), { className: "quiet" });
    this.tools = [tool("Brush", false), tool("Rectangle", true)];
    this.brushes = el("div", { className: "actions", role: "group", "aria-label": "Tools" }, this.tools);
    this.undo = button("Undo", () => this.cells.undo(), { className: "quiet" });
    this.invert = button("Invert", () => this.cells.invert(), { className: "quiet" });
    this.work = el("div", { className: "editor", hidden: true }, this.cells.node,
      this.status, this.first.parentElement, this.scales.parentElement,
      el("div", { className: "actions" }, this.brushes, this.invert, this.undo, this.presets), this.about);
    this.node = el("div", {}, this.nothing, this.work);
    this.use(false);
  }

  use(rectangle) {
    this.cells.rectangle = rectangle;
    this.tools.forEach((one, index) => one.setAttribute("aria-pressed", Boolean(index) === rectangle));
  }

  /** Offer what a prior can keep. */
  async adapt(prior) {
    this.prior = null;
    const { regions } = await ask("regions", { prior: prior.name });
    if (prior !== this.controls.chosen) return;
    const flat = prior.grid.includes(1);
    this.prior = prior;
    this.order = prior.objective === "ordered" || flat;
    const cells = prior.grid[0] * prior.grid[1];
    this.first.max = cells - 1;
    this.scales.max = prior.scales.length;
    const scaled = prior.scales.length > 0;
    this.cells.cover(!scaled && !flat);
    this.first.parentElement.hidden = scaled || !this.order;
    this.scales.parentElement.hidden = !scaled;
    this.brushes.hidden = this.invert.hidden = scaled || this.order;
    this.undo.hidden = scaled;
    this.about.textContent = about(prior);
    this.offer(regions, cells);
    this.cells.adapt(prior.grid, this.order ? prior.permutation : null);
    if (this.order) this.cells.keepFirst(Math.floor(cells / 2), { step: false });
    else this.cells.keepOnly(regions.upper ?? []);
    this.cells.past.length = 0;
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
    if (!this.prior) return;
    const scales = this.prior.scales;
    this.undo.disabled = !this.cells.past.length;
    this.first.value = this.cells.count;
    this.first.parentElement.querySelector("output").value = this.cells.count;
    const kept = Number(this.scales.value);
    this.status.textContent = scales.length
      ? `The first ${kept} of ${scales.length + 1} scales are kept: ${scales.slice(0, kept).map((grid) => grid.join(" × ")).join(", ")}.`
      : `${this.cells.count} of ${this.cells.kept.length} codes are kept.`;
  }

  /** What a request needs: the chosen picture, and what of it is kept. */
  part() {
    if (!this.prior) throw new Error("The prior could not be opened: choose it again.");
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
  if (prior.grid.includes(1)) return "The codes of this tokenizer are in a row, without places on the picture: keep the first of them.";
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

  begin(part) {
    this.part = part;
    this.node.hidden = false;
    this.below.hidden = true;
    this.toggle.hidden = !part.cells || part.grid.includes(1);
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
    const image = el("img", { src: this.part.chosen.picture });
    await image.decode();
    const size = [image.naturalHeight, image.naturalWidth];
    const canvas = name === "mask.png" ? mask(this.part.cells, this.part.grid, size) : el("canvas", { width: size[1], height: size[0] });
    if (name === "picture.png") canvas.getContext("2d").drawImage(image, 0, 0);
    canvas.toBlob((blob) => {
      const link = el("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png");
  }
}

/** What to know about the command. */
function note(own, command, files) {
  if (!command) return "Only this page draws this: imagepriors sample takes such scales and conditions from validation pictures.";
  if (files && !own) return "Shards store codes, not pixels, so no command completes this row: open the picture itself for one.";
  if (files) return "Save both files where the command runs. Each picture that it names is completed equally often, until there are n.";
  return "";
}
