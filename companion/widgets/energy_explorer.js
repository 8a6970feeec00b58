// Points on a circle or a sphere, their hyperspherical energy, and the force on each. All of it is computed here; Python
// gets the points when they are let go. A sphere is seen from far away, and can be turned.

const HALF = 1.45; // of the drawing's width, in radii
const NEAR = { mouse: 16, pen: 20, touch: 36 }; // how far from a point it can be taken, in pixels of the screen
const FRAMES = 36; // of the animation of one move
const DEGREE = Math.PI / 180;
const STILL = window.matchMedia("(prefers-reduced-motion: reduce)");

// ---- Vectors

const dot = (a, b) => a.reduce((sum, v, k) => sum + v * b[k], 0);
const plus = (a, b, t = 1) => a.map((v, k) => v + t * b[k]);
const norm = (a) => Math.hypot(...a);
const unit = (a) => { const length = norm(a) || 1; return a.map((v) => v / length); };
const along = (a, point) => plus(a, point, -dot(a, point)); // the part of a vector along the circle or sphere
const times = (M, v) => M.map((row) => dot(row, v));
const product = (A, B) => A.map((row) => B[0].map((_, k) => row.reduce((sum, v, j) => sum + v * B[j][k], 0)));
const transposed = (M) => M[0].map((_, k) => M.map((row) => row[k]));

// The rotation by an angle: of the plane, or about an axis of space (Rodrigues' formula).
function rotation(angle, axis = null) {
  const c = Math.cos(angle), s = Math.sin(angle);
  if (!axis) return [[c, -s], [s, c]];
  const [x, y, z] = unit(axis), d = 1 - c;
  return [
    [c + x * x * d, x * y * d - z * s, x * z * d + y * s],
    [y * x * d + z * s, c + y * y * d, y * z * d - x * s],
    [z * x * d - y * s, z * y * d + x * s, c + z * z * d],
  ];
}

// ---- Energy, as companion.energy.hyperspherical_energy has it

const potential = (z, s) => (s === 0 ? -Math.log(z) : z ** -s);

// The sum of f(z) over all pairs i != j, each counted twice; in half-space the opposite of each point counts, too.
export function energy(points, s, half) {
  let sum = 0;
  for (const [i, a] of points.entries()) {
    for (const b of points.slice(0, i)) {
      sum += 2 * potential(norm(plus(a, b, -1)), s);
      if (half) sum += 2 * potential(norm(plus(a, b)), s);
    }
  }
  return half ? 2 * sum + 2 * points.length * potential(2, s) : sum;
}

// Minus the gradient of the energy at each point, along the circle or sphere.
export function forces(points, s, half) {
  return points.map((a, i) => {
    let sum = a.map(() => 0);
    for (const [j, b] of points.entries()) {
      if (i === j) continue;
      for (const sign of half ? [1, -1] : [1]) {
        const apart = plus(a, b, -sign);
        sum = plus(sum, apart, (half ? 4 : 2) * (s || 1) * norm(apart) ** (-s - 2));
      }
    }
    return along(sum, a);
  });
}

// Points that are not in one place, not even with an opposite: where they are, forces have no direction.
function parted(points, half) {
  return points.map((a, i) => {
    const twins = points.slice(0, i).filter((b) => norm(plus(a, b, -1)) < 1e-6 || (half && norm(plus(a, b)) < 1e-6)).length;
    if (!twins) return a;
    const aside = a.length === 2 ? [-a[1], a[0]] : along(Math.abs(a[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0], a);
    return unit(plus(a, unit(aside), 0.01 * twins));
  });
}

// Gradient descent: a step that lowers the energy, and how long it was. Null when none does any more.
export function descend(points, s, half, step) {
  const before = energy(points, s, half), pull = forces(points, s, half);
  const most = Math.max(...pull.map(norm));
  if (!(most > 1e-9)) return null;
  for (let length = Math.min(step, 0.2 / most); length * most > 1e-9; length /= 2) {
    const next = points.map((a, i) => unit(plus(a, pull[i], length)));
    if (energy(next, s, half) < before) return { points: next, step: 1.5 * length };
  }
  return null;
}

function render({ model, el }) {
  frame(el, "energy-explorer");
  const most = model.get("most"), side = model.get("side"), history = new History();
  let points = model.get("points"), chosen = 0, drag = null, nudging = false, playing = null;
  let view = product(rotation(0.35, [1, 0, 0]), rotation(-0.5, [0, 1, 0])); // rows: right, up, towards the viewer
  const kept = {}; // the points of the other kind, by their dimension
  const flat = () => points[0].length === 2;
  const s = () => model.get("s"), half = () => model.get("half_space");
  const seen = (a) => (flat() ? [...a, 0] : times(view, a)); // right, up, towards the viewer

  // ---- what is on the page

  const back = svg("g"), globe = svg("g"), front = svg("g");
  const rim = svg("circle", { r: 1, class: "energy-rim" });
  const canvas = svg("svg", { viewBox: `${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`, class: "energy-canvas", role: "group" }, [
    back, rim, globe, front,
  ]);
  const stage = element("div", { className: "editor-stage" }, [canvas]);
  stage.style.width = `${side}px`;
  const number = element("output", { className: "energy-number" });
  const evenly = element("div", { className: "energy-evenly" });
  const said = element("div", { className: "editor-said" });
  said.setAttribute("role", "status");
  let made = []; // for each point: what is drawn of it

  function build() {
    if (made.length === points.length) return; // what has the focus keeps it
    const focused = front.contains(el.getRootNode().activeElement);
    for (const { point, opposite, arrow } of made) for (const one of [point, opposite, arrow]) one.remove();
    made = points.map((_, i) => {
      const ring = svg("circle", { r: 0.085, class: "energy-ring" }), dot = svg("circle", { r: 0.055, class: "energy-dot" });
      const point = svg("g", { class: "energy-point", tabindex: 0, role: "slider", "data-point": i }, [ring, dot]);
      point.setAttribute("aria-roledescription", "point");
      point.addEventListener("focus", () => { chosen = i; });
      point.addEventListener("blur", commit);
      point.addEventListener("keydown", (event) => pointKey(event, i));
      point.addEventListener("keyup", (event) => { if (WAYS[event.key]) commit(); });
      return { point, opposite: svg("circle", { r: 0.035, class: "energy-opposite" }), arrow: svg("path", { class: "energy-arrow" }) };
    });
    chosen = Math.min(chosen, points.length - 1);
    front.append(...made.map(({ point }) => point)); // in the order of Tab
    if (focused) made[chosen].point.focus({ preventScroll: true });
  }

  // An arrow from a point along a force, as it is seen.
  function arrowPath(a, pull) {
    const strength = norm(pull);
    if (!Number.isFinite(strength) || strength === 0) return "";
    const length = (0.45 * strength) / (strength + 2 * points.length); // as in energy.py
    const [x, y] = seen(a), [dx, dy] = seen(pull).map((v) => (v / strength) * length), far = Math.hypot(dx, dy);
    if (far < 0.01) return "";
    const head = Math.min(0.055, far), [ux, uy] = [dx / far, dy / far], tip = [x + dx, y + dy];
    const wing = (k) => `${tip[0] - head * ux - k * 0.5 * head * uy} ${-(tip[1] - head * uy + k * 0.5 * head * ux)}`;
    return `M${x} ${-y}L${tip[0]} ${-tip[1]}M${wing(1)}L${tip[0]} ${-tip[1]}L${wing(-1)}`;
  }

  // Some circles on the sphere, the part of each in front.
  function drawGlobe() {
    globe.replaceChildren();
    if (flat()) return;
    const circle = (at) => {
      let path = "", off = true;
      for (let k = 0; k <= 72; k++) {
        const [x, y, z] = times(view, at(5 * k * DEGREE));
        if (z >= 0) path += `${off ? "M" : "L"}${x.toFixed(3)} ${(-y).toFixed(3)}`;
        off = z < 0;
      }
      return svg("path", { d: path, class: "energy-grid" });
    };
    for (const up of [-60, -30, 0, 30, 60]) {
      const h = Math.sin(up * DEGREE), r = Math.cos(up * DEGREE);
      globe.append(circle((t) => [r * Math.cos(t), h, r * Math.sin(t)]));
    }
    for (const east of [0, 30, 60, 90, 120, 150]) {
      const c = Math.cos(east * DEGREE), q = Math.sin(east * DEGREE);
      globe.append(circle((t) => [Math.sin(t) * c, Math.cos(t), Math.sin(t) * q]));
    }
  }

  const degrees = (a) => Math.round(Math.atan2(a[1], a[0]) / DEGREE + 360) % 360;

  // How a point stands, in words.
  function where(a) {
    if (flat()) return `at ${degrees(a)} degrees`;
    const [x, y, z] = seen(a).map((v) => v.toFixed(2));
    return `${x} right, ${y} up, ${z < 0 ? "behind" : "in front"}`;
  }

  const format = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(7))) : value > 0 ? "∞" : "–");

  // Of a circle the least energy is known: that of evenly spread points. With opposites, 2n are spread evenly.
  function least() {
    const n = points.length, even = (k) => [Math.cos(k), Math.sin(k)];
    return energy(points.map((_, i) => even((i * (half() ? 1 : 2) * Math.PI) / n)), s(), half());
  }

  function draw() {
    const pulls = forces(points, s(), half());
    made.forEach(({ point, opposite, arrow }, i) => {
      const [x, y, z] = seen(points[i]), behind = z < -1e-9;
      point.setAttribute("transform", `translate(${x} ${-y})`);
      point.classList.toggle("energy-behind", behind);
      point.setAttribute("aria-label", `Point ${i + 1}`);
      const range = flat() ? [0, 360, degrees(points[i])] : [-100, 100, Math.round(100 * x)];
      ["min", "max", "now"].forEach((key, k) => point.setAttribute(`aria-value${key}`, range[k]));
      point.setAttribute("aria-valuetext", `${where(points[i])}; energy ${format(energy(points, s(), half()))}`);
      opposite.setAttribute("transform", `translate(${-x} ${y})`);
      opposite.classList.toggle("energy-behind", z > 1e-9);
      arrow.setAttribute("d", arrowPath(points[i], pulls[i]));
      arrow.classList.toggle("energy-behind", behind);
      if (half()) (z > 1e-9 ? back : globe).append(opposite); else opposite.remove();
      (behind ? back : globe).append(arrow);
    });
    canvas.setAttribute("aria-label", flat()
      ? "Points on a circle. Arrow keys move a point, with Shift further."
      : "Points on a sphere. Arrow keys move a point, with Shift further; on the sphere itself they turn it.");
    number.textContent = format(energy(points, s(), half()));
    evenly.textContent = flat() ? `least for ${points.length} points: ${format(least())}` : "";
    press(circle, flat());
    press(sphere, !flat());
    for (const [value, made] of Object.entries(powers)) press(made, Number(value) === s());
    halves.checked = half();
    add.setAttribute("aria-disabled", String(points.length >= most));
    remove.setAttribute("aria-disabled", String(points.length <= 2));
    count.textContent = `${points.length} points`;
    if (flat()) canvas.removeAttribute("tabindex"); else canvas.setAttribute("tabindex", 0);
    canvas.classList.toggle("energy-turns", !flat());
    undoing.update();
  }

  const redraw = () => { drawGlobe(); draw(); };

  function hint() {
    said.textContent = flat() ? "Drag a point, or use Tab and arrow keys. Arrows are forces."
      : "Drag a point, or turn the sphere beside it. Arrows are forces.";
  }

  // ---- what changes

  function send() {
    model.set("points", points);
    model.save_changes();
    draw();
  }

  function commit() {
    if (!nudging) return;
    nudging = false;
    send();
  }

  // Other points, which can be undone.
  function change(next, words = "") {
    stop();
    commit();
    history.remember(points);
    points = next;
    build();
    drawGlobe();
    send();
    said.textContent = words;
  }

  // What moves by itself is `playing`: the next frame's id, and what to do when it ends.
  function plays(what) {
    playing = what;
    stage.setAttribute("aria-busy", String(Boolean(what)));
  }

  // Play a change that takes some frames: `at(part)` are the points by then, from 0 to 1.
  function animate(at, done) {
    stop();
    commit();
    history.remember(points);
    const first = STILL.matches ? FRAMES : 1;
    const tick = (frame) => {
      points = at(frame / FRAMES);
      draw();
      if (frame < FRAMES) { plays({ id: requestAnimationFrame(() => tick(frame + 1)), done: () => {} }); return; }
      plays(null);
      send();
      done();
    };
    tick(first);
  }

  // Whatever moves stays where it is.
  function stop() {
    if (!playing) return;
    cancelAnimationFrame(playing.id);
    const { done } = playing;
    plays(null);
    send();
    done();
  }

  function spread() {
    if (playing?.spreads) { stop(); return; }
    stop();
    commit();
    history.remember(points);
    const start = energy(points, s(), half());
    let step = 0.1, n = 0;
    points = parted(points, half());
    const done = () => {
      spreading.textContent = "Spread";
      const end = energy(points, s(), half());
      said.textContent = `${n} steps of gradient descent: from ${format(start)} to ${format(end)}`;
    };
    const more = () => {
      const found = n < 5000 ? descend(points, s(), half(), step) : null;
      if (!found) return false;
      ({ points, step } = found);
      n += 1;
      return true;
    };
    if (STILL.matches) {
      while (more());
      send();
      done();
      return;
    }
    spreading.textContent = "Stop";
    const tick = () => {
      // Few steps at first, when much moves, so that it is seen.
      let goes = true;
      for (let k = 0; goes && k < 1 + Math.min(20, n / 10); k++) goes = more();
      draw();
      if (goes) plays({ id: requestAnimationFrame(tick), spreads: true, done });
      else { plays(null); send(); done(); }
    };
    tick();
  }

  const changed = (before) => {
    const now = energy(points, s(), half()), by = now - before;
    return `${format(before)} → ${format(now)}: ${now === before || Math.abs(by) < 1e-9 * Math.max(1, Math.abs(before)) ? "unchanged" : `${by > 0 ? "+" : "−"}${format(Math.abs(by))}`}`;
  };

  function turnAll() {
    const start = points, before = energy(points, s(), half()), axis = flat() ? null : [0.3, 0.8, 0.5];
    animate((part) => start.map((a) => unit(times(rotation(40 * DEGREE * part, axis), a))),
      () => { said.textContent = `all turned together, ${changed(before)}`; });
  }

  function moveOne() {
    const start = points, i = chosen, before = energy(points, s(), half());
    // On the sphere about what is at right angles to the point, and nearest to the line of sight where that is possible.
    const axes = flat() ? [null] : [view[2], view[0]].map((axis) => along(axis, points[i]));
    const about = axes[0] && norm(axes[0]) < 0.1 ? axes[1] : axes[0];
    animate((part) => start.map((a, k) => (k === i ? unit(times(rotation(25 * DEGREE * part, about), a)) : a)),
      () => { said.textContent = `point ${i + 1} moved, ${changed(before)}`; });
  }

  // ---- by pointer

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(((event.clientX - box.left) / box.width) * 2 - 1) * HALF, (1 - ((event.clientY - box.top) / box.height) * 2) * HALF];
  }

  // The nearest point that can be taken from here, those in front first; -1 if there is none.
  function taken(event) {
    const [x, y] = place(event), scale = canvas.getBoundingClientRect().width / (2 * HALF);
    let best = -1, least = NEAR[event.pointerType] ?? NEAR.mouse;
    points.forEach((a, i) => {
      const [px, py, z] = seen(a), far = Math.hypot(px - x, py - y) * scale + (z < -1e-9 ? 8 : 0);
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  // The point of the circle or sphere at a place of the drawing; of two, that on the side (1 or -1) that is given.
  function raised([x, y], side) {
    if (flat()) return unit(x || y ? [x, y] : [1, 0]);
    const r = Math.hypot(x, y), across = r > 1 ? [x / r, y / r] : [x, y];
    const z = side * Math.sqrt(Math.max(0, 1 - across[0] ** 2 - across[1] ** 2));
    return unit(times(transposed(view), [...across, z]));
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || drag || !event.isPrimary) return;
    const index = taken(event);
    if (index < 0 && flat()) return;
    event.preventDefault();
    stop();
    commit();
    const at = place(event), [x, y, z] = index < 0 ? [0, 0, 0] : seen(points[index]);
    drag = { index, before: points, at, dx: x - at[0], dy: y - at[1], side: z < 0 ? -1 : 1, start: energy(points, s(), half()) };
    canvas.setPointerCapture(event.pointerId);
    (index < 0 ? canvas : made[index].point).focus({ preventScroll: true });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    if (!drag) {
      canvas.style.cursor = taken(event) < 0 ? (flat() ? "default" : "move") : "grab";
      return;
    }
    const [x, y] = place(event);
    if (drag.index < 0) {
      turnView(x - drag.at[0], y - drag.at[1]);
      drag.at = [x, y];
      return;
    }
    points = points.map((a, i) => (i === drag.index ? raised([x + drag.dx, y + drag.dy], drag.side) : a));
    draw();
  });
  const release = () => {
    if (!drag) return;
    const { index, before, start } = drag;
    drag = null;
    if (index < 0 || points === before) return;
    history.remember(before);
    send();
    said.textContent = `point ${index + 1} moved, ${changed(start)}`;
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);

  function turnView(right, up) {
    view = product(product(rotation(right, [0, 1, 0]), rotation(-up, [1, 0, 0])), view);
    // Rounding adds up over many turns.
    const [x, y] = [unit(view[0]), unit(along(view[1], unit(view[0])))];
    view = [x, y, [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]]];
    redraw();
  }

  // ---- by keys

  function pointKey(event, i) {
    const way = WAYS[event.key];
    if (!way || drag || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    stop();
    const angle = (event.shiftKey ? 10 : 2) * DEGREE, [right, down] = way;
    // On the circle, left and up are counter-clockwise; on the sphere, a point goes where the arrow points.
    const axis = flat() ? null : times(transposed(view), right ? [0, right, 0] : [down, 0, 0]);
    const next = unit(times(rotation(flat() ? -angle * (right + down) : angle, axis), points[i]));
    if (!nudging) history.remember(points);
    nudging = true;
    points = points.map((a, k) => (k === i ? next : a));
    draw();
    said.textContent = `point ${i + 1} ${where(points[i])}`;
  }

  canvas.addEventListener("keydown", (event) => {
    const way = WAYS[event.key];
    if (event.target !== canvas || flat() || !way || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const far = event.shiftKey ? 0.35 : 0.09;
    turnView(far * way[0], -far * way[1]);
  });

  // ---- the tools

  function random(d) {
    const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    return unit(Array.from({ length: d }, normal));
  }

  function mode(d) {
    if (points[0].length === d) return;
    stop();
    kept[points[0].length] = points;
    change(kept[d] ?? points.map(() => random(d)));
    hint();
  }

  const circle = button("Circle", "energy-circle", () => mode(2)), sphere = button("Sphere", "energy-sphere", () => mode(3));
  const powers = Object.fromEntries([0, 1, 2].map((value) => [value, button(String(value), `energy-s${value}`, () => {
    model.set("s", value); // which calls `draw`
    model.save_changes();
  }, value ? `f(z) = z^-${value}` : "f(z) = log(1 / z)")]));
  const halves = element("input", { type: "checkbox", className: "energy-half" });
  halves.addEventListener("change", () => { model.set("half_space", halves.checked); model.save_changes(); });
  const spreading = button("Spread", "energy-spread", spread, "Gradient descent: each point gives way to the force on it");
  const add = button("Add", "energy-add", () => {
    if (points.length < most) change([...points, random(points[0].length)], "a point was added");
  });
  const remove = button("Remove", "energy-remove", () => {
    if (points.length > 2) change(points.filter((_, i) => i !== chosen), `point ${chosen + 1} was removed`);
  }, "The point that was touched last");
  const count = element("span");
  const undoing = new UndoButtons(el, "energy", history, (step) => {
    stop();
    commit();
    const other = drag ? null : history[step](points);
    if (!other) return;
    points = other;
    build();
    drawGlobe();
    send();
    hint();
  });
  const tools = [
    group("Where", [circle, sphere]),
    group("The power s", [element("span", { textContent: "s =" }), ...Object.values(powers)]),
    element("label", { title: "The opposite of each point counts, too" }, [halves, " half-space"]),
    group("Try", [
      spreading,
      button("Turn all", "energy-turn", turnAll, "A rotation that all points share"),
      button("Move one", "energy-move", moveOne, "The point that was touched last"),
    ]),
    group("Points", [count, add, remove]),
    element("span", { className: "editor-buttons" }, [
      undoing.undo, undoing.redo,
      button("Reset", "energy-reset", () => { change(model.get("home")); hint(); }, "The first points"),
    ]),
  ].map((part) => element("div", { className: "editor-tools" }, [part]));

  // ---- what Python sets

  function receive() {
    const given = model.get("points");
    if (drag || nudging || sameNumbers(given, points, 1e-6)) return;
    if (playing) { // what plays ends here, and is not sent
      cancelAnimationFrame(playing.id);
      plays(null);
      spreading.textContent = "Spread";
    }
    history.clear();
    points = given;
    build();
    redraw();
    hint();
  }

  const events = { "change:points": receive, "change:s": draw, "change:half_space": draw };
  for (const [name, handler] of Object.entries(events)) model.on(name, handler);
  el.append(element("div", { className: "editor-row" }, [
    stage,
    element("div", { className: "energy-side" }, [
      element("div", {}, [element("span", { textContent: "energy " }), number]), evenly, ...tools, said,
    ]),
  ]));
  build();
  redraw();
  hint();
  return () => {
    if (playing) cancelAnimationFrame(playing.id);
    for (const [name, handler] of Object.entries(events)) model.off(name, handler);
  };
}

export default { render };
