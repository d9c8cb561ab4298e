// A pose: joints to drag.

import { History } from "./history.js";
import { ARROWS, FAR, undoKeys } from "./keys.js";
import { button, el, select, svg, switchOff } from "./widgets.js";

const MISSING = [-1, -1];
const NEAR = 0.08;

/** An editor of joints; see `MapEditor`. A pose of a validation picture is used as it is, by its codes. */
export class PoseEditor {
  constructor(described, onchange) {
    const side = described.resolution;
    Object.assign(this, { described, side, onchange, joints: copy(described.standing), asIs: null });
    this.history = new History(copy(this.joints));
    this.figure = svg("svg", { viewBox: `-0.5 -0.5 ${side} ${side}`, "aria-hidden": "true" });
    this.limbs = described.limbs.map((_, number) => this.limb(number));
    this.handles = described.joints.map((_, index) => this.handle(index));
    this.photo = el("img", { className: "asis", alt: "Pose of a validation picture", hidden: true });
    this.easel = el("div", {
      className: "easel pose", role: "group", "aria-label": "Pose", onpointerdown: (event) => this.press(event),
      onpointermove: (event) => this.drag(event), onpointerup: () => this.drop(), onpointercancel: () => this.drop(),
    }, this.figure, ...this.handles, this.photo);
    this.toggles = described.joints.map((name, index) => button(spoken(name), () => this.toggle(index), { className: "quiet", "aria-pressed": "true" }));
    this.back = button("Back to the figure", () => this.stand(), { hidden: true });
    this.note = el("p", { className: "note", role: "status" });
    this.dragged = select("What to drag", [["", "the nearest joint, or the figure"], ...described.joints.map((name, index) => [index, spoken(name)])], "");
    this.steps = [["Undo", () => this.undo()], ["Redo", () => this.redo()], ["Smaller", () => this.scale(0.9)], ["Larger", () => this.scale(1.1)],
      ["Start again", () => this.stand()]].map(([text, act]) => button(text, act, { className: "quiet" }));
    this.node = el("div", { className: "options map-editor", onkeydown: (event) => undoKeys(event, this) },
      this.easel, this.note, this.back, el("div", { className: "actions", role: "toolbar", "aria-label": "Pose" }, this.steps), this.options());
    this.show();
  }

  options() {
    return el("div", { className: "options map-options" },
      this.dragged.parentElement,
      el("details", {}, el("summary", {}, "Joints"), el("div", { className: "actions", role: "group", "aria-label": "Joints in the picture" }, this.toggles)),
      el("details", {}, el("summary", {}, "Keyboard"), el("p", { className: "note" },
        "Tab moves between joints, the arrow keys move a joint, with Shift by 8 pixels, with Alt the whole figure; Delete removes it, and its button below Joints brings it back; Ctrl+Z and Ctrl+Shift+Z undo and redo. With the mouse, drag a joint, or the figure beside its joints.")));
  }

  /** The map for the server, or codes that are used as they are. */
  request() {
    return this.asIs ? { codes: this.asIs.codes, seen: this.asIs.picture } : { joints: this.joints };
  }

  /** Fit the figure at the start to where those of a page of validation maps stand. */
  add({ top, bottom }) {
    if (top === null || this.isFitted) return;
    this.isFitted = true;
    const ys = this.described.standing.map(([, y]) => y);
    const [first, last] = [Math.min(...ys), Math.max(...ys)];
    const scale = (bottom - top) / (last - first);
    const middle = this.side / 2;
    this.described.standing = this.described.standing.map(([x, y]) => [middle + (x - middle) * scale, top + (y - first) * scale]);
    this.joints = copy(this.described.standing);
    this.history = new History(copy(this.joints));
    this.show();
  }

  load(map) {
    this.asIs = map;
    this.show();
    this.onchange();
  }

  /** Put all joints where they are at the start. */
  clear() {
    this.stand();
  }

  stand() {
    if (this.asIs) {
      this.asIs = null;
      this.show();
      this.onchange();
    } else {
      this.joints = copy(this.described.standing);
      this.keep();
    }
  }

  undo() {
    if (this.asIs) this.stand();
    else this.restore(this.history.undo());
  }

  redo() {
    this.restore(this.history.redo());
  }

  restore(joints) {
    if (!joints) return;
    this.asIs = null;
    this.joints = copy(joints);
    this.show();
    this.onchange();
  }

  /** Take the joints as they are now, in place of a validation pose; a step that can be undone. */
  keep() {
    const isNew = this.history.keep(copy(this.joints)) || this.asIs;
    this.asIs = null;
    this.show();
    if (isNew) this.onchange();
  }

  limb(number) {
    const stroke = `rgb(${this.described.limb_colors[number].join(" ")})`;
    const line = svg("line", { stroke, "stroke-width": this.described.limb_width });
    this.figure.append(line);
    return line;
  }

  handle(index) {
    return el("button", {
      type: "button", className: "joint", onkeydown: (event) => this.key(event, index),
      onfocus: () => this.tell(index), data: { joint: this.described.joints[index] },
    });
  }

  isMissing(index) {
    return this.joints[index][0] < 0;
  }

  tell(index) {
    const [x, y] = this.joints[index].map(Math.round);
    this.note.textContent = `${spoken(this.described.joints[index])}: x ${x}, y ${y}`;
  }

  show() {
    this.described.limbs.forEach(([first, second], number) => {
      const line = this.limbs[number];
      line.style.display = this.isMissing(first) || this.isMissing(second) ? "none" : "";
      const [[x1, y1], [x2, y2]] = [this.joints[first], this.joints[second]];
      for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(name, value);
    });
    this.handles.forEach((handle, index) => {
      const [x, y] = this.joints[index];
      handle.hidden = this.isMissing(index) || Boolean(this.asIs);
      handle.style.left = `${(100 * (x + 0.5)) / this.side}%`;
      handle.style.top = `${(100 * (y + 0.5)) / this.side}%`;
      handle.setAttribute("aria-label", `${spoken(this.described.joints[index])}, x ${Math.round(x)}, y ${Math.round(y)}`);
      this.toggles[index].setAttribute("aria-pressed", String(!this.isMissing(index)));
    });
    switchOff(this.steps[0], !this.history.canUndo && !this.asIs);
    switchOff(this.steps[1], !this.history.canRedo);
    this.photo.hidden = this.back.hidden = !this.asIs;
    if (this.asIs) {
      this.photo.src = this.asIs.picture;
      this.note.textContent = `The pose of ${this.asIs.key}, as it is: its joints are not stored.`;
    } else if (this.note.textContent.includes("as it is")) {
      this.note.textContent = "";
    }
  }

  // Moving joints

  press(event) {
    if (event.button || !event.isPrimary || this.asIs) return;
    const place = this.place(event);
    const away = (index) => (this.isMissing(index) ? Infinity : Math.hypot(...this.joints[index].map((value, axis) => value - place[axis])));
    const nearest = this.joints.map((_, index) => index).reduce((best, index) => (away(index) < away(best) ? index : best));
    this.held = away(nearest) > this.side * NEAR ? null : nearest; // null: all of them
    if (this.dragged.value !== "") this.put(this.held = Number(this.dragged.value), place);
    this.from = place;
    event.preventDefault();
    if (this.held !== null) this.handles[this.held].focus();
    this.easel.setPointerCapture(event.pointerId);
  }

  drag(event) {
    if (this.held === undefined) return;
    const place = this.place(event);
    if (this.held === null) this.moveAll(place.map((value, axis) => value - this.from[axis]));
    else this.put(this.held, place);
    this.from = place;
  }

  drop() {
    if (this.held === undefined) return;
    this.held = undefined;
    this.keep();
  }

  /** Apply a function of x and y to all joints that are there, if all stay in the picture. */
  transform(change) {
    const moved = this.joints.map((joint, index) => (this.isMissing(index) ? joint : change(joint)));
    const isInside = moved.every((joint, index) => this.isMissing(index) || joint.every((value) => value >= 0 && value <= this.side - 1));
    if (isInside) this.joints = moved;
    this.show();
  }

  moveAll(step) {
    this.transform((joint) => joint.map((value, axis) => value + step[axis]));
  }

  scale(factor) {
    const there = this.joints.filter((_, index) => !this.isMissing(index));
    const middle = [0, 1].map((axis) => there.reduce((sum, joint) => sum + joint[axis], 0) / there.length);
    this.transform((joint) => joint.map((value, axis) => middle[axis] + factor * (value - middle[axis])));
    this.keep();
  }

  place(event) {
    const box = this.easel.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.side - 0.5, ((event.clientY - box.top) / box.height) * this.side - 0.5];
  }

  put(index, place) {
    this.joints[index] = place.map((value) => Math.min(this.side - 1, Math.max(0, value)));
    this.show();
    this.tell(index);
  }

  key(event, index) {
    const step = ARROWS[event.key];
    if (step) {
      const far = event.shiftKey ? FAR : 1;
      if (event.altKey) this.moveAll(step.map((value) => far * value));
      else this.put(index, this.joints[index].map((value, axis) => value + far * step[axis]));
      this.keep();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.toggle(index);
      this.toggles[index].closest("details").open = true;
      this.toggles[index].focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Remove a joint, or bring it back where it is at the start. */
  toggle(index) {
    this.joints[index] = this.isMissing(index) ? [...this.described.standing[index]] : [...MISSING];
    this.keep();
  }
}

function spoken(name) {
  return name.replace("_", " ");
}

function copy(joints) {
  return joints.map((joint) => [...joint]);
}
