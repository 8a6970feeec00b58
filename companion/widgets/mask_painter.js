// A picture to paint a mask on. The mask is one byte a pixel, 0 or 255, in the picture's own pixels; it is sent to
// Python after each stroke. Mouse, pen and touch are all pointer events.

const PAINT = [230, 30, 140]; // the colour of the mask, in red, green, blue
const MAX_UNDO = 50;

function element(tag, options = {}, children = []) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const wide = model.get("width"), high = model.get("height"), scale = model.get("scale");
  const shown = element("canvas", { width: wide, height: high, className: "mask-painter-canvas", tabIndex: 0 });
  shown.style.width = `${wide * scale}px`;
  shown.setAttribute("role", "img");
  shown.setAttribute("aria-label", "Picture to paint a mask on");
  const context = shown.getContext("2d");
  const picture = new Image();
  let mask = new Uint8Array(wide * high), undo = [], last = null, erasing = false;

  // ---- what is seen

  function draw() {
    context.clearRect(0, 0, wide, high);
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, wide, high);
    const pixels = context.getImageData(0, 0, wide, high);
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 0.45 * pixels.data[4 * i + c] + 0.55 * PAINT[c];
    }
    context.putImageData(pixels, 0, 0);
    undoButton.disabled = !undo.length;
  }

  function load() {
    const data = model.get("picture");
    if (!data || !data.byteLength) return;
    const address = URL.createObjectURL(new Blob([data], { type: "image/png" }));
    picture.onload = () => { URL.revokeObjectURL(address); draw(); };
    picture.src = address;
  }

  // ---- painting

  // Every pixel nearer to the line from a to b than the brush's radius; no antialiasing, so that a mask is 0 or 255.
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

  function remember() {
    undo.push(mask.slice());
    if (undo.length > MAX_UNDO) undo.shift();
  }

  function send() {
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
  }

  shown.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    shown.setPointerCapture(event.pointerId);
    erasing = eraser.checked || event.shiftKey;
    remember();
    last = place(event);
    stroke(last, last);
    draw();
  });
  shown.addEventListener("pointermove", (event) => {
    if (!last) return;
    const points = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of points.length ? points : [event]) {
      const now = place(one);
      stroke(last, now);
      last = now;
    }
    draw();
  });
  const end = () => {
    if (!last) return;
    last = null;
    send();
  };
  shown.addEventListener("pointerup", end);
  shown.addEventListener("pointercancel", end);

  // ---- the tools

  const brush = element("input", { type: "range", min: 1, max: Math.max(8, Math.round(wide / 3)), step: 1 });
  brush.value = model.get("brush");
  brush.setAttribute("aria-label", "Brush size");
  brush.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab takes arrow keys for itself
  brush.addEventListener("input", () => { model.set("brush", Number(brush.value)); model.save_changes(); });
  const eraser = element("input", { type: "checkbox", className: "mask-painter-eraser" });
  const undoButton = element("button", { type: "button", textContent: "Undo", className: "mask-painter-undo" });
  const clearButton = element("button", { type: "button", textContent: "Clear", className: "mask-painter-clear" });
  const back = () => {
    if (!undo.length) return;
    mask = undo.pop();
    draw();
    send();
  };
  undoButton.addEventListener("click", back);
  clearButton.addEventListener("click", () => {
    if (!mask.some((v) => v)) return;
    remember();
    mask = new Uint8Array(wide * high);
    draw();
    send();
  });
  shown.addEventListener("keydown", (event) => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) back();
    event.stopPropagation();
  });

  // ---- what Python sets

  function receive() {
    const data = model.get("mask");
    const given = data && data.byteLength ? new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength) : null;
    if (last || (given && given.length === mask.length && given.every((v, i) => v === mask[i]))) return;
    undo = [];
    mask = given && given.length === wide * high ? given.slice() : new Uint8Array(wide * high);
    draw();
  }

  model.on("change:mask", receive);
  model.on("change:picture", load);
  const tools = element("div", { className: "mask-painter-tools" }, [
    element("label", {}, ["brush ", brush]),
    element("label", { title: "or hold Shift while painting" }, [eraser, " eraser"]),
    undoButton,
    clearButton,
  ]);
  el.classList.add("mask-painter");
  el.append(shown, tools);
  receive();
  load();
  draw();
  return () => {
    model.off("change:mask", receive);
    model.off("change:picture", load);
  };
}

export default { render };
