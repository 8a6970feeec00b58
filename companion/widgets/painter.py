"""What is made by hand in the browser: what all editors share, and a painter for masks and scribbles."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from companion.widgets.base import VIEW, Kept, png, small

SIDE = 288  # of a picture on the screen, in pixels
FOLDER = Path(__file__).parent


def script(name: str) -> str:
    """An editor's script, with what all editors share before it: a widget's script is one module."""
    return "\n".join((FOLDER / part).read_text(encoding="utf-8") for part in ("editors.js", name))


STYLE = (FOLDER / "editors.css").read_text(encoding="utf-8")


class Editor(Kept, anywidget.AnyWidget):
    """A widget in which something is made by hand; it leaves a picture of it in the notebook, as panels do."""

    _css = STYLE
    # CBytes, since a memoryview comes from the browser.
    picture = traitlets.CBytes().tag(sync=True)
    scale = traitlets.Float(1.0).tag(sync=True)

    def preview(self) -> Image.Image:
        """What the browser shows."""
        raise NotImplementedError

    # anywidget gives metadata beside the data; IPython takes either.
    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:  # pyrefly: ignore[bad-override]
        return {
            "text/plain": f"{type(self).__name__}()",
            "image/png": base64.b64encode(small(png(self.preview()))).decode(),
            VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.model_id},
        }


class Painter(Editor):
    """Brush, eraser (or Shift), undo, redo, clear; mouse, pen, touch and keys. Each stroke is sent when it ends.

    Args:
        width, height: of what is painted, in pixels.
        brush: its diameter in these pixels.
        side: width on the screen, in pixels.
        traits: initial values of further traits, such as `picture`, what is painted on, as PNG bytes.
    """

    _esm = script("painter.js")
    mode = traitlets.Unicode("mask").tag(sync=True)  # or "scribble": see painter.js
    mask = traitlets.CBytes().tag(sync=True)
    width = traitlets.Int(1).tag(sync=True)
    height = traitlets.Int(1).tag(sync=True)
    brush = traitlets.Int(16).tag(sync=True)

    def __init__(self, width: int, height: int, brush: int, side: int = SIDE, **traits: Any) -> None:
        empty = bytes(width * height)
        super().__init__(width=width, height=height, scale=side / width, brush=brush, mask=empty, **traits)

    @traitlets.validate("mask")
    def _of_the_pictures_size(self, proposal: dict[str, Any]) -> bytes:
        data = bytes(proposal["value"])
        if len(data) != self.width * self.height:
            raise traitlets.TraitError(f"a {self.mode} of {len(data)} bytes for {self.width} x {self.height} pixels")
        return data

    def painted(self) -> np.ndarray:
        """Where it is painted, booleans (H, W)."""
        return np.frombuffer(self.mask, np.uint8).reshape(self.height, self.width) >= 128

    def paint(self, values: Any) -> None:
        """Set what is painted (H, W): booleans, uint8 (128 and up count) or floats (0.5 and up).

        Raises ValueError for another size than the picture's.
        """
        array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
        array = array.squeeze()
        if array.shape != (self.height, self.width):
            raise ValueError(
                f"a {self.mode} of shape {array.shape} for a picture of {self.height} x {self.width}; make them equal"
            )
        array = array >= 128 if array.dtype == np.uint8 else array >= 0.5 if array.dtype.kind == "f" else array > 0
        self.mask = (array.astype(np.uint8) * 255).tobytes()
