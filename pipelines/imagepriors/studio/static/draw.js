// Draw: pictures of a prior, code by code, by class and seed.

import { button, copyButton, el, empty, jobStatus, number, numberOf, pictures, range, select } from "./widgets.js";

export const draw = { id: "draw", title: "Draw", mount };

function mount(panel, contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer);
  if (!priors.length) {
    panel.append(empty("There is no prior with its tokenizer here. Train one, and open its run folder."));
    return;
  }
  const job = jobStatus();
  const results = pictures("Sample");
  const hints = pictures("Condition", "pictures small");
  const beforehand = el("div", { hidden: true }, el("h3", {}, "Conditions, of validation pictures"), hints);
  const command = el("code");
  const copied = el("div", { className: "command", hidden: true }, command, copyButton(() => command.textContent));
  const controls = new Controls(priors);

  async function start() {
    if (!controls.form.reportValidity()) return;
    const request = controls.values();
    const last = await job.start("draw", request, (event) => event.pictures && results.show(event.pictures));
    if (!last) return;
    results.show(last.pictures, captions(last, request.prior));
    hints.show(last.hints);
    beforehand.hidden = !last.hints.length;
    command.textContent = last.command;
    copied.hidden = !last.command;
  }

  function captions(last, name) {
    const names = priors.find((prior) => prior.name === name).class_names;
    return last.classes.map((label) => names[label] || `class ${label}`);
  }

  controls.form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  panel.append(
    el("div", { className: "columns" },
      controls.form,
      el("div", { className: "stage" }, job.node, results, beforehand, copied)),
  );
}

/** The form: which prior, and how to sample from it. */
export class Controls {
  constructor(priors, legend = "") {
    this.priors = priors;
    this.prior = select("Prior", priors.map((prior) => prior.name), priors[0].name, () => this.adapt());
    this.about = el("p", { className: "note" });
    this.label = select("Class", [], "");
    this.seed = number("Seed", 0, { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, required: true });
    this.n = number("Pictures", 4, { min: 1, max: 16, step: 1, required: true });
    this.temperature = range("Temperature", 1, { min: 0.1, max: 2, step: 0.05 });
    this.topK = number("Top-k", null, { min: 1, step: 1, placeholder: "all codes" });
    this.topP = range("Top-p", 1, { min: 0.05, max: 1, step: 0.05 });
    this.guidance = range("Guidance", 1, { min: 1, max: 8, step: 0.25 });
    this.steps = number("Steps", 0, { min: 0, step: 1, required: true }, undefined, "0: one code per step");
    const next = button("Next seed", () => { this.seed.value = numberOf(this.seed) + 1; this.form.requestSubmit(); });
    this.form = el("form", { className: "controls", "aria-label": legend || "How to draw" },
      this.prior.parentElement, this.about, this.label.parentElement,
      el("div", { className: "pair" }, this.seed.parentElement, this.n.parentElement),
      el("details", {}, el("summary", {}, "Sampling"),
        this.temperature.parentElement, this.topK.parentElement, this.topP.parentElement,
        this.guidance.parentElement, this.steps.parentElement),
      el("div", { className: "actions" }, el("button", { type: "submit", className: "main" }, "Draw"), next));
    this.adapt();
  }

  get chosen() {
    return this.priors.find((prior) => prior.name === this.prior.value);
  }

  /** Show what the chosen prior has. */
  adapt() {
    const prior = this.chosen;
    const classes = prior.conditions.find((part) => part.name === "class");
    this.about.textContent = `${prior.grid.join(" × ")} codes in ${prior.order}, of ${prior.codebook_size} in the codebook`;
    this.label.parentElement.hidden = !classes;
    const names = Array.from({ length: classes?.vocabulary ?? 0 }, (_, index) => [index, prior.class_names[index] || index]);
    this.label.replaceChildren(...[["", "all in turn"], ...names].map(([value, text]) => el("option", { value }, text)));
    const sampling = prior.sampling;
    this.topK.value = sampling.top_k ?? "";
    for (const [input, value] of [[this.temperature, sampling.temperature], [this.topP, sampling.top_p], [this.guidance, sampling.guidance]]) {
      input.value = value;
      input.dispatchEvent(new Event("input"));
    }
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
