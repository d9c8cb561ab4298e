// Draw: pictures of a prior, code by code, by class and seed.

import { Controls } from "./controls.js";
import { copyButton, el, empty, jobStatus, pictures } from "./widgets.js";

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
