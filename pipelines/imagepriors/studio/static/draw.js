// Draw: pictures of a prior, code by code, by class and seed.

import { Controls } from "./controls.js";
import { Drawn } from "./drawn.js";
import { el, empty } from "./widgets.js";

export const draw = { id: "draw", title: "Draw", mount };

function mount(panel, contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer);
  if (!priors.length) {
    panel.append(empty("There is no prior with its tokenizer here. Train one, and open its run folder."));
    return;
  }
  const controls = new Controls(priors);
  const drawn = new Drawn("Press Draw to see what this prior draws. The pictures appear code by code.", "Conditions, of validation pictures");

  async function start() {
    if (!controls.form.reportValidity()) return;
    const last = await drawn.draw(controls.chosen, controls.values());
    if (last) drawn.tell(last.command);
  }

  controls.prior.addEventListener("change", () => drawn.clear());
  controls.form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  panel.append(el("div", { className: "columns" }, controls.form, el("div", { className: "stage" }, drawn.nodes)));
}
