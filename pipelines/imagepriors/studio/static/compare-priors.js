// Two priors that draw the same class with the same seed.

import { ask } from "./api.js";
import { codesOf, Controls } from "./controls.js";
import { followers } from "./drawn.js";
import { turns } from "./latest.js";
import { rowsOf, side, valuesTable } from "./sides.js";
import { count } from "./text.js";
import { button, el, empty, JobStatus, number, numberOf, pictures, select, setOptions } from "./widgets.js";

const NAMES = {
  parameters: "Parameters", steps: "Steps of training", train_rows: "Rows of training", train_seconds: "Seconds of training",
  val_nll_nats: "Validation nll, nats per code", val_bits_per_code: "Validation bits per code",
};

export function comparePriors(contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer);
  if (!priors.length) return empty("There is no prior with its tokenizer here. Train one, and open its run folder.");
  const sides = ["A", "B"].map((letter, index) => new Side(letter, priors, priors[index % priors.length].name, changed));
  const label = select("Class", [], "");
  const seed = number("Seed", 0, { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, required: true });
  const n = number("Pictures", 4, { min: 1, max: 16, step: 1, required: true });
  const note = el("p", { className: "note", role: "status" });
  const next = button("Next seed", () => { seed.value = numberOf(seed) + 1; shared.requestSubmit(); });
  const shared = el("form", { className: "controls compare-shared", "aria-label": "What both sides draw" },
    label.parentElement, seed.parentElement, n.parentElement,
    el("div", { className: "actions" }, el("button", { type: "submit", className: "main" }, "Draw both"), next), note);
  const results = rowsOf(["A", "B"]);
  const figures = new Figures();

  function changed() {
    const names = new Set(sides.flatMap((one) => one.classes));
    setOptions(label, [["", "all in turn"], ...names]);
    label.parentElement.hidden = !names.size;
    explain();
    show();
    figures.show(sides);
  }

  function show() {
    results.show(sides.map((one) => one.pictures), sides.map((one) => one.captions));
  }

  /** Say which side has not the chosen class. */
  function explain() {
    note.textContent = sides.map((one) => one.lack(label.value)).filter(Boolean).join(" ");
  }

  async function start() {
    if (![shared, ...sides.map((one) => one.controls.form)].every((form) => form.reportValidity())) return;
    explain();
    const values = { seed: numberOf(seed), n: numberOf(n), name: label.value };
    sides.forEach((one) => one.clear());
    await Promise.all(sides.map((one) => one.draw(values, show)));
    figures.show(sides);
  }

  label.addEventListener("change", explain);
  shared.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  changed();
  return el("div", { className: "compare" }, shared,
    el("div", { className: "compare-sides" }, sides.map((one) => one.node)),
    results, el("section", { className: "card" }, el("h2", {}, "Figures"), figures.node));
}

/** A table of what is known of both priors. */
class Figures {
  constructor() {
    this.turn = turns();
    this.node = el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Figures of both priors" });
  }

  async show(sides) {
    const isLast = this.turn();
    const different = sides[0].prior.tokenizer !== sides[1].prior.tokenizer;
    try {
      const found = await Promise.all(sides.map((one) => one.figures()));
      if (!isLast()) return;
      this.node.replaceChildren(valuesTable([...new Set(found.flatMap(Object.keys))], found),
        el("p", { className: "note" }, different ? "These priors draw codes of different tokenizers: figures per code do not compare." : ""));
    } catch (error) {
      if (isLast()) this.node.replaceChildren(el("p", { className: "note" }, error.message));
    }
  }
}

class Side {
  constructor(letter, priors, name, onchange) {
    this.letter = letter;
    this.job = new JobStatus();
    this.hints = pictures(`Condition of ${letter}`, "pictures small");
    this.controls = new Controls(priors, { legend: `How prior ${letter} draws`, title: `Prior ${letter}`, chosen: name, shared: true });
    const { form, prior } = this.controls;
    form.addEventListener("submit", (event) => event.preventDefault());
    prior.addEventListener("change", () => { this.clear(); onchange(); });
    this.node = side(letter, form, this.job.node, this.hints);
    this.clear();
  }

  get prior() {
    return this.controls.chosen;
  }

  /** Names of the classes of the prior, numbers where they have none. */
  get classes() {
    const part = this.prior.conditions.find((one) => one.name === "class");
    return Array.from({ length: part?.vocabulary ?? 0 }, (_, index) => this.prior.class_names[index] || String(index));
  }

  lack(name) {
    if (name === "" || this.classes.includes(name)) return "";
    return this.classes.length ? `${this.prior.name} has no class ${name}: it draws all in turn.` : `${this.prior.name} has no classes.`;
  }

  /** Show nothing, and stop what is drawn. */
  clear() {
    this.job.clear();
    [this.pictures, this.captions, this.perPicture] = [[], [], null];
    this.hints.show([]);
  }

  async draw({ seed, n, name }, show) {
    const { controls, classes, prior } = this;
    const index = classes.indexOf(name);
    controls.seed.value = seed;
    controls.n.value = n;
    controls.label.value = index < 0 ? "" : index;
    let begun = null;
    const last = await this.job.start("draw", controls.values(), (event) => {
      begun ??= event.done ? { at: performance.now(), done: event.done } : null;
      if (!event.pictures) return;
      this.pictures = event.pictures;
      show();
    });
    if (!last) return;
    this.pictures = last.pictures;
    this.hints.show(last.hints, followers(last).map((text) => `${this.letter}: condition of ${text.toLowerCase()}`));
    this.captions = last.classes.map((one) => classes[one] ?? "");
    const total = n * codesOf(prior);
    const whole = begun && begun.done < total ? (performance.now() - begun.at) / 1000 / (1 - begun.done / total) : last.seconds;
    this.perPicture = whole / n; // without the time in which networks are loaded
    show();
  }

  /** Name → text of what is known. */
  async figures() {
    const { prior, perPicture } = this;
    const { figures } = await ask("figures", { prior: prior.name });
    const known = Object.entries(figures).map(([name, value]) => [NAMES[name] ?? title(name), text(value)]);
    const time = perPicture === null ? [] : [["Seconds per picture, here", text(perPicture)]];
    return Object.fromEntries([...time, ["Codes per picture", count(codesOf(prior))], ...known]);
  }
}

function title(name) {
  return `Evaluation: ${name.replaceAll("_", " ")}`;
}

function text(value) {
  return Number.isInteger(value) ? count(value) : value.toPrecision(4);
}
