"""What all panels share: a picture, a line of text below it, controls beside it, and a static copy of the picture.

The picture is `widgets.Image`, the text `Said`; `Output` and `interact` are avoided, since they misplace what a thread
prints and leave nothing in a notebook that is not running.

Where a panel has no kernel any more, one of three things is seen:

- The kernel was restarted under an open notebook: the panel stays and moves nothing. `Said` tells which cell to run.
- The notebook is opened without being trusted, on GitHub, or as a page: its file has the picture, and `small` has
  written below it which cell to run.
- A notebook that the reader has run and saved is opened again, with a new kernel: JupyterLab prefers the live view,
  whose model is gone with the old kernel, and says "Error displaying widget: model not found" in place of the picture.
  No package can change that: the sentence is JupyterLab's own, and is shown before any code of a widget is loaded.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import matplotlib
import traitlets
from PIL import Image, ImageDraw, ImageFont

VIEW = "application/vnd.jupyter.widget-view+json"
INK, PAPER = (34, 34, 34), (255, 255, 255)
KEPT = 480  # pixels across, at most, of the copy that a notebook's file keeps
MARGIN, LINE = 8, 20  # pixels between the parts of a picture, and for a line of text
STILL = "A still picture: run the cell, and its controls appear."  # below what a notebook's file keeps
GONE = "The kernel that drew this has gone. Run this cell again, after those above it, to move the picture."
NARROW = 220  # pixels that controls need at least
PAUSE, PATIENCE = 0.03, 0.3  # seconds without a message, after which none waits; and how long that is waited for


def png(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """A picture as JPEG bytes, with colours at full resolution: a tenth of a PNG's size, for a photograph."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def small(data: bytes, said: str = "") -> bytes:
    """What a notebook's file keeps of a PNG: `KEPT` pixels across, 96 colours, a sixth of the size, and text below.

    The text is `said` (HTML), which the panel says of its picture, and `STILL`. A narrow picture gets white at its
    right, for the text.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width > KEPT:
        image = image.resize((KEPT, round(image.height * KEPT / image.width)), Image.Resampling.LANCZOS)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)  # has ✓ and ✗
    plain = html.unescape(re.sub("<[^>]+>", "", said.replace("<br>", "\n")))
    lines = [part for line in (*plain.splitlines(), STILL) for part in textwrap.wrap(line, 62)]
    width = max([image.width, *(round(font.getlength(line)) + 4 for line in lines)])
    sheet = Image.new("RGB", (width, image.height + LINE * len(lines) + 2), PAPER)
    sheet.paste(image, (0, 0))
    for i, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((2, image.height + 2 + LINE * i), line, INK, font)
    return png(sheet.quantize(96, method=Image.Quantize.MEDIANCUT, kmeans=2))


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures in a row on white, with a title above each."""
    font = ImageFont.load_default(15)
    width = sum(image.width for image in images) + MARGIN * (len(images) - 1)
    sheet = Image.new("RGB", (width, LINE + max(image.height for image in images)), PAPER)
    pen, left = ImageDraw.Draw(sheet), 0
    for image, title in zip(images, titles, strict=True):
        pen.text((left, 1), title, INK, font)
        sheet.paste(image, (left, LINE))
        left += image.width + MARGIN
    return sheet


def columns(parts: Mapping[widgets.DOMWidget, int]) -> widgets.Box:
    """Parts side by side, each with its width in pixels; one below the other where the window is narrow.

    The last one may be as narrow as `NARROW`, so that a panel with a wide picture stays in one row.
    """
    for part, width in parts.items():
        part.layout = widgets.Layout(width=f"{width}px", max_width="100%", flex="0 0 auto", margin="0")
    last, width = list(parts.items())[-1]
    if len(parts) > 1:
        last.layout = widgets.Layout(width="auto", max_width=f"{width}px", flex=f"1 1 {NARROW}px", margin="0")
    row = widgets.Layout(flex_flow="row wrap", align_items="flex-start", width="100%", grid_gap="8px 16px")
    return widgets.HBox(list(parts), layout=row)


class Said(anywidget.AnyWidget):
    """A line of text (HTML) that a screen reader says when it changes; above it a mark while a picture is drawn.

    While it is `busy`, the picture of the panel around it is faint, too, unless that takes no longer than a blink.
    """

    _esm = """
    function render({ model, el }) {
      const make = (name, textContent = "") => {
        const made = document.createElement("div");
        el.append(Object.assign(made, { className: `companion-${name}`, textContent }));
        return made;
      };
      el.classList.add("companion-line");
      const mark = make("mark", "drawing …"), said = make("said"), gone = make("gone", model.get("gone"));
      mark.setAttribute("aria-hidden", "true");
      for (const one of [said, gone]) one.setAttribute("role", "status");
      const show = () => { said.innerHTML = model.get("value"); };
      const work = () => {
        const busy = model.get("busy");
        said.setAttribute("aria-busy", String(busy));
        (el.closest(".companion-panel") ?? el).classList.toggle("companion-busy", busy);
        el.classList.toggle("companion-busy", busy);
      };
      model.on("change:value", show);
      model.on("change:busy", work);
      show();
      work();
      return () => { model.off("change:value", show); model.off("change:busy", work); };
    }
    export default { render };
    """
    # The manager of the widgets marks each one whose kernel has gone with the class jupyter-widgets-disconnected.
    _css = """
    .companion-line { position: relative; min-height: 3em; color: var(--jp-ui-font-color1, inherit); line-height: 1.4; }
    /* Over the corner of the picture, so that the text does not move. */
    .companion-mark { position: absolute; bottom: 100%; right: 0; padding: 2px 8px; visibility: hidden;
      background: #1565c0; color: #fff; font-size: 12px; transition: visibility 0s 0.1s; }
    .companion-busy > .companion-mark { visibility: visible; transition-delay: 0s; }
    .companion-panel img { transition: opacity 0.1s; }
    .companion-busy:not(.jupyter-widgets-disconnected) img { opacity: 0.5; transition-delay: 0.25s; }
    .companion-gone { display: none; font-weight: 600; }
    .jupyter-widgets-disconnected .companion-gone { display: block; }
    .jupyter-widgets-disconnected .companion-mark { display: none; }
    .companion-panel.jupyter-widgets-disconnected::before, .companion-panel .jupyter-widgets-disconnected::before {
      display: none; } /* a broken chain for each part of the panel */
    """
    value = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    gone = traitlets.Unicode(GONE).tag(sync=True)


class Kept:
    """A widget that leaves its picture in the notebook's file; this comes before the widget's own class.

    ipywidgets 7, which Colab has, displays widgets past their bundle, and so without the picture.
    """

    if widgets.__version__.startswith("7."):

        def _ipython_display_(self, **kwargs: Any) -> None:
            from IPython.display import display

            # pyrefly: ignore[missing-attribute]  # the widget has it
            display(self._repr_mimebundle_(), raw=True)
            self._handle_displayed(**kwargs)  # pyrefly: ignore[missing-attribute]  # ipywidgets 7 has it


class Panel(Kept, widgets.VBox):
    """A picture, a line of text below it, and controls beside it, or below it where the window is narrow.

    The picture shrinks with the window and keeps its proportions. In the notebook's file it leaves a PNG beside the
    live view, so that it can be seen on GitHub and before it is run.

    Args:
        width: of the picture, in pixels.
        beside: width of the controls, at most; 0 for controls that belong directly below the picture, and are as wide.
        first: what stands before the picture, with its width.
        reader: the pipeline that reads the control `prompt`; what it does not read of a long one is said.
    """

    prompt: Any = None  # a control, where there is one

    def __init__(
        self,
        controls: Sequence[widgets.Widget],
        width: int,
        beside: int = 420,
        first: Mapping[widgets.DOMWidget, int] | None = None,
        reader: Any = None,
    ) -> None:
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width="100%", height="auto", margin="0"))
        self.message = Said()
        self._reader = reader
        self._waiting: dict[Callable[[], None], float] = {}  # actions, and when each was asked for first
        self._asked = 0.0
        drawn = widgets.VBox([self.picture, *(controls if not beside else []), self.message])
        parts = {**(first or {}), drawn: width} | ({widgets.VBox(controls): beside} if beside else {})
        super().__init__([columns(parts)])
        self.add_class("companion-panel")

    @staticmethod
    def options() -> dict[str, Any]:
        """Options of a control that is as wide as its column, and tells its value when it is let go."""
        style, layout = {"description_width": "5em"}, widgets.Layout(width="auto")
        return {"continuous_update": False, "layout": layout, "style": style}

    def show(self, image: Image.Image, text: str = "") -> None:
        """Show a picture, and `text` (HTML) below it."""
        self.picture.value = png(image)
        unread = cut(self._reader.tokenizer, self.prompt.value) if hasattr(self._reader, "tokenizer") else ""
        self.message.value = "<br>".join(filter(None, [text, unread]))

    def watch(
        self, control: widgets.Widget, action: Callable[[], None], name: str = "value", *, quick: bool = False
    ) -> None:
        """Call `action` when the control changes (see `soon`); an error that it raises is shown in the line of text.

        quick: it takes no time, so it is called at once for each change, and is not marked.
        """
        control.observe(lambda change: self._try(action) if quick else self.soon(action), name)

    def attempt(self, action: Callable[[], object]) -> None:
        """Call `action`; an error in it becomes one sentence below the picture, which stays as it was.

        Meanwhile the panel is marked as busy, which the browser shows at once: a thread of the kernel's tells it.
        """
        self.message.busy = True
        try:
            self._try(action)
        finally:
            self.message.busy = False

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self.message.value = (
                f'<span style="color:var(--jp-error-color1,#b3261e)">{html.escape(sentence(error))}</span>'
            )

    def soon(self, action: Callable[[], None]) -> None:
        """`attempt` an action: at once, or when the browser asks for it, as soon as all that it has sent is read.

        While a picture is drawn, the browser goes on sending, and its messages wait in the kernel's queue. So that not
        each of them has a picture drawn that nobody waits for any more, the action is called once for all of them, and
        finds the latest state of every control.
        """
        loop = _loop_of_messages()
        if loop is None:
            self.attempt(action)
            return
        self._asked = loop.time()
        self.message.busy = True
        if action not in self._waiting:
            self._waiting[action] = self._asked
            loop.call_later(PAUSE, self._when_all_is_read, loop, action)

    def _when_all_is_read(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        now = loop.time()
        if now - self._asked < PAUSE and now - self._waiting[action] < PATIENCE:
            loop.call_later(PAUSE, self._when_all_is_read, loop, action)
            return
        del self._waiting[action]
        self.attempt(action)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        inherited = getattr(super(), "_repr_mimebundle_", None)  # ipywidgets 7 has none
        data: dict[str, Any] | None = inherited(**kwargs) if inherited else None
        if data is None:
            data = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}
        data["text/plain"] = f"{type(self).__name__}()"  # the default lists models by ids that change with each run
        if still := self.still():
            prompt = f"prompt: {html.escape(self.prompt.value)}<br>" if self.prompt is not None else ""
            data["image/png"] = base64.b64encode(small(still, prompt + self.message.value)).decode()
        return data

    def still(self) -> bytes:
        """The PNG that the notebook's file keeps of the panel: its picture, unless a panel has more to show."""
        return bytes(self.picture.value)


def _loop_of_messages() -> asyncio.AbstractEventLoop | None:
    """The kernel's event loop while it handles a message that a widget in the browser has sent, else None.

    A cell that sets a control is no such message, and finds the new picture on its next line.
    """
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent() if hasattr(kernel, "get_parent") else {}
    if (parent or {}).get("header", {}).get("msg_type") != "comm_msg":
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def sentence(error: Exception) -> str:
    """An error's message on one line, after the name of its type unless it is a ValueError with a message."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def cut(tokenizer: Any, prompt: str) -> str:
    """What the text encoder does not read of a prompt, since it is too long, as a sentence (HTML); "" if it reads all.

    A tokenizer adds a start and an end, which count, and silently cuts what comes after `model_max_length` tokens.
    """
    ids, most = tokenizer(prompt, verbose=False).input_ids, tokenizer.model_max_length
    if len(ids) <= most:
        return ""
    unread = html.escape(tokenizer.decode(ids[most - 1 : -1]).strip())
    return f"The prompt has {len(ids) - 2} tokens and the model reads {most - 2}; it does not see “<i>{unread}</i>”."
