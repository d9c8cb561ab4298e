// Paint: draw pictures that follow a mask, a depth map or a pose of the person.

import { ask } from "./api.js";
import { Controls } from "./controls.js";
import { Drawn } from "./drawn.js";
import { dataUris } from "./files.js";
import { turns } from "./latest.js";
import { MapEditor } from "./mapeditor.js";
import { PoseEditor } from "./pose.js";
import { Starts } from "./starts.js";
import { button, el, empty, picture, select, setOptions, switchOff } from "./widgets.js";

export const paint = { id: "paint", title: "Paint", mount };

const PAUSE_MS = 200;

function mount(panel, contents) {
  const priors = contents.priors.filter((prior) => prior.tokenizer && painted(prior).length);
  if (priors.length) panel.append(new Painter(contents, priors).node);
  else panel.append(empty("No prior here is conditioned on segmentation, depth or pose. Train one that is, and open its run folder."));
}

/** The conditions of a prior that can be painted. */
function painted(prior) {
  return prior.conditions.filter((part) => part.tokenizer);
}

class Painter {
  constructor(contents, priors) {
    this.contents = contents;
    this.slots = new Map();
    this.drawing = turns();
    this.controls = new Controls(priors, { legend: "How to draw from what is painted" });
    this.which = select("Paint", [], "", () => this.open());
    this.live = el("input", { type: "checkbox", checked: true });
    this.place = el("div", { className: "paint-tools" });
    this.drawn = new Drawn("Paint something, or choose a map to start from. Pictures that follow it appear here.", "Other conditions, of validation pictures", "Copy Python");
    this.drawn.again.classList.add("script");
    this.seen = picture("", "The map as the prior sees it");
    this.seenNote = el("p", { className: "note", role: "status" });
    this.sight = el("div", { className: "seen" }, this.seen, el("div", {}, el("h3", {}, "What the prior sees"), this.seenNote));
    this.controls.prior.addEventListener("change", () => this.adapt());
    this.controls.form.addEventListener("submit", (event) => { event.preventDefault(); this.draw(); });
    this.controls.form.querySelector(".actions").before(el("label", { className: "check" }, this.live, "Draw after each stroke"));
    this.controls.about.after(this.which.parentElement);
    this.node = el("div", { className: "columns" }, this.controls.form,
      el("div", { className: "stage painting" }, this.place,
        el("div", { className: "drawn" }, this.sight, this.drawn.nodes)));
    this.adapt();
  }

  /** Offer what the chosen prior is conditioned on. */
  adapt() {
    clearTimeout(this.timer);
    this.drawing(); // what is under way is of another prior
    this.drawn.clear();
    setOptions(this.which, painted(this.controls.chosen).map((part) => part.name));
    this.which.parentElement.hidden = this.which.options.length < 2;
    return this.open();
  }

  /** Show the editor of the chosen condition; those of priors with the same tokenizer are the same. */
  async open() {
    const prior = this.controls.chosen;
    const part = prior.conditions.find(({ name }) => name === this.which.value);
    const slot = this.slots.get(part.tokenizer) ?? { prior: prior.name, condition: part.name };
    this.slot = slot;
    this.slots.set(part.tokenizer, slot);
    slot.node ??= this.prepare(slot, prior);
    this.showSeen(slot);
    this.place.replaceChildren(el("div", { className: "state", role: "status" }, "Loading …"));
    try {
      const node = await slot.node;
      if (slot === this.slot) this.place.replaceChildren(node);
    } catch (error) {
      slot.node = null;
      if (slot === this.slot) this.place.replaceChildren(empty(error.message, button("Try again", () => this.open())));
    }
  }

  async prepare(slot, prior) {
    const where = { prior: slot.prior, condition: slot.condition };
    const described = await ask("canvas", where);
    const names = this.contents.shards.find((shards) => shards.name === prior.shards)?.label_names ?? [];
    const changed = () => {
      slot.starts?.choices.mark(""); // the map is no longer the one that was chosen
      this.change(slot);
    };
    slot.editor = slot.condition === "pose" ? new PoseEditor(described, changed) : new MapEditor(slot.condition, described, names, changed);
    slot.starts = new Starts(slot.prior, slot.condition, (map) => slot.editor.load(map), (found) => slot.editor.add(found));
    const [first] = await slot.starts.show();
    slot.quiet = true; // the first map is there to be painted on, not to be drawn from
    if (first && slot.condition !== "pose") {
      slot.editor.begin(first);
      slot.starts.choices.mark(first.key);
    } else this.change(slot);
    slot.quiet = false;
    return el("div", { className: "paint-tools" }, slot.editor.node, this.files(slot),
      el("details", { open: true }, el("summary", {}, slot.condition === "pose" ? "Use a validation pose" : "Start from a validation map"), slot.starts.node));
  }

  /** Buttons that open and save a map. */
  files(slot) {
    const note = el("p", { className: "note", role: "status" });
    const say = (text, isBad) => {
      note.textContent = text;
      note.classList.toggle("bad", isBad);
    };
    const opening = turns();
    const file = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Map to open" });
    file.addEventListener("change", async () => {
      const [isLast, files] = [opening(), [...file.files]];
      file.value = "";
      say("Opening …", false);
      try {
        const [picture] = await dataUris(files, this.contents.largest_file);
        const map = await ask("upload", { prior: slot.prior, condition: slot.condition, picture });
        if (!isLast()) return;
        slot.editor.load(map);
        say("", false);
      } catch (error) {
        if (isLast()) say(error.message, true);
      }
    });
    const open = slot.condition === "pose" ? null : button("Open a map …", () => file.click(), { className: "quiet" });
    const save = async () => {
      await slot.encoding;
      if (slot.encoded?.file) el("a", { href: slot.encoded.file, download: `${slot.condition}.png` }).click();
    };
    slot.save = button("Save map", save, { className: "quiet" });
    return el("div", { className: "actions files" }, open, slot.save, file, note);
  }

  /** Encode the map, and draw from it. */
  async change(slot) {
    slot.abort?.abort();
    slot.abort = new AbortController();
    const isQuiet = slot.quiet;
    slot.changed = performance.now();
    slot.encoding = this.encode(slot, slot.editor.request(), slot.abort.signal);
    if (await slot.encoding && !isQuiet && this.live.checked && this.slotsNow.includes(slot)) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.draw(slot.changed), PAUSE_MS);
    }
  }

  /** Returns whether the map is encoded, and no later one has taken its place. */
  async encode(slot, map, signal) {
    try {
      slot.encoded = map.codes ? map : await ask("map", { prior: slot.prior, condition: slot.condition, ...map }, signal);
      slot.error = "";
    } catch (error) {
      if (error.name === "AbortError") return false;
      slot.error = error.message;
    }
    switchOff(slot.save, !slot.encoded?.file);
    this.showSeen(slot);
    return !slot.error;
  }

  showSeen(slot) {
    if (slot !== this.slot) return;
    const { grid } = this.controls.chosen.conditions.find(({ name }) => name === slot.condition);
    this.seen.hidden = !slot.encoded;
    this.sight.hidden = !slot.encoded && !slot.error;
    this.seenNote.classList.toggle("bad", Boolean(slot.error));
    if (slot.encoded) this.seen.querySelector("img").src = slot.encoded.seen;
    this.seenNote.textContent = slot.error || `The map, encoded to ${grid.join(" × ")} codes and decoded again. Details that are lost here do not reach the pictures.`;
  }

  async draw(started = performance.now()) {
    clearTimeout(this.timer);
    if (!this.controls.form.reportValidity()) return;
    const isLast = this.drawing();
    await this.slot.node?.catch(() => {}); // its error is where the editor would be
    await this.slot.encoding;
    if (!isLast() || this.slot.error) return;
    const { request, painted: files } = this.request();
    let first = null;
    const since = () => ((performance.now() - started) / 1000).toFixed(1);
    if (!await this.drawn.draw(this.controls.chosen, request, () => { first ??= since(); })) return;
    this.drawn.job.say(`First picture begun after ${first ?? since()} s; all ${request.n} done after ${since()} s.`);
    try {
      const { script } = await ask("script", { draw: request, painted: files });
      if (isLast()) this.drawn.tell(script);
    } catch (error) {
      if (isLast()) this.drawn.job.fail(error);
    }
  }

  /** The slots of the conditions of the chosen prior; undefined where none is open. */
  get slotsNow() {
    return painted(this.controls.chosen).map((part) => this.slots.get(part.tokenizer));
  }

  /** The request for the server: the form, and the codes of all maps of this prior; and the conditions that have files. */
  request() {
    const [request, files] = [this.controls.values(), []];
    painted(this.controls.chosen).forEach(({ name }, index) => {
      const encoded = this.slotsNow[index]?.encoded;
      if (encoded?.codes) request.conditions[name] = encoded.codes;
      if (encoded?.file) files.push(name);
    });
    return { request, painted: files };
  }
}
