// A slider that says whether it is on its way (`held`), so that Python can answer quickly then, and well at the end.

const PAUSE = 100; // milliseconds between two values that are sent on the way

function render({ model, el }) {
  frame(el, "live-slider");
  const { min, max, step, label } = Object.fromEntries(["min", "max", "step", "label"].map((k) => [k, model.get(k)]));
  const input = element("input", { type: "range", min, max, step });
  input.setAttribute("aria-label", label);
  const shown = element("output");
  // As many digits as the step has.
  const digits = [0, 1].find((d) => Number.isInteger(step * 10 ** d)) ?? 2;
  let timer = null, held = false;

  function draw() {
    const value = model.get("value");
    if (Number(input.value) !== value) input.value = value;
    shown.textContent = value.toFixed(digits);
    input.setAttribute("aria-valuetext", shown.textContent);
  }

  function send(now) {
    clearTimeout(timer);
    timer = null;
    held = now;
    model.set("value", Number(input.value));
    model.set("held", held);
    model.save_changes();
    draw();
  }

  input.addEventListener("input", () => {
    shown.textContent = Number(input.value).toFixed(digits);
    timer ??= setTimeout(() => send(true), PAUSE);
  });
  // Where it is let go at the value that it had before, there is no "change".
  for (const name of ["change", "pointerup", "pointercancel", "blur"]) {
    input.addEventListener(name, () => { if (held || timer) send(false); });
  }
  const marks = model.get("marks").map(([name, value]) =>
    button(name, "live-slider-mark", () => { input.value = value; send(false); }));
  const line = element("label", { className: "live-slider-line" }, [label, input, shown]);
  el.append(line, element("div", { className: "editor-tools" }, marks.length ? [group("Values", marks)] : []));
  model.on("change:value", draw);
  draw();
  return () => { clearTimeout(timer); model.off("change:value", draw); };
}

export default { render };
