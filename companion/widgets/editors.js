// What the editors share. It stands before each editor's own script, since a widget's script is one module.

const MAX_UNDO = 50;
const SVG = "http://www.w3.org/2000/svg";
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

function element(tag, options = {}, children = []) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, children = []) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// States that can be taken back and brought again. A state is not changed once it is here.
class History {
  constructor() { this.clear(); }

  clear() { this.past = []; this.future = []; }

  remember(state) {
    this.past.push(state);
    if (this.past.length > MAX_UNDO) this.past.shift();
    this.future = [];
  }

  // The state before or after `now`; null when there is none.
  back(now) { return this.move(this.past, this.future, now); }
  forth(now) { return this.move(this.future, this.past, now); }

  move(from, to, now) {
    if (!from.length) return null;
    to.push(now);
    return from.pop();
  }
}

// Whether two states, numbers in arrays, are one but for rounding: Python keeps numbers in single precision, or brings
// vectors to length 1, and what it sends back then is no change that it made.
function sameNumbers(a, b, most) {
  return a.length === b.length && a.every((value, i) =>
    Array.isArray(value) ? sameNumbers(value, b[i], most) : Math.abs(value - b[i]) <= most);
}

// Undo and Redo: two buttons, and the keys that every program has for them. `change(step)` takes a step in the history.
class UndoButtons {
  constructor(el, name, history, change) {
    this.history = history;
    this.undo = button("Undo", `${name}-undo`, () => change("back"), "Undo (Ctrl+Z)");
    this.redo = button("Redo", `${name}-redo`, () => change("forth"), "Redo (Ctrl+Shift+Z)");
    el.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
      const key = event.key.toLowerCase();
      if (key !== "z" && key !== "y") return;
      event.preventDefault();
      change(key === "y" || event.shiftKey ? "forth" : "back");
    });
  }

  // A button that nothing is left for is grey; it stays in reach of Tab, so that the focus is not lost.
  update() {
    this.undo.setAttribute("aria-disabled", String(!this.history.past.length));
    this.redo.setAttribute("aria-disabled", String(!this.history.future.length));
  }
}

function button(text, className, action, title = "") {
  const made = element("button", { type: "button", textContent: text, className, title });
  made.addEventListener("click", action);
  return made;
}

// Prepare a widget's element. JupyterLab has keys for its commands: arrows move between cells, x cuts one, z undoes that.
function frame(el, name) {
  el.classList.add("companion-editor", name);
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  el.addEventListener("keydown", (event) => event.stopPropagation());
}

// A button that stays pressed.
function press(button, pressed) { button.setAttribute("aria-pressed", String(pressed)); }

// Buttons that belong together, in a row, with a name for screen readers.
function group(label, buttons) {
  const made = element("span", { className: "editor-buttons" }, buttons);
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  return made;
}

// Words that a screen reader says and nobody sees.
function spoken() {
  const made = element("div", { className: "editor-spoken" });
  made.setAttribute("role", "status");
  return made;
}

// The address of a picture that the model has as bytes; null without one.
function addressOf(data, type = "image/png") {
  return data && data.byteLength ? URL.createObjectURL(new Blob([data], { type })) : null;
}
