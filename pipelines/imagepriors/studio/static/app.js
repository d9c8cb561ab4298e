// The page: its tabs, the theme, and what it shows.

import { contents } from "./api.js";
import { compare } from "./compare.js";
import { complete } from "./complete.js";
import { draw } from "./draw.js";
import { paint } from "./paint.js";
import { shards } from "./shards.js";
import { sentence } from "./text.js";
import { tokens } from "./tokens.js";
import { el, empty } from "./widgets.js";

/** Tabs in their order. Each has an id, a title, and `mount(panel, contents)`, which fills its panel when it is first shown. */
const TABS = [draw, paint, complete, tokens, shards, compare];

const tabs = document.getElementById("tabs");
const panels = document.getElementById("panels");

function select(id, focus = false) {
  for (const tab of TABS) {
    const chosen = tab.id === id;
    const [control, panel] = [document.getElementById(`tab-${tab.id}`), document.getElementById(tab.id)];
    control.setAttribute("aria-selected", chosen);
    control.tabIndex = chosen ? 0 : -1;
    panel.hidden = !chosen;
    if (chosen && !panel.dataset.mounted) {
      panel.dataset.mounted = "true";
      tab.mount(panel, tab.contents);
    }
    if (chosen) control.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (chosen && focus) control.focus();
  }
  history.replaceState(null, "", `#${id}`);
}

function moveBy(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: -TABS.length, End: TABS.length }[event.key];
  if (!step) return;
  const at = TABS.findIndex((tab) => document.getElementById(`tab-${tab.id}`).ariaSelected === "true");
  const next = Math.abs(step) > 1 ? (step < 0 ? 0 : TABS.length - 1) : (at + step + TABS.length) % TABS.length;
  select(TABS[next].id, true);
  event.preventDefault();
}

function chosen() {
  const id = location.hash.slice(1);
  return TABS.some((tab) => tab.id === id) ? id : TABS[0].id;
}

function prepareTheme() {
  const set = (theme) => { document.documentElement.dataset.theme = theme; };
  if (localStorage.theme) set(localStorage.theme);
  document.getElementById("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    set(localStorage.theme = dark ? "light" : "dark");
  });
}

async function open() {
  prepareTheme();
  try {
    const found = await contents();
    document.getElementById("place").textContent = found.title;
    document.title = `${found.title} · imagepriors studio`;
    tabs.before(...found.problems.map((problem) => el("p", { className: "note" }, sentence(problem))));
    for (const tab of TABS) {
      tab.contents = found;
      const control = { id: `tab-${tab.id}`, type: "button", role: "tab", onclick: () => select(tab.id), onkeydown: moveBy };
      tabs.append(el("button", { ...control, "aria-controls": tab.id }, tab.title));
      panels.append(el("section", { id: tab.id, role: "tabpanel", hidden: true, "aria-labelledby": control.id }));
    }
    document.getElementById("opening").remove();
    addEventListener("hashchange", () => select(chosen()));
    select(chosen());
  } catch (error) {
    document.getElementById("opening").replaceWith(empty(error.message));
  }
}

open();
