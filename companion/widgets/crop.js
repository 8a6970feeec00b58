// A square on each of some photographs, to drag and resize. Squares are [left, top, side] in whole pixels of the upright
// original; what is shown is smaller. Python sends a photograph when it is asked for (`current`; it came when `shown` is
// the same), and what the model will see of it (`made`). Until that has come, the browser makes about the same itself.

const WIDEST = 460, HIGHEST = 380; // of a photograph on the screen, in its pixels
const CORNERS = { nw: [-1, -1], ne: [1, -1], sw: [-1, 1], se: [1, 1] }; // where each lies, right and down
const KEYS = "Arrow keys move the square, with Shift further; plus and minus resize it; Page Up and Page Down change the photograph.";

// The square that is nearest to this one among those that a photograph has.
function placed([left, top, side], [wide, high], least) {
  side = clamp(Math.round(side), least, Math.min(wide, high));
  return [clamp(Math.round(left), 0, wide - side), clamp(Math.round(top), 0, high - side), side];
}

// A square whose corner is dragged to (x, y): the opposite one stays.
function resized([left, top, side], [right, down], [x, y], [wide, high], least) {
  const fixed = [right > 0 ? left : left + side, down > 0 ? top : top + side];
  const most = Math.min(right > 0 ? wide - fixed[0] : fixed[0], down > 0 ? high - fixed[1] : fixed[1]);
  const to = clamp(Math.round(Math.max(right * (x - fixed[0]), down * (y - fixed[1]))), Math.min(least, most), most);
  return [right > 0 ? fixed[0] : fixed[0] - to, down > 0 ? fixed[1] : fixed[1] - to, to];
}

function render({ model, el }) {
  frame(el, "cropper");
  const names = model.get("names"), sizes = model.get("sizes"), size = model.get("size"), least = model.get("least");
  const rules = model.get("rules"), tile = model.get("tile"), perRow = model.get("per_row");
  const history = new History();
  // States are not changed: each change makes a new one, so that the history may keep them.
  let state = { squares: model.get("squares"), out: model.get("out") };
  let drag = null, nudging = false; // by pointer, by keys
  let sending = false;
  let photo = null, made = null; // pictures, once they are there; `made` with what it was made of
  const here = () => model.get("current");
  const square = () => state.squares[here()];
  const withSquare = (next) => ({ ...state, squares: state.squares.map((other, i) => (i === here() ? next : other)) });

  // ---- what there is on the page

  const shown = element("img", { className: "crop-photo", alt: "", draggable: false });
  const corners = Object.keys(CORNERS).map((name) => {
    const corner = element("div", { className: `crop-corner crop-${name}` });
    corner.dataset.corner = name;
    return corner;
  });
  const box = element("div", { className: "crop-square", tabIndex: 0 }, corners);
  box.setAttribute("role", "application");
  const stage = element("div", { className: "editor-stage crop-stage" }, [shown, box]);
  const area = element("div", { className: "crop-area" }, [stage]);
  const preview = element("canvas", { width: size, height: size, className: "crop-preview" });
  preview.setAttribute("role", "img");
  preview.classList.toggle("crop-pixels", size < 200); // enlarged on the screen
  const context = preview.getContext("2d");
  const caption = element("div", { className: "crop-caption", textContent: `what the model will see: ${size} × ${size} pixels` });
  const said = element("div", { className: "editor-said" }), heard = spoken();

  // ---- what is seen

  function describe() {
    const [left, top, side] = square(), [wide, high] = sizes[here()], times = size / side;
    const how = times > 1 ? `enlarged ${times.toFixed(1)} times${times > 2 ? ", and so blurred" : ""}`
      : times < 1 ? `shrunk to ${size}` : "taken as it is";
    return `${side} × ${side} of ${wide} × ${high}, at (${left}, ${top}); ${how}`;
  }

  function drawPreview() {
    const [left, top, side] = square(), wide = sizes[here()][0];
    context.clearRect(0, 0, size, size);
    if (made?.of === `${[here(), left, top, side]}`) context.drawImage(made.image, 0, 0, size, size);
    else if (photo) {
      const k = photo.naturalWidth / wide;
      context.drawImage(photo, left * k, top * k, side * k, side * k, 0, 0, size, size);
    }
    preview.setAttribute("aria-label", `What the model will see of ${names[here()]}, ${size} by ${size} pixels`);
  }

  function draw() {
    const i = here(), [left, top, side] = square(), [wide, high] = sizes[i], out = state.out[i];
    stage.style.width = `${Math.min(WIDEST, (HIGHEST * wide) / high)}px`;
    stage.style.aspectRatio = `${wide} / ${high}`;
    for (const [key, value, whole] of [["left", left, wide], ["top", top, high], ["width", side, wide], ["height", side, high]]) {
      box.style[key] = `${(100 * value) / whole}%`;
    }
    stage.classList.toggle("crop-out", out);
    box.setAttribute("aria-label", `Square of ${names[i]}: ${describe()}. ${KEYS}`);
    said.textContent = `${i + 1} of ${names.length}: ${names[i]}${out ? " (left out)" : ""}. ${describe()}`;
    for (const [name, made] of Object.entries(ruled)) press(made, `${rules[name][i]}` === `${square()}`);
    leave.checked = out;
    previous.setAttribute("aria-disabled", String(i === 0));
    next.setAttribute("aria-disabled", String(i === names.length - 1));
    thumbnails.forEach((made, k) => {
      made.classList.toggle("crop-out", state.out[k]);
      if (k === i) made.setAttribute("aria-current", "true"); else made.removeAttribute("aria-current");
      made.setAttribute("aria-label", `${names[k]}, ${k + 1} of ${names.length}${state.out[k] ? ", left out" : ""}`);
      const [w, h] = sizes[k], unit = tile / Math.max(w, h), [l, t, s] = state.squares[k], mark = made.firstChild.style;
      mark.left = `${(tile - w * unit) / 2 + l * unit}px`;
      mark.top = `${(tile - h * unit) / 2 + t * unit}px`;
      mark.width = mark.height = `${s * unit}px`;
    });
    drawPreview();
    undoing.update();
  }

  let address = null;
  function loadPhoto() {
    if (model.get("shown") !== here()) return; // it is of one that was asked for earlier
    if (address) URL.revokeObjectURL(address);
    address = addressOf(model.get("picture"), "image/jpeg");
    if (address) shown.src = address;
  }
  shown.addEventListener("load", () => {
    photo = shown;
    stage.removeAttribute("aria-busy");
    drawPreview();
  });

  function loadMade() {
    const from = addressOf(model.get("made"), "image/jpeg"), image = new Image(), of = `${model.get("made_of")}`;
    if (!from) return;
    image.onload = () => {
      URL.revokeObjectURL(from);
      if (of !== `${model.get("made_of")}`) return; // another has come meanwhile
      made = { image, of };
      drawPreview();
    };
    image.src = from;
  }

  // ---- what changes

  function send() {
    sending = true; // each `set` calls `receive`, the first when only half of the state is there
    model.set("squares", state.squares);
    model.set("out", state.out);
    sending = false;
    model.save_changes();
    draw();
  }

  // Another state, which can be undone.
  function change(next) {
    commit();
    if (JSON.stringify(next) === JSON.stringify(state)) return;
    history.remember(state);
    state = next;
    send();
    heard.textContent = said.textContent;
  }

  function go(i) {
    if (drag || i < 0 || i >= names.length || i === here()) return;
    commit();
    model.set("current", i); // which calls `turn`
    model.save_changes();
    heard.textContent = said.textContent;
    // Not by scrollIntoView, which would scroll the page, too.
    const up = thumbnails[i].offsetTop - strip.offsetTop;
    strip.scrollTop = clamp(strip.scrollTop, up + thumbnails[i].offsetHeight - strip.clientHeight, up);
  }

  // ---- by pointer

  function place(event) {
    const frame = stage.getBoundingClientRect(), [wide, high] = sizes[here()];
    return [((event.clientX - frame.left) / frame.width) * wide, ((event.clientY - frame.top) / frame.height) * high];
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button || drag || !event.isPrimary) return;
    event.preventDefault();
    commit();
    const at = place(event), before = state, corner = CORNERS[event.target.dataset?.corner];
    if (!box.contains(event.target)) { // outside of the square: it comes here, and can be dragged on
      const side = square()[2];
      state = withSquare(placed([at[0] - side / 2, at[1] - side / 2, side], sizes[here()], least));
    }
    // What is taken keeps its distance from the pointer.
    const [left, top, side] = square();
    const held = corner ? [left + (corner[0] > 0) * side, top + (corner[1] > 0) * side] : [left, top];
    drag = { before, corner, dx: held[0] - at[0], dy: held[1] - at[1] };
    stage.setPointerCapture(event.pointerId);
    box.focus({ preventScroll: true });
    draw();
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag || !event.isPrimary) return;
    const [x, y] = place(event), to = [x + drag.dx, y + drag.dy], now = square();
    state = withSquare(drag.corner ? resized(now, drag.corner, to, sizes[here()], least)
      : placed([...to, now[2]], sizes[here()], least));
    draw();
  });
  const release = () => {
    if (!drag) return;
    const { before } = drag;
    drag = null;
    if (JSON.stringify(before) === JSON.stringify(state)) return;
    history.remember(before);
    send();
  };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);

  // ---- by keys

  // A key that is held down moves the square many times, which counts as one change.
  function commit() {
    if (!nudging) return;
    nudging = false;
    send();
    heard.textContent = describe();
  }

  const LARGER = { "+": 1, "=": 1, "-": -1, _: -1 };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || drag) return;
    const [left, top, side] = square(), whole = sizes[here()], way = WAYS[event.key], larger = LARGER[event.key];
    const far = Math.max(1, Math.round(Math.max(...whole) / (event.shiftKey && way ? 16 : 128)));
    let next;
    if (way) next = [left + far * way[0], top + far * way[1], side];
    else if (larger) { // about its middle
      const to = clamp(side + 2 * larger * far, least, Math.min(...whole)), shift = (side - to) / 2;
      next = [left + shift, top + shift, to];
    }
    else if (event.key === "PageUp" || event.key === "PageDown") go(here() + (event.key === "PageDown" ? 1 : -1));
    else return;
    event.preventDefault();
    if (!next) return;
    next = placed(next, whole, least);
    if (`${next}` === `${square()}`) return;
    if (!nudging) history.remember(state);
    nudging = true;
    state = withSquare(next);
    draw();
  });
  box.addEventListener("keyup", (event) => { if (WAYS[event.key] || LARGER[event.key]) commit(); });
  box.addEventListener("blur", commit);

  // ---- the tools

  const undoing = new UndoButtons(el, "crop", history, (step) => {
    commit();
    const other = drag ? null : history[step](state);
    if (!other) return;
    // What was undone is brought into view.
    const changed = other.squares.findIndex((s, i) => `${s}` !== `${state.squares[i]}` || other.out[i] !== state.out[i]);
    state = other;
    send();
    go(changed);
    heard.textContent = said.textContent;
  });
  const previous = button("Previous", "crop-previous", () => go(here() - 1), "Page Up");
  const next = button("Next", "crop-next", () => go(here() + 1), "Page Down");
  const titles = { centre: "The largest square in the middle", detail: "The largest square where the detail is" };
  const ruled = Object.fromEntries(Object.keys(rules).map((name) => [name, button(
    name[0].toUpperCase() + name.slice(1), `crop-${name}`, () => change(withSquare(rules[name][here()])), titles[name])]));
  const reset = button("Reset all", "crop-reset", () =>
    change({ squares: model.get("home"), out: state.out.map(() => false) }), "All squares as they were first, none left out");
  const leave = element("input", { type: "checkbox", className: "crop-leave" });
  leave.addEventListener("change", () =>
    change({ ...state, out: state.out.map((value, i) => (i === here() ? leave.checked : value)) }));
  const sheet = addressOf(model.get("tiles"), "image/jpeg");
  const thumbnails = names.map((name, i) => {
    const made = button("", "crop-thumbnail", () => go(i), name);
    made.append(element("span", { className: "crop-mark" }));
    Object.assign(made.style, {
      width: `${tile}px`, height: `${tile}px`, backgroundImage: `url("${sheet}")`,
      backgroundPosition: `${-tile * (i % perRow)}px ${-tile * Math.floor(i / perRow)}px`,
    });
    return made;
  });
  const strip = group("Photographs", thumbnails);
  strip.classList.add("crop-strip");
  const unused = element("div", { className: "editor-said" });
  const tools = element("div", { className: "editor-tools" }, [
    group("Photograph", [previous, next]), group("Rules", Object.values(ruled)),
    element("label", { title: "It will not be in the set" }, [leave, " leave it out"]),
    element("span", { className: "editor-buttons" }, [undoing.undo, undoing.redo, reset]),
  ]);

  // ---- what Python sets

  function receive() {
    const given = { squares: model.get("squares"), out: model.get("out") };
    if (sending || drag || nudging || JSON.stringify(given) === JSON.stringify(state)) return;
    history.clear();
    state = given;
    draw();
  }

  function turn() {
    photo = made = null;
    shown.removeAttribute("src");
    stage.setAttribute("aria-busy", "true");
    loadPhoto();
    draw();
  }

  const report = () => {
    unused.textContent = model.get("unused") ? `Not shown: ${model.get("unused")}` : "";
  };
  const events = {
    "change:squares": receive, "change:out": receive, "change:current": turn, "change:unused": report,
    // Pictures come together with what they are of, which always changes.
    "change:shown": loadPhoto, "change:made_of": loadMade,
  };
  for (const [name, handler] of Object.entries(events)) model.on(name, handler);
  el.append(
    element("div", { className: "editor-row" }, [
      area,
      element("div", { className: "crop-side" }, [preview, caption, said, tools]),
    ]),
    strip, unused, heard,
  );
  report();
  draw();
  loadPhoto();
  loadMade();
  return () => {
    for (const one of [sheet, address]) if (one) URL.revokeObjectURL(one);
    for (const [name, handler] of Object.entries(events)) model.off(name, handler);
  };
}

export default { render };
