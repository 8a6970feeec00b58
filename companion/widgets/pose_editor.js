// A skeleton whose joints are dragged by mouse, pen or touch, or moved by keys. Python has the pose after each change, and
// several times a second while a joint moves. All coordinates are in pixels of the picture that it stands for.

const NEAR = { mouse: 14, pen: 18, touch: 34 }; // how far from a joint it can be taken, in pixels of the screen
const PAUSE = 100; // milliseconds between two poses that are sent while a joint moves

// ---- Poses: lists of [x, y, seen]

const copied = (pose) => pose.map((joint) => [...joint]);
const equal = (a, b) => a.length === b.length && a.every((joint, i) => joint.every((v, k) => v === b[i][k]));
const within = (v, most) => clamp(v, 0, most);
const turn = (angle) => Math.atan2(Math.sin(angle), Math.cos(angle)); // in (-pi, pi]

// The part of a change, from 0 to 1, that keeps every joint of `moved` in the picture. `at(part)` is the pose by then.
function allowed(at, moved, size) {
  const inside = (pose) => moved.every((i) => !pose[i][2] || pose[i].every((v, k) => k === 2 || (v >= 0 && v <= size)));
  if (inside(at(1))) return 1;
  let low = 0, high = 1;
  for (let i = 0; i < 20; i++) {
    const middle = (low + high) / 2;
    if (inside(at(middle))) low = middle; else high = middle;
  }
  return low;
}

// A pose with joint `index` as near to (x, y) as the picture allows. With `keep`, limbs keep their lengths: what hangs
// on the joint turns with it about its parent, and the root takes everything along.
function moved(pose, index, [x, y], { size, parents, keep }) {
  const result = copied(pose), parent = parents[index];
  if (!keep) {
    result[index] = [within(x, size), within(y, size), 1];
    return result;
  }
  const hangs = pose.map((_, i) => i).filter((i) => {
    for (let j = i; j >= 0; j = parents[j]) if (j === index) return true;
    return false;
  });
  result[index][2] = 1;
  if (parent < 0) {
    const dx = x - pose[index][0], dy = y - pose[index][1];
    // Along each side by itself, so that a figure at the border still slides along it.
    const shifted = (start, ax, ay) => (part) =>
      start.map(([px, py, seen], i) => (hangs.includes(i) ? [px + part * ax, py + part * ay, seen] : [px, py, seen]));
    const along = shifted(result, dx, 0), first = along(allowed(along, hangs, size)), down = shifted(first, 0, dy);
    return down(allowed(down, hangs, size));
  }
  const [cx, cy] = pose[parent];
  if (Math.hypot(pose[index][0] - cx, pose[index][1] - cy) < 1e-6 || Math.hypot(x - cx, y - cy) < 1e-6) return result;
  const angle = turn(Math.atan2(y - cy, x - cx) - Math.atan2(pose[index][1] - cy, pose[index][0] - cx));
  const at = (part) => result.map(([px, py, seen], i) => {
    if (!hangs.includes(i)) return [px, py, seen];
    const c = Math.cos(part * angle), s = Math.sin(part * angle);
    return [cx + c * (px - cx) - s * (py - cy), cy + s * (px - cx) + c * (py - cy), seen];
  });
  return at(allowed(at, hangs, size));
}

// Left and right change places, and so do their joints.
function mirrored(pose, names, size) {
  return names.map((name) => {
    const other = name.startsWith("left") ? name.replace("left", "right") : name.replace("right", "left");
    const [x, y, seen] = pose[names.indexOf(other)];
    return [size - x, y, seen];
  });
}

function render({ model, el }) {
  const size = model.get("size"), scale = model.get("scale"), names = model.get("names");
  const bones = model.get("bones"), parents = model.get("parents");
  frame(el, "pose-editor");
  const history = new History();
  let pose = copied(model.get("joints")), drag = null, tapped = null, timer = null, turning = false;

  // ---- what is seen

  const colour = (i, n) => `hsl(${(360 * i) / n} 100% 50%)`; // as OpenPose paints them
  const picture = svg("image", { width: size, height: size, opacity: 0.45, preserveAspectRatio: "none" });
  const lines = bones.map((_, i) => svg("line", { stroke: colour(i, bones.length), "stroke-width": size / 40 }));
  const joints = names.map((name, i) => {
    const radius = 6 / scale;
    const ring = svg("circle", { class: "pose-editor-ring", r: 1.7 * radius });
    const dot = svg("circle", { class: "pose-editor-dot", r: radius, fill: colour(i, names.length) });
    const joint = svg("g", { class: "pose-editor-joint", tabindex: 0, role: "slider", "data-joint": name }, [ring, dot]);
    joint.setAttribute("aria-label", name.replace("_", " "));
    joint.setAttribute("aria-roledescription", "joint");
    joint.setAttribute("aria-valuemin", 0);
    joint.setAttribute("aria-valuemax", size);
    joint.addEventListener("focus", () => { if (!drag) say(i); });
    joint.addEventListener("blur", () => { commit(); hint(); });
    return joint;
  });
  const canvas = svg("svg", { class: "pose-editor-canvas", viewBox: `0 0 ${size} ${size}`, role: "group" }, [
    svg("rect", { width: size, height: size, fill: "#000" }), picture, ...lines, ...joints,
  ]);
  canvas.setAttribute("aria-label", "Skeleton. Arrow keys move a joint, with Shift further; H hides or shows it.");
  const stage = element("div", { className: "editor-stage" }, [canvas]);
  stage.style.width = `${size * scale}px`;
  const said = element("div", { className: "editor-said" });

  const hint = () => { said.textContent = "Drag a joint, or use Tab and arrow keys."; };
  const where = ([x, y, seen]) => `${Math.round(x)} across, ${Math.round(y)} down${seen ? "" : ", hidden"}`;
  const say = (i) => { said.textContent = `${names[i].replace("_", " ")}: ${where(pose[i])}`; };

  function draw() {
    bones.forEach(([a, b], i) => {
      const [[x1, y1, one], [x2, y2, two]] = [pose[a], pose[b]];
      for (const [key, value] of Object.entries({ x1, y1, x2, y2 })) lines[i].setAttribute(key, value);
      lines[i].classList.toggle("pose-editor-hidden", !(one && two));
    });
    pose.forEach((joint, i) => {
      joints[i].setAttribute("transform", `translate(${joint[0]} ${joint[1]})`);
      joints[i].setAttribute("aria-valuenow", Math.round(joint[0]));
      joints[i].setAttribute("aria-valuetext", where(joint));
      joints[i].classList.toggle("pose-editor-hidden", !joint[2]);
    });
    undoing.update();
  }

  let address = null;
  function load() {
    if (address) URL.revokeObjectURL(address);
    address = addressOf(model.get("picture"));
    if (address) picture.setAttribute("href", address); else picture.removeAttribute("href");
  }

  // ---- what Python gets

  const tidy = (pose) => pose.map(([x, y, seen]) => [Math.round(x * 100) / 100, Math.round(y * 100) / 100, seen]);

  function preview() {
    timer ??= setTimeout(() => {
      timer = null;
      model.set("moving", tidy(pose));
      model.save_changes();
    }, PAUSE);
  }

  function send() {
    clearTimeout(timer);
    timer = null;
    pose = tidy(pose);
    model.set("moving", []);
    model.set("joints", copied(pose));
    model.save_changes();
    draw();
  }

  // A whole new pose, which can be undone.
  function change(next) {
    commit();
    if (equal(next, pose)) return;
    history.remember(pose);
    pose = copied(next);
    send();
  }

  function toggle(i) {
    const next = copied(pose);
    next[i][2] = next[i][2] ? 0 : 1;
    change(next);
    say(i);
  }

  const options = () => ({ size, parents, keep: keep.checked });

  // ---- by pointer

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * size, ((event.clientY - box.top) / box.height) * size];
  }

  // The nearest joint that can be taken from here, or -1. A finger reaches further than a mouse.
  function taken(event) {
    const [x, y] = place(event), unit = canvas.getBoundingClientRect().width / size;
    let best = -1, least = NEAR[event.pointerType] ?? NEAR.mouse;
    pose.forEach((joint, i) => {
      const far = Math.hypot(joint[0] - x, joint[1] - y) * unit;
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || drag || !event.isPrimary) return;
    event.preventDefault();
    const index = taken(event);
    if (index < 0) return;
    commit();
    const [x, y] = place(event);
    // The joint does not jump to where the pointer is, but keeps its distance.
    drag = { index, before: pose, dx: pose[index][0] - x, dy: pose[index][1] - y, from: [event.clientX, event.clientY], far: false };
    canvas.setPointerCapture(event.pointerId);
    joints[index].focus({ preventScroll: true });
    joints[index].classList.add("pose-editor-taken");
    say(index);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    if (!drag) {
      canvas.style.cursor = taken(event) < 0 ? "default" : "grab";
      return;
    }
    // Less than three pixels are a tap with a shaking hand.
    drag.far ||= Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) > 3;
    if (!drag.far) return;
    canvas.style.cursor = "grabbing";
    const [x, y] = place(event);
    pose = moved(pose, drag.index, [x + drag.dx, y + drag.dy], options());
    draw();
    say(drag.index);
    preview();
  });

  function release(cancelled) {
    if (!drag) return;
    const { index, before, far } = drag;
    drag = null;
    joints[index].classList.remove("pose-editor-taken");
    canvas.style.cursor = "grab";
    if (far) {
      history.remember(before);
      tapped = null;
      send();
    } else if (!cancelled && tapped && tapped.index === index && performance.now() - tapped.when < 400) {
      tapped = null;
      toggle(index);
    } else tapped = { index, when: performance.now() };
  }

  canvas.addEventListener("pointerup", () => release(false));
  canvas.addEventListener("pointercancel", () => release(true));

  // ---- by keys

  // A key that is held down moves a joint many times, which counts as one change.
  function commit() {
    if (!turning) return;
    turning = false;
    send();
  }

  joints.forEach((joint, i) => {
    joint.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || drag) return;
      const way = WAYS[event.key];
      if (way) {
        event.preventDefault();
        const far = size / (event.shiftKey ? 16 : 128);
        const next = moved(pose, i, [pose[i][0] + far * way[0], pose[i][1] + far * way[1]], options());
        if (equal(next, pose)) return;
        if (!turning) history.remember(pose);
        turning = true;
        pose = next;
        draw();
        say(i);
        preview();
      } else if (event.key.toLowerCase() === "h" || event.key === "Delete" || event.key === "Backspace") {
        event.preventDefault();
        if (!event.repeat) toggle(i);
      }
    });
    joint.addEventListener("keyup", (event) => { if (WAYS[event.key]) commit(); });
  });

  // ---- the tools

  const keep = element("input", { type: "checkbox", className: "pose-editor-keep", checked: model.get("keep_lengths") });
  keep.addEventListener("change", () => { model.set("keep_lengths", keep.checked); model.save_changes(); });
  const undoing = new UndoButtons(el, "pose-editor", history, (step) => {
    commit();
    const other = drag ? null : history[step](pose);
    if (!other) return;
    pose = copied(other);
    send();
    hint();
  });
  const tools = element("div", { className: "editor-tools" }, [
    element("span", { className: "editor-buttons" }, [
      undoing.undo,
      undoing.redo,
      button("Mirror", "pose-editor-mirror", () => change(mirrored(pose, names, size)), "Swap left and right"),
      button("Reset", "pose-editor-reset", () => change(model.get("home")), "Back to the first pose"),
    ]),
    element("label", { title: "What hangs on a joint turns with it" }, [keep, " keep limb lengths"]),
  ]);
  const presets = Object.entries(model.get("presets")).map(([name, given]) =>
    button(name, "pose-editor-preset", () => change(given)));
  if (presets.length) tools.append(group("Poses", presets));

  // ---- what Python sets

  function receive() {
    const given = model.get("joints");
    if (drag || turning || sameNumbers(given, pose, 1e-3)) return; // in pixels
    history.clear();
    pose = copied(given);
    draw();
  }

  const held = () => { keep.checked = model.get("keep_lengths"); };
  model.on("change:joints", receive);
  model.on("change:picture", load);
  model.on("change:keep_lengths", held);
  el.append(stage, said, tools);
  hint();
  load();
  draw();
  return () => {
    clearTimeout(timer);
    if (address) URL.revokeObjectURL(address);
    model.off("change:joints", receive);
    model.off("change:picture", load);
    model.off("change:keep_lengths", held);
  };
}

export default { render };
