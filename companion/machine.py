"""One drawing of the whole machine, which returns in every notebook with the part in question lit.

machine("U-Net", title="Where the noise is named")
"""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from companion.figures import FAINT, INK, STYLE, WIDTH, _new

LIT, DARK, EDGE = "#fde9c8", "#f4f4f4", "#b5b5b5"
STRONG = "#d55e00"  # the outline of what is lit

#: What can be lit. The last five are drawn only if they are lit, or asked for by `show`.
PARTS = (
    "text encoder",
    "noise",
    "U-Net",
    "skips",
    "cross-attention",
    "guidance",
    "sampler",
    "decoder",
    "encoder",
    "mask",
    "ControlNet",
    "zero convolutions",
    "adapters",
)
_OPTIONAL = PARTS[-5:]


def machine(*lit: str, title: str = "The machine", caption: str = "", show: Iterable[str] = ()) -> Figure:
    """Latent diffusion as a drawing: the words, the noise, the U-Net and its loop, the decoder, the picture.

    Args:
        lit: parts that stand out, of `PARTS`.
        show: further parts of `PARTS` that are drawn without standing out: an encoder for the picture that image to
            image starts from, a mask, a ControlNet with its zero convolutions, adapters.
    Raises:
        ValueError: for a part that the machine does not have.
    """
    wanted = {*lit, *show}
    if unknown := [part for part in wanted if part not in PARTS]:
        raise ValueError(f"the machine has no {unknown[0]!r}; its parts are {', '.join(PARTS)}")
    if "zero convolutions" in wanted:
        wanted.add("ControlNet")
    steered = "ControlNet" in wanted
    with rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _new(WIDTH, 4.3 if steered else 3.1, 1, 1, title, caption)
        axis = axes[0, 0]
        axis.set(xlim=(0, 100), ylim=(-18 if steered else -1, 42), aspect="equal")
        axis.axis("off")
        _Drawing(axis, set(lit), wanted).draw()
    return figure


class _Drawing:
    def __init__(self, axis: Axes, lit: set[str], wanted: set[str]) -> None:
        self.axis, self.lit, self.wanted = axis, lit, wanted

    def draw(self) -> None:
        self.words()
        self.noise()
        self.unet()
        self.loop()
        self.picture()
        if {"encoder", "mask"} & self.wanted:
            self.start()
        if "ControlNet" in self.wanted:
            self.controlnet()

    # ---- Pieces

    def box(self, x: float, y: float, w: float, h: float, text: str, part: str = "", size: float = 8.5) -> None:
        on = part in self.lit
        style = {"facecolor": LIT if on else DARK, "edgecolor": STRONG if on else EDGE, "linewidth": 1.8 if on else 1}
        self.axis.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", zorder=2.5, **style))
        self.text(x + w / 2, y + h / 2, text, size, bold=on)

    def text(self, x: float, y: float, text: str, size: float = 8, bold: bool = False, faint: bool = False) -> None:
        weight, colour = "bold" if bold else "normal", FAINT if faint else INK
        self.axis.text(x, y, text, ha="center", va="center", fontsize=size, fontweight=weight, color=colour, zorder=3)

    def arrow(
        self, a: tuple[float, float], b: tuple[float, float], part: str = "", bend: float = 0, dashed: bool = False
    ) -> None:
        on = part in self.lit
        self.axis.add_patch(
            FancyArrowPatch(
                a,
                b,
                arrowstyle="-|>",
                mutation_scale=9,
                color=STRONG if on else "#8a8a8a",
                linewidth=2 if on else 1.2,
                linestyle="--" if dashed else "-",
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=0,
                shrinkB=0,
            )
        )

    def line(self, *points: tuple[float, float], part: str = "") -> None:
        """A path with corners, whose last piece is an arrow."""
        on = part in self.lit
        xs, ys = zip(*points[:-1], strict=True)
        self.axis.plot(xs, ys, color=STRONG if on else "#8a8a8a", linewidth=2 if on else 1.2, solid_joinstyle="round")
        self.arrow(points[-2], points[-1], part)

    def level(self, x: float, h: float, part: str, y: float = 20, mirrored: bool = False, small: float = 0) -> None:
        """A level of the U-Net: a trapezium whose height stands for the size of its maps."""
        on = part in self.lit
        low = small or h - 3.2
        heights = (low, h) if mirrored else (h, low)
        corners = [(x, y - heights[0] / 2), (x, y + heights[0] / 2), (x + 4.4, y + heights[1] / 2)]
        corners.append((x + 4.4, y - heights[1] / 2))
        style = {"facecolor": LIT if on else DARK, "edgecolor": STRONG if on else EDGE, "linewidth": 1.8 if on else 1}
        self.axis.add_patch(Polygon(corners, closed=True, **style))

    # ---- The machine

    def words(self) -> None:
        self.text(9, 40, "“a red ball on grass”", 8)
        self.arrow((9, 38.5), (9, 36.2))
        self.box(1, 30, 16, 6, "text encoder", "text encoder")
        self.text(22.5, 35.2, "one vector\nper token", 7, faint=True)
        self.arrow((17, 33), (47, 33), "cross-attention")
        self.arrow((47, 33), (47, 29.2), "cross-attention")
        self.text(60.5, 33.2, "cross-attention reads them", 7.5, bold="cross-attention" in self.lit, faint=True)

    def noise(self) -> None:
        self.box(1, 16, 13, 8, "noise $x_T$\n4 × 16 × 16", "noise")
        self.arrow((14, 20), (26.5, 20))
        self.text(20.5, 21.8, "latents $x_t$", 7.5)

    def unet(self) -> None:
        for i, h in enumerate((17.5, 13.5, 9.5)):
            self.level(27 + 5.4 * i, h, "U-Net")
            self.level(61 - 5.4 * i, h, "U-Net", mirrored=True)
        self.box(43.6, 16.6, 5.6, 6.8, "\nmid" if "adapters" in self.wanted else "mid", "U-Net", 7.5)
        for i, y in enumerate((12.9, 14.9, 16.9)):
            self.arrow((31.4 + 5.4 * i, y), (61 - 5.4 * i, y), "skips", bend=0.3 - 0.03 * i)
        x = 61 if "ControlNet" in self.wanted else 46.2  # beside what comes up from there
        self.text(x, 7.2 if x > 50 else 6.4, "skip connections", 7.5, bold="skips" in self.lit, faint=True)
        self.text(46.2, 27.6, "U-Net", 9, bold=True)
        if "adapters" in self.wanted:
            for x in (28.1, 33.5, 56.5, 61.9):
                self.box(x - 0.6, 21.6, 3.4, 2.6, "+", "adapters", 7)
            self.box(44.7, 20.6, 3.4, 2.2, "+", "adapters", 7)  # the levels beside the middle have no attention
            self.text(34, 30, "adapters on its transformers", 7.5, bold="adapters" in self.lit, faint=True)

    def loop(self) -> None:
        self.arrow((66.4, 25.6), (72, 25.6))
        self.text(69.3, 27.5, "$\\epsilon$", 8.5)
        self.box(72, 22.6, 11, 6, "guidance", "guidance")
        self.arrow((77.5, 22.6), (77.5, 19.4))
        self.box(72, 13.4, 11, 6, "sampler", "sampler")
        self.line((77.5, 13.4), (77.5, 3), (20.5, 3), (20.5, 18.6), part="sampler")
        at = (63, 4.6) if "ControlNet" in self.wanted else (49, 1)
        self.text(*at, "one step further, to the next lower $t$; some 20 times", 7.5, faint=True)

    def picture(self) -> None:
        self.arrow((83, 16.4), (86, 16.4))
        self.text(84.4, 18.2, "$x_0$", 8)
        self.box(86, 13, 12.5, 8.8, "decoder\n× 8", "decoder")
        self.arrow((92.2, 21.8), (92.2, 26.4))
        self.box(86.4, 26.4, 11.6, 9.6, "picture\n128 × 128")

    def start(self) -> None:
        if "encoder" in self.wanted:
            self.box(1, 5, 13, 6, "encoder", "encoder")
            self.text(7.5, 0.8, "a picture of yours", 7.5, faint=True)
            self.arrow((7.5, 2.2), (7.5, 5))
            self.line((14, 8), (17.2, 8), (17.2, 18.6), part="encoder")
            self.text(10, 13.5, "noise is added", 7, faint=True)
        if "mask" in self.wanted:
            self.box(23.5, 0.6, 8, 4.8, "mask", "mask")

    def controlnet(self) -> None:
        for i, h in enumerate((9.5, 7.5, 5.5)):
            self.level(27 + 5.4 * i, h, "ControlNet", y=-8, small=h - 1.8)
        self.box(43.6, -10.4, 5.6, 4.8, "mid", "ControlNet", 7.5)
        self.text(36, -15.5, "ControlNet: a copy of the way down", 7.5, bold="ControlNet" in self.lit, faint=True)
        self.box(1, -13.5, 10.5, 7, "control\npicture")
        self.arrow((11.5, -10), (13.8, -10), "ControlNet")
        self.box(13.8, -12, 9.4, 4, "embedder", "ControlNet", 7)
        self.arrow((23.2, -10), (26.5, -10), "ControlNet")
        self.line((23.6, 20), (23.6, -5.5), (26.5, -5.5), part="ControlNet")  # it gets the latents as well
        for i in range(4):
            x, low = 29.2 + 5.4 * i + 0.9 * (i == 3), -3.3 - 0.9 * i + 1.6 * (i == 3)
            self.arrow((x, low), (x, -1.6))
            self.box(x - 1.5, -1.6, 3, 2.6, "0", "zero convolutions", 7.5)
            self.arrow((x, 1), (46.4, 16.4) if i == 3 else (33.2 + 5.2 * i, 11.2 + 1.6 * i), "zero convolutions")
        bold = "zero convolutions" in self.lit
        self.text(66, -0.6, "zero convolutions, added to the skips", 7.5, bold=bold, faint=True)
