// Pictures of the checkpoints of a training, and curves of what was measured. All of it is here, and Python is only told
// which is shown.

const CHART = { width: 340, height: 64, left: 46, right: 8, top: 6, bottom: 6 };
const INTERVAL = 400; // milliseconds for each step of playing
const COLOUR = "#1976d2", MARK = "#d2601a";

const short = (value) => (Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001)
  ? value.toExponential(1) : String(Number(value.toPrecision(3))));

function render({ model, el }) {
  frame(el, "training-scrubber");
  const steps = model.get("steps"), metrics = model.get("metrics"), last = steps.length - 1, names = model.get("names");
  const wide = model.get("width"), high = model.get("height");
  let playing = null, start = false; // start: the first is shown while a button is pressed

  // ---- pictures

  const canvas = element("canvas", { width: wide, height: high });
  canvas.setAttribute("role", "img");
  const context = canvas.getContext("2d");
  const stage = element("div", { className: "editor-stage" }, [canvas]);
  stage.style.width = `${wide}px`;
  const frames = model.get("frames").map((data) => {
    const image = new Image();
    image.src = addressOf(data, "image/jpeg");
    image.decode().then(draw, () => {});
    return image;
  });
  const now = () => (start ? 0 : model.get("value"));

  // ---- curves

  const all = Object.values(metrics).flat().map(([step]) => step).concat(steps);
  const first = Math.min(...all), end = Math.max(...all), span = end - first || 1;
  const across = (step) => CHART.left + ((step - first) / span) * (CHART.width - CHART.left - CHART.right);

  // The value at a step, or at the last one before it that was measured.
  function valueAt(points, step) {
    const before = points.filter(([at, value]) => at <= step && value !== null);
    return before.length ? before[before.length - 1] : null;
  }

  const charts = Object.entries(metrics).map(([name, points]) => {
    const values = points.map(([, value]) => value).filter((value) => value !== null);
    const low = Math.min(...values), top = Math.max(...values), range = top - low || 1;
    const down = (value) => CHART.height - CHART.bottom - ((value - low) / range) * (CHART.height - CHART.top - CHART.bottom);
    let path = "", gap = true;
    for (const [step, value] of points) {
      if (value !== null) path += `${gap ? "M" : "L"}${across(step).toFixed(1)} ${down(value).toFixed(1)}`;
      gap = value === null;
    }
    const line = svg("line", { class: "training-now", y1: 0, y2: CHART.height });
    const dot = svg("circle", { r: 4, fill: MARK });
    const label = (text, y) => svg("text", { x: CHART.left - 6, y, class: "training-label" }, [text]);
    const chart = svg("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, "aria-hidden": "true", class: "training-chart" }, [
      svg("line", { x1: CHART.left, x2: CHART.left, y1: CHART.top, y2: CHART.height - CHART.bottom, class: "training-axis" }),
      ...(values.length ? [label(short(top), CHART.top + 5), ...(top > low ? [label(short(low), CHART.height - CHART.bottom + 3)] : [])] : []),
      svg("path", { d: path, fill: "none", stroke: COLOUR, "stroke-width": 1.8, "stroke-linejoin": "round" }),
      line, dot,
    ]);
    const jump = (event) => {
      const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * CHART.width;
      const far = steps.map((step) => Math.abs(across(step) - x));
      show(far.indexOf(Math.min(...far)));
    };
    chart.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stop();
      chart.setPointerCapture(event.pointerId);
      jump(event);
    });
    chart.addEventListener("pointermove", (event) => { if (chart.hasPointerCapture(event.pointerId)) jump(event); });
    const reading = element("span", { className: "training-value" });
    const head = element("div", { className: "training-head" }, [element("span", { textContent: name }), reading]);
    return {
      name, points, element: element("div", {}, [head, chart]),
      draw(step) {
        const found = valueAt(points, step), x = across(step);
        for (const key of ["x1", "x2"]) line.setAttribute(key, x);
        dot.style.display = found ? "" : "none";
        reading.textContent = found ? short(found[1]) : "–";
        if (!found) return;
        dot.setAttribute("cx", across(found[0]));
        dot.setAttribute("cy", down(found[1]));
      },
    };
  });

  // ---- the tools

  const slider = element("input", { type: "range", min: 0, max: last, step: 1, className: "training-slider" });
  slider.setAttribute("aria-label", "Step of the training");
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  const play = button("Play", "training-play", () => (playing ? stop() : begin()));
  const before = button("Hold to see the start", "training-start", () => {}, "Or hold Space while it has the focus");
  const hold = (value) => { if (start !== value) { start = value; draw(); } };
  before.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    before.setPointerCapture(event.pointerId);
    hold(true);
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) before.addEventListener(name, () => hold(false));
  before.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); hold(true); } });
  before.addEventListener("keyup", () => hold(false));
  const said = element("div", { className: "editor-said" }), heard = spoken();

  function begin() {
    if (model.get("value") === last) show(0);
    playing = setInterval(() => (model.get("value") < last ? show(model.get("value") + 1) : stop()), INTERVAL);
    play.textContent = "Pause";
  }

  function stop() {
    if (!playing) return;
    clearInterval(playing);
    playing = null;
    play.textContent = "Play";
  }

  function show(i) {
    if (i === model.get("value")) return;
    model.set("value", i); // which calls `draw`
    model.save_changes();
  }

  function draw() {
    const i = now(), step = steps[i], image = frames[i];
    if (image.complete && image.naturalWidth) context.drawImage(image, 0, 0, wide, high);
    for (const chart of charts) chart.draw(step);
    const measured = charts.map(({ name, points }) => {
      const found = valueAt(points, step);
      return found ? `, ${name} ${short(found[1])}` : "";
    }).join("");
    const text = `after ${step.toLocaleString("en")} step${step === 1 ? "" : "s"}`;
    said.textContent = start ? `${text}: the start` : `${text}, checkpoint ${i + 1} of ${last + 1}`;
    if (Number(slider.value) !== model.get("value")) slider.value = model.get("value");
    slider.setAttribute("aria-valuetext", text + measured);
    canvas.setAttribute("aria-label", `Pictures ${text}${names.length ? `: ${names.join("; ")}` : ""}`);
    heard.textContent = start ? said.textContent : "";
  }

  const ends = charts.length ? [element("div", { className: "training-ends" }, [
    element("span", { textContent: first.toLocaleString("en") }), element("span", { textContent: "step" }),
    element("span", { textContent: end.toLocaleString("en") }),
  ])] : [];
  const side = element("div", { className: "training-side" }, [
    slider, said,
    element("div", { className: "editor-tools" }, [element("span", { className: "editor-buttons" }, [play, before])]),
    ...charts.map((chart) => chart.element), ...ends,
  ]);
  if (last === 0) for (const one of [slider, play, before]) one.disabled = true;
  el.append(element("div", { className: "editor-row" }, [stage, side]), heard);
  model.on("change:value", draw);
  slider.value = model.get("value");
  draw();
  return () => {
    stop();
    for (const image of frames) URL.revokeObjectURL(image.src);
    model.off("change:value", draw);
  };
}

export default { render };
