// Compare: two priors, or two tokenizers, side by side.

import { comparePriors } from "./compare-priors.js";
import { compareTokenizers } from "./compare-tokenizers.js";
import { button, el } from "./widgets.js";

export const compare = { id: "compare", title: "Compare", mount };

function mount(panel, contents) {
  const parts = [["Priors", comparePriors(contents)], ["Tokenizers", compareTokenizers(contents)]];
  const switches = parts.map(([title], index) => button(title, () => choose(index), { className: "quiet" }));

  function choose(index) {
    parts.forEach(([, node], one) => {
      node.hidden = one !== index;
      switches[one].setAttribute("aria-pressed", one === index);
    });
  }

  panel.append(
    el("div", { className: "actions compare-parts", role: "group", "aria-label": "What to compare" }, switches),
    ...parts.map(([, node]) => node));
  choose(contents.priors.some((prior) => prior.tokenizer) ? 0 : 1);
}
