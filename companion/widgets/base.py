"""What all panels share: a picture, a line of text below it, controls, and a static copy of the picture.

The picture is `widgets.Image`, the text `widgets.HTML`; `Output` and `interact` are avoided, since they misplace what a
thread prints and leave nothing in a notebook that is not running.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from PIL import Image, ImageDraw, ImageFont

VIEW = "application/vnd.jupyter.widget-view+json"
INK, PAPER = (34, 34, 34), (255, 255, 255)
KEPT = 480  # pixels across, at most, of the copy that a notebook's file keeps
MARGIN, LINE = 8, 20  # pixels between the parts of a picture, and for a line of text
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


def small(data: bytes) -> bytes:
    """A PNG reduced to `KEPT` pixels across and 96 colours, a sixth of the size, to keep in a notebook's file."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width > KEPT:
        image = image.resize((KEPT, round(image.height * KEPT / image.width)), Image.Resampling.LANCZOS)
    return png(image.quantize(96, method=Image.Quantize.MEDIANCUT, kmeans=2))


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures in a row on white, with a title above each."""
    font = ImageFont.load_default(13)
    width = sum(image.width for image in images) + MARGIN * (len(images) - 1)
    sheet = Image.new("RGB", (width, LINE + max(image.height for image in images)), PAPER)
    pen, left = ImageDraw.Draw(sheet), 0
    for image, title in zip(images, titles, strict=True):
        pen.text((left, 1), title, INK, font)
        sheet.paste(image, (left, LINE))
        left += image.width + MARGIN
    return sheet


def columns(parts: Mapping[widgets.DOMWidget, int]) -> widgets.Box:
    """Parts side by side, each with its width in pixels; one below the other where the window is narrow."""
    for part, width in parts.items():
        part.layout = widgets.Layout(width=f"{width}px", max_width="100%", flex="0 0 auto", margin="0")
    row = widgets.Layout(flex_flow="row wrap", align_items="flex-start", width="100%", grid_gap="8px 16px")
    return widgets.HBox(list(parts), layout=row)


class Said(anywidget.AnyWidget):
    """A line of text (HTML) that a screen reader says when it changes."""

    _esm = """
    function render({ model, el }) {
      const said = document.createElement("div");
      said.setAttribute("role", "status");
      said.setAttribute("aria-live", "polite");
      said.style.cssText = "min-height: 3em; color: var(--jp-ui-font-color1, inherit)";
      el.append(said);
      const show = () => { said.innerHTML = model.get("value"); };
      model.on("change:value", show);
      show();
      return () => model.off("change:value", show);
    }
    export default { render };
    """
    value = traitlets.Unicode().tag(sync=True)


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
    """A picture of fixed size, a line of text below it, and controls.

    In the notebook's file it leaves a PNG beside the live view, so that it can be seen on GitHub and before it is run.
    """

    def __init__(self, controls: Sequence[widgets.Widget], width: int, height: int) -> None:
        # Fixed sizes, so that nothing moves when a new picture arrives.
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width=f"{width}px", height=f"{height}px"))
        self.message: Any = widgets.HTML(layout=widgets.Layout(width="auto", min_height="3em"))
        self._waiting: dict[Callable[[], None], float] = {}  # actions, and when each was asked for first
        self._asked = 0.0
        super().__init__([self.picture, self.message, *controls])

    def show(self, image: Image.Image, text: str = "") -> None:
        """Show a picture, and `text` (HTML) below it."""
        self.picture.value = png(image)
        self.message.value = text

    def watch(self, control: widgets.Widget, action: Callable[[], None], name: str = "value") -> None:
        """Call `action` when the control changes; an error that it raises is shown in the line of text."""
        control.observe(lambda change: self.attempt(action), name)

    def attempt(self, action: Callable[[], None]) -> None:
        """Call `action`; an error in it becomes one sentence below the picture, which stays as it was."""
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
            data["image/png"] = base64.b64encode(small(still)).decode()
        return data

    def still(self) -> bytes:
        """The PNG that the notebook's file keeps of the panel: its picture, unless a panel has more to show."""
        return bytes(self.picture.value)


class Beside(Panel):
    """A panel whose controls stand beside its picture, or below it where the window is narrow.

    What it watches calls its action when all that the browser has sent is read (see `Panel.soon`).

    Args:
        width, height: of the picture, in pixels.
        beside: width of the controls.
        first: what stands before the picture, with its width.
    """

    def __init__(
        self,
        controls: Sequence[widgets.Widget],
        width: int,
        height: int,
        beside: int,
        first: Mapping[widgets.DOMWidget, int] | None = None,
    ) -> None:
        super().__init__(controls, width, height)
        self.message = Said()
        self.picture.layout = widgets.Layout(width="100%", height="auto", margin="0")
        drawn = widgets.VBox([self.picture, self.message])
        self.children = (columns({**(first or {}), drawn: width, widgets.VBox(controls): beside}),)

    @staticmethod
    def options() -> dict[str, Any]:
        """Options of a control that is as wide as its column, and tells its value when it is let go."""
        style, layout = {"description_width": "4em"}, widgets.Layout(width="auto")
        return {"continuous_update": False, "layout": layout, "style": style}

    def watch(self, control: widgets.Widget, action: Callable[[], None], name: str = "value") -> None:
        control.observe(lambda change: self.soon(action), name)


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
