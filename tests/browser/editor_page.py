"""An editor on a bare page, without JupyterLab: its own script, and a model that keeps what it sends."""

from __future__ import annotations

import base64
from typing import Any

from notebook_page import screenshots

from companion.widgets.painter import Editor

ADDRESS = "http://editor.test/"
PAGE = """<!doctype html><html><head><style>{style} {theme}</style></head>
<body><div id="editor"></div></body></html>"""
THEMES = {
    "light": "body { background: #fff; color: #222; font-family: sans-serif; }",
    "dark": "body { --jp-ui-font-color1: #ddd; --jp-layout-color2: #333; --jp-layout-color3: #555; "
    "background: #111; color: #ddd; font-family: sans-serif; }",
}
# The part of anywidget's model that editors use. `sent` has what each save_changes would send to Python.
MODEL = """async ([script, state]) => {
    const bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
    const read = value => value?.bytes !== undefined ? bytes(value.bytes)
        : Array.isArray(value) && value[0]?.bytes !== undefined ? value.map(read) : value;
    for (const [key, value] of Object.entries(state)) state[key] = read(value);
    window.read = read;
    const handlers = {};
    let changed = {};
    window.model = {
        state, sent: [],
        get: key => state[key],
        set(key, value) {
            if (JSON.stringify(state[key]) === JSON.stringify(value) && !(value instanceof DataView)) return;
            state[key] = changed[key] = value;
            for (const handler of handlers[`change:${key}`] ?? []) handler();
        },
        save_changes() { this.sent.push(changed); changed = {}; },
        on: (name, handler) => { (handlers[name] ??= []).push(handler); },
        off: (name, handler) => { handlers[name] = handlers[name].filter(other => other !== handler); },
        handlers,
    };
    window.keys = [];
    document.addEventListener("keydown", event => window.keys.push(event.key));
    const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    window.module = module;
    window.clean = module.default.render({ model, el: document.getElementById("editor") });
}"""
# Bytes come as the text of base64, since a page answers in JSON.
SENT = """() => model.sent.map(state => Object.fromEntries(Object.entries(state).map(([key, value]) =>
    [key, value instanceof DataView
        ? { bytes: btoa(String.fromCharCode(...new Uint8Array(value.buffer))) } : value])))"""


class EditorPage:
    """A widget on a page. What the page sends is set on the widget too, as a kernel does, which checks it."""

    def __init__(self, page: Any, widget: Editor, theme: str = "light") -> None:
        self.page, self.widget, self._taken = page, widget, 0
        html = PAGE.format(style=widget._css, theme=THEMES[theme])
        page.route(ADDRESS, lambda route: route.fulfill(body=html, content_type="text/html"))
        page.goto(ADDRESS)
        page.evaluate(MODEL, [str(widget._esm), self.state(*widget.trait_names(sync=True))])
        self.stage = page.locator(".editor-stage")

    def sent(self) -> list[dict[str, Any]]:
        """What was sent since the last time, by now also set on the widget; what that made otherwise, it has sent back,
        as ipywidgets does.
        """
        states = self.page.evaluate(SENT)[self._taken :]
        self._taken += len(states)
        for state in states:
            for name, value in state.items():
                state[name] = memoryview(base64.b64decode(value["bytes"])) if isinstance(value, dict) else value
                self.widget.set_trait(name, state[name])
        for name, value in (states[-1] if states else {}).items():
            if isinstance(value, list) and getattr(self.widget, name) != value:
                self.receive(name)
        return states

    def state(self, *names: str) -> dict[str, Any]:
        """Some of the widget's traits, as JSON can hold them."""

        def written(value: Any) -> Any:
            return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

        state = {}
        for name in names:
            value = getattr(self.widget, name)
            if not name.startswith("_") and isinstance(value, bytes | str | int | float | list | dict):
                state[name] = [written(v) for v in value] if isinstance(value, list) else written(value)
        return state

    def receive(self, *names: str) -> None:
        """The page gets these traits from Python, as a kernel sends them."""
        self.page.evaluate(
            "state => { for (const [key, value] of Object.entries(state)) model.set(key, read(value)); }",
            self.state(*names),
        )
        self.page.evaluate("model.save_changes()")  # they are not sent back
        self._taken += 1

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where in the window a point of the picture lies, x and y in its pixels."""
        box = self.stage.bounding_box()
        return float(box["x"] + x * self.widget.scale), float(box["y"] + y * self.widget.scale)

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first point, move through the others, let go."""
        mouse = self.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=6)
        mouse.up()

    def touch(self, *points: tuple[float, float]) -> None:
        """The same with a finger, by the browser's own protocol."""
        session = self.page.context.new_cdp_session(self.page)
        for i, point in enumerate(points):
            x, y = self.at(*point)
            kind = "touchMove" if i else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def press(self, name: str) -> None:
        """Press the button of this name."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def focus(self, selector: str) -> None:
        """Press Tab until this element has the focus."""
        for _ in range(40):
            if self.page.locator(f"{selector}:focus").count():
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    def screenshot(self, name: str) -> None:
        if folder := screenshots():
            self.page.screenshot(path=folder / f"{name}.png")
