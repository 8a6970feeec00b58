// Painting on a picture: a mask in a colour (mode "mask"), or white lines on black over a faint picture ("scribble").
// What is painted is one byte a pixel, 0 or 255, in the picture's own pixels; it is sent to Python after each stroke.
// Mouse, pen and touch are all pointer events; the arrow keys and Space paint too.

const PAINT = [230, 30, 140]; // the colour of a mask, in red, green, blue
const FAINT = 0.35; // how much is seen of the picture below a scribble
const MODES = {
  mask: { name: "mask-painter", label: "Picture to paint a mask on", widest: 3 },
  scribble: { name: "scribble-pad", label: "Black pad to draw white lines on", widest: 10 },
};
const KEYS = "Arrow keys move the brush, with Shift further; Space puts it down and lifts it again.";

function render({ model, el }) {
  const wide = model.get("width"), high = model.get("height"), scale = model.get("scale");
  const mode = model.get("mode"), { name, label, widest } = MODES[mode];
  frame(el, name);
  const shown = element("canvas", { width: wide, height: high, className: `${name}-canvas`, tabIndex: 0 });
  shown.setAttribute("role", "application");
  shown.setAttribute("aria-label", `${label}. ${KEYS}`);
  const circle = element("div", { className: `editor-brush ${name}-brush`, hidden: true });
  const stage = element("div", { className: "editor-stage" }, [shown, circle]);
  stage.style.width = `${wide * scale}px`;
  const said = spoken();
  const context = shown.getContext("2d", { willReadFrequently: true });
  const picture = new Image(), history = new History();
  let mask = new Uint8Array(wide * high), last = null, erasing = false;
  let hand = { x: wide / 2, y: high / 2 }, down = false; // the brush that the arrow keys move

  // ---- what is seen

  function draw() {
    context.clearRect(0, 0, wide, high);
    if (mode === "scribble") context.fillRect(0, 0, wide, high);
    context.globalAlpha = mode === "scribble" ? FAINT : 1;
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, wide, high);
    context.globalAlpha = 1;
    const pixels = context.getImageData(0, 0, wide, high);
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      for (let c = 0; c < 3; c++) {
        pixels.data[4 * i + c] = mode === "scribble" ? 255 : 0.45 * pixels.data[4 * i + c] + 0.55 * PAINT[c];
      }
    }
    context.putImageData(pixels, 0, 0);
    undoing.update();
  }

  function load() {
    const address = addressOf(model.get("picture"));
    if (!address) return;
    picture.onload = () => { URL.revokeObjectURL(address); draw(); };
    picture.src = address;
  }

  // A circle as large as the brush; dashed when it erases.
  function showBrush(at, erases = eraser.checked) {
    circle.hidden = false;
    circle.classList.toggle("editor-brush-erases", erases);
    circle.style.left = `${(100 * at.x) / wide}%`;
    circle.style.top = `${(100 * at.y) / high}%`;
    circle.style.width = `${(100 * model.get("brush")) / wide}%`;
  }

  const hideBrush = () => { circle.hidden = true; };

  // ---- painting

  // Every pixel nearer to the line from a to b than the brush's radius; no antialiasing, so that a pixel is 0 or 255.
  function stroke(a, b) {
    const radius = model.get("brush") / 2, value = erasing ? 0 : 255;
    const left = Math.max(0, Math.floor(Math.min(a.x, b.x) - radius));
    const right = Math.min(wide - 1, Math.ceil(Math.max(a.x, b.x) + radius));
    const top = Math.max(0, Math.floor(Math.min(a.y, b.y) - radius));
    const bottom = Math.min(high - 1, Math.ceil(Math.max(a.y, b.y) + radius));
    const dx = b.x - a.x, dy = b.y - a.y, length = dx * dx + dy * dy;
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const px = x + 0.5 - a.x, py = y + 0.5 - a.y;
        const t = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
        if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= radius * radius) mask[y * wide + x] = value;
      }
    }
  }

  function place(event) {
    const box = shown.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * wide, y: ((event.clientY - box.top) / box.height) * high };
  }

  function begin(at, erases) {
    erasing = erases;
    history.remember(mask.slice());
    stroke(at, at);
    draw();
  }

  function send() {
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
  }

  shown.addEventListener("pointerdown", (event) => {
    if (event.button || last || !event.isPrimary) return;
    lift();
    shown.setPointerCapture(event.pointerId);
    last = place(event);
    begin(last, eraser.checked || event.shiftKey);
  });
  shown.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    // A finger hides what is below it, and does not hover.
    if (event.pointerType !== "touch") showBrush(place(event), last ? erasing : eraser.checked || event.shiftKey);
    if (!last) return;
    const points = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of points.length ? points : [event]) {
      const now = place(one);
      stroke(last, now);
      last = now;
    }
    hand = last;
    draw();
  });
  const end = () => {
    if (!last) return;
    last = null;
    send();
  };
  shown.addEventListener("pointerup", end);
  shown.addEventListener("pointercancel", end);
  shown.addEventListener("pointerleave", hideBrush);

  // ---- painting by keys

  function lift() {
    if (!down) return;
    down = false;
    said.textContent = "brush lifted";
    send();
  }

  shown.addEventListener("keydown", (event) => {
    const way = WAYS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (way) {
      const far = wide / (event.shiftKey ? 16 : 64), before = hand;
      hand = {
        x: Math.max(0, Math.min(wide, hand.x + far * way[0])),
        y: Math.max(0, Math.min(high, hand.y + far * way[1])),
      };
      if (down) { stroke(before, hand); draw(); }
    } else if (event.key === " ") {
      if (event.repeat) return event.preventDefault();
      if (down) lift();
      else {
        down = true;
        said.textContent = eraser.checked ? "eraser down" : "brush down";
        begin(hand, eraser.checked);
      }
    } else if (event.key === "Escape") lift();
    else return;
    event.preventDefault();
    showBrush(hand);
  });
  shown.addEventListener("focus", () => { if (shown.matches(":focus-visible")) showBrush(hand); });
  shown.addEventListener("blur", () => { lift(); hideBrush(); });

  // ---- the tools

  const most = Math.max(8, Math.round(wide / widest), model.get("brush"));
  const brush = element("input", { type: "range", min: 1, max: most, step: 1 });
  brush.value = model.get("brush");
  brush.setAttribute("aria-label", "Brush size");
  brush.addEventListener("input", () => {
    model.set("brush", Number(brush.value));
    model.save_changes();
    showBrush({ x: wide / 2, y: high / 2 });
  });
  brush.addEventListener("change", hideBrush);
  const eraser = element("input", { type: "checkbox", className: `${name}-eraser` });
  const undoing = new UndoButtons(el, name, history, (step) => {
    lift();
    const other = last ? null : history[step](mask);
    if (!other) return;
    mask = other.slice();
    draw();
    send();
  });
  const clearButton = button("Clear", `${name}-clear`, () => {
    if (!mask.some((v) => v)) return;
    history.remember(mask);
    mask = new Uint8Array(wide * high);
    draw();
    send();
  });

  // ---- what Python sets

  function receive() {
    const data = model.get("mask");
    const given = data && data.byteLength ? new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength) : null;
    if (last || down || (given && given.length === mask.length && given.every((v, i) => v === mask[i]))) return;
    history.clear();
    mask = given && given.length === wide * high ? given.slice() : new Uint8Array(wide * high);
    draw();
  }

  const resize = () => { brush.value = model.get("brush"); };
  model.on("change:mask", receive);
  model.on("change:picture", load);
  model.on("change:brush", resize);
  const tools = element("div", { className: "editor-tools" }, [
    element("label", {}, ["brush ", brush]),
    element("label", { title: "or hold Shift while painting" }, [eraser, " eraser"]),
    element("span", { className: "editor-buttons" }, [undoing.undo, undoing.redo, clearButton]),
  ]);
  el.append(stage, tools, said);
  receive();
  load();
  draw();
  return () => {
    model.off("change:mask", receive);
    model.off("change:picture", load);
    model.off("change:brush", resize);
  };
}

export default { render };
