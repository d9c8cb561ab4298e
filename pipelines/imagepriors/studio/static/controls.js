// How a person has a prior draw.

import { count } from "./text.js";
import { button, el, number, numberOf, range, select, setOptions } from "./widgets.js";

/**
 * The form: which prior, and how to sample from it. `action` is the text of its button, `most` the number of pictures at
 * most; with `shared`, class, seed, number of pictures and buttons are those of another form, and only values here.
 */
export class Controls {
  constructor(priors, { legend = "How to draw", title = "Prior", chosen = priors[0].name, action = "Draw", most = 16, shared = false } = {}) {
    this.priors = priors;
    this.prior = select(title, priors.map((prior) => prior.name), chosen, () => this.adapt());
    this.about = el("p", { className: "note" });
    this.label = select("Class", [], "");
    this.seed = number("Seed", 0, { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, required: true });
    this.n = number("Pictures", 4, { min: 1, max: most, step: 1, required: true });
    this.temperature = range("Temperature", 1, { min: 0.1, max: 2, step: 0.05 });
    this.topK = number("Top-k", null, { min: 1, step: 1, placeholder: "all codes" });
    this.topP = range("Top-p", 1, { min: 0.05, max: 1, step: 0.05 });
    this.guidance = range("Guidance", 1, { min: 1, max: 8, step: 0.25 });
    this.steps = number("Steps", 0, { min: 0, step: 1, required: true }, undefined, "0: one code per step");
    const next = button("Next seed", () => { this.seed.value = numberOf(this.seed) + 1; this.form.requestSubmit(); });
    const what = [this.label.parentElement, el("div", { className: "pair" }, this.seed.parentElement, this.n.parentElement)];
    const buttons = el("div", { className: "actions" }, el("button", { type: "submit", className: "main" }, action), next);
    this.form = el("form", { className: "controls", "aria-label": legend },
      this.prior.parentElement, this.about, shared ? null : what,
      el("details", {}, el("summary", {}, "Sampling"),
        this.temperature.parentElement, this.topK.parentElement, this.topP.parentElement,
        this.guidance.parentElement, this.steps.parentElement),
      shared ? null : buttons);
    this.adapt();
  }

  get chosen() {
    return this.priors.find((prior) => prior.name === this.prior.value);
  }

  /** Show what the chosen prior has. */
  adapt() {
    const prior = this.chosen;
    const classes = prior.conditions.find((part) => part.name === "class");
    this.about.textContent = `${layout(prior)}, of ${count(prior.codebook_size)} in the codebook`;
    this.label.parentElement.hidden = !classes;
    const names = Array.from({ length: classes?.vocabulary ?? 0 }, (_, index) => [index, prior.class_names[index] || index]);
    setOptions(this.label, [["", "all in turn"], ...names], "");
    const sampling = prior.sampling;
    this.topK.value = sampling.top_k ?? "";
    for (const [input, value] of [[this.temperature, sampling.temperature], [this.topP, sampling.top_p], [this.guidance, sampling.guidance]]) {
      input.value = value;
      input.dispatchEvent(new Event("input"));
    }
    this.steps.value = sampling.steps;
    this.guidance.parentElement.hidden = !prior.can_be_guided;
    this.steps.parentElement.hidden = prior.objective === "ordered";
  }

  /** The request for the server. */
  values() {
    const prior = this.chosen;
    const sampling = {
      seed: numberOf(this.seed), temperature: Number(this.temperature.value), top_k: numberOf(this.topK),
      top_p: Number(this.topP.value), guidance: Number(this.guidance.value),
      ...(prior.objective === "ordered" ? {} : { steps: numberOf(this.steps) }),
    };
    const conditions = this.label.value === "" || this.label.parentElement.hidden ? {} : { class: Number(this.label.value) };
    return { prior: prior.name, n: numberOf(this.n), conditions, sampling };
  }
}

/** The number of codes that a prior draws for a picture: of the grid, and of all scales before it. */
export function codesOf(prior) {
  return [...prior.scales, prior.grid].reduce((sum, [height, width]) => sum + height * width, 0);
}

function layout(prior) {
  const [grid, ...coarser] = [...prior.scales, prior.grid].map((sides) => sides.join("\u00a0×\u00a0")).reverse();
  return coarser.length ? `${count(codesOf(prior))} codes in the scales ${coarser.reverse().join(", ")} and ${grid}` : `${grid} codes in ${prior.order}`;
}
