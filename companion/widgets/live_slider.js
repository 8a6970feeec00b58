// A slider that says whether it is on its way (`held`), so that Python can answer quickly then, and well at the end.

const PAUSE = 100; // milliseconds between two values that are sent on the way

function render({ model, el }) {
  frame(el, "live-slider");
  const { min, max, step, label } = Object.fromEntries(["min", "max", "step", "label"].map((k) => [k, model.get(k)]));
  const input = element("input", { type: "range", min, max, step });
  input.setAttribute("aria-label", label);
  const shown = element("output");
  let timer = null;

  function draw() {
    const value = model.get("value");
    if (Number(input.value) !== value) input.value = value;
    shown.textContent = value.toFixed(2);
    input.setAttribute("aria-valuetext", shown.textContent);
  }

  function send(held) {
    clearTimeout(timer);
    timer = null;
    model.set("value", Number(input.value));
    model.set("held", held);
    model.save_changes();
    draw();
  }

  input.addEventListener("input", () => {
    shown.textContent = Number(input.value).toFixed(2);
    timer ??= setTimeout(() => send(true), PAUSE);
  });
  input.addEventListener("change", () => send(false));
  const marks = model.get("marks").map(([name, value]) =>
    button(name, "live-slider-mark", () => { input.value = value; send(false); }));
  const line = element("label", { className: "live-slider-line" }, [label, input, shown]);
  el.append(line, element("div", { className: "editor-tools" }, marks.length ? [group("Values", marks)] : []));
  model.on("change:value", draw);
  draw();
  return () => { clearTimeout(timer); model.off("change:value", draw); };
}

export default { render };
