"""The page of the Space. Its settings (variables and secrets of the Space, all optional):

MODEL      names, folders or repositories, separated by commas, tried in this order; "model", beside this file, when not
           set. A repository may hold a pipeline, or a LoRA.
BASE       of a LoRA that does not say so itself: the model that it was trained on; that of "model" may lie in base/,
           beside this file
HF_TOKEN   a secret: for a private repository
PLACES     how many may wait in the queue before others are turned away (40)
PROMPT     what the first picture shows; further examples may follow, separated by |
STEPS, GUIDANCE   where the sliders start
DEVICE     such as cuda or cpu; the GPU when there is one, when not set

ControlNets lie in folders of controlnets/, beside this file, that are named after their condition.
"""

from __future__ import annotations

import html
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import spaces  # Hugging Face's "ZeroGPU" lends a GPU for each call of what it decorates. It must come before torch.
except ImportError:
    spaces = None

HERE = Path(__file__).resolve().parent
if (HERE / "data").is_dir():  # before anything of the course is imported
    os.environ.setdefault("COMPANION_DATA", str(HERE / "data"))

import gradio as gr  # noqa: E402
from PIL import Image  # noqa: E402
from studio import LINES, MAX_PICTURES, MAX_STEPS, MAX_WORDS, Studio  # noqa: E402

PLACES = int(os.environ.get("PLACES", "40"))
#: Whether a GPU is lent for each drawing, so that there is none while the page is built.
LENT = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
#: Seconds for which one is asked for; four pictures of 50 steps take less.
SECONDS = 40
SIDE = 384  # of a picture on the page
# Small pictures are enlarged to fill their frame. What is said of an upload stands close to it.
STYLE = """
.image-frame, .image-frame img { width: 100%; height: 100%; object-fit: contain }
.drawn .grid-wrap { max-height: none } .drawn .grid-container { max-width: 420px; margin: auto }
.said { padding: 0 } .said p { margin: 0 } .said .error { color: var(--error-text-color) }
"""
# One drawing at a time, whatever the tab: a second one would only slow both down.
ONE = {"concurrency_id": "model", "concurrency_limit": 1}
#: What all tabs ask for, as the studio's methods call it.
OPTIONS = ("prompt", "negative", "steps", "guidance", "seed")
#: Where a control picture comes from.
FOUND, READY, DRAWN = "Find it in my picture", "My upload is the control itself", "I draw it here"
#: What to draw first, and other examples: in the miniature world, and in others.
MINIATURE = (
    "a gold robot left of a blue house on snow at sunset",
    "a red ball on grass by day",
    "a glass cube on water by day",
    "a green tree right of a red car on sand by day",
    "a white mushroom in front of a purple house on brick",
)
OTHERS = (
    "a lighthouse on a cliff at dusk, oil painting",
    "a red fox in fresh snow, photograph",
    "a small robot watering flowers on a balcony",
    "an old bookshop in the rain, watercolour",
)


class Page:
    """The page with all tabs. The model draws the first picture when the Space starts, which warms it up."""

    def __init__(self, studio: Studio, prompts: Sequence[str] = ()) -> None:
        self.studio, self.prompts = studio, list(prompts) or list(MINIATURE if studio.size <= 128 else OTHERS)
        settings = {"steps": studio.steps, "guidance": studio.guidance, "seed": 0}
        self.first = None if LENT else studio.draw(self.prompts[0], **settings)[0]
        if LENT:  # a model can be made ready for a GPU that is lent only here, before the page is served
            studio.load_all()
        self.drawings = spaces.GPU(duration=SECONDS)(self._drawings) if spaces else self._drawings
        # By tab: how a picture is put into it (the components, their values, and what else these depend on). And where
        # pictures come from: the gallery, which of it is chosen, and a button for each tab.
        self.takes: dict[str, tuple[list[Any], Callable[..., list[Any]], list[Any]]] = {}
        self.gives: list[tuple[gr.Gallery, gr.State, dict[str, gr.Button]]] = []
        with gr.Blocks(title="Stable Diffusion", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown(
                f"# Stable Diffusion, four ways\nPictures of {studio.size} x {studio.size} pixels, drawn one at a time "
                f"on a {'GPU' if studio.device == 'cuda' else 'CPU'}. When others are before you, the page says how "
                "many."
            )
            with gr.Tabs() as self.tabs:
                for name, fill in TABS.items():
                    with gr.Tab(name, id=name):
                        fill(self)
            for gallery, chosen, buttons in self.gives:
                for name, button in buttons.items():
                    self._send(gallery, chosen, name, button)

    # ---- The tabs

    def text_to_image(self) -> None:
        def given(*rest: Any) -> tuple[str, dict[str, Any]]:
            return "draw", _options(rest)

        with gr.Row():
            with gr.Column():
                words = self._words()
                rest = self._sliders()
                button = gr.Button("Draw", variant="primary")
            outputs = self._result(self.first)
        self._examples(self.prompts, words)
        self._on(button, words, given, [words, *rest], outputs, "text_to_image", ["prompt"])

    def image_to_image(self) -> None:
        def given(image: Any, prompt: str, strength: float, *rest: Any) -> tuple[str, dict[str, Any]]:
            return "vary", {"image": image, "strength": strength, **_options([prompt, *rest])}

        with gr.Row():
            with gr.Column():
                image = _upload(self.first, "Begin with")
                said = self._said(image)
                words = self._words()
                strength = gr.Slider(
                    0.05, 1, 0.6, step=0.05, label="Strength", info="0 keeps the picture, 1 forgets it"
                )
                rest = self._sliders()
                button = gr.Button("Draw", variant="primary")
            outputs = self._result()
        self._examples(self.prompts[1:], words, strength)
        self.takes["Image to image"] = ([image, said], lambda path: [self.studio.fit(path), _line("")], [])
        names = ["image", "prompt", "strength"]
        self._on(button, words, given, [image, words, strength, *rest], outputs, "image_to_image", names)

    def inpainting(self) -> None:
        side = max(SIDE, self.studio.size)

        def given(editor: Any, prompt: str, strength: float, *rest: Any) -> tuple[str, dict[str, Any]]:
            about = {"image": (editor or {}).get("background"), "mask": _strokes(editor), "strength": strength}
            return "fill", about | _options([prompt, *rest])

        def put(path: str) -> list[Any]:
            return [_canvas(self.studio.fit(path), side), _line("")]

        def read(path: str) -> list[Any]:
            try:
                picture, done = self.studio.read(path)
            except ValueError as error:
                return [gr.skip(), _line(error)]
            return [_canvas(picture, side), _line(done)]

        with gr.Row():
            with gr.Column():
                editor = gr.ImageEditor(
                    _canvas(self.first, side) if self.first else None,
                    type="pil",
                    format="png",
                    label="Paint over what is to be drawn anew",
                    brush=gr.Brush(default_size=side // 10, colors=["#ffffff"], color_mode="fixed"),
                    sources=[],
                    transforms=[],
                    layers=False,
                    canvas_size=(side, side),
                    height=SIDE + 130,
                )
                upload = gr.UploadButton("Upload another picture", size="sm")
                said = gr.HTML(elem_classes="said", padding=False, visible=False)
                words = self._words()
                strength = gr.Slider(
                    0.05, 1, 1, step=0.05, label="Strength", info="below 1, what was there shows through"
                )
                rest = self._sliders()
                button = gr.Button("Draw", variant="primary")
            outputs = self._result()
        self._examples(self.prompts[1:], words)
        upload.upload(read, upload, [editor, said], api_visibility="private", show_progress="hidden")
        self.takes["Inpainting"] = ([editor, said], put, [])
        names = ["image", "prompt", "strength"]
        self._on(button, words, given, [editor, words, strength, *rest], outputs, "inpainting", names)

    def controlnet(self) -> None:
        conditions = self.studio.conditions
        if not conditions:
            gr.Markdown("There is no ControlNet for this model, so there is nothing here to draw with.")
            return

        def sources(name: str) -> list[str]:
            own = [FOUND] * self.studio.can_find(name) + [READY]
            return own + [DRAWN] * (name in LINES)

        def control(name: str, source: str, image: Any, pad: dict[str, Any] | None) -> Image.Image:
            if source == DRAWN:
                return self.studio.drawn(_strokes(pad))
            return self.studio.control(name, image, ready=source == READY)

        def shown(*given: Any) -> Image.Image:
            with _sentences():
                return control(*given)

        def given(name: str, source: str, image: Any, pad: Any, prompt: str, *rest: Any) -> tuple[Any, ...]:
            found, (scale, start, end, *others) = control(name, source, image, pad), rest
            gr.Progress()(0, desc="Loading the ControlNet")
            self.studio.following(name)
            about = {"control": found, "condition": name, "scale": scale, "start": start, "end": end}
            return "follow", about | _options([prompt, *others]), found

        def chosen(name: str, source: str) -> Any:
            there = sources(name)
            return gr.Radio(there, value=source if source in there else there[0], info=_where(there, conditions[name]))

        def seen(source: str) -> list[Any]:
            return [gr.update(visible=source != DRAWN), gr.update(visible=source == DRAWN)]

        first = next(iter(conditions))
        with gr.Row():
            with gr.Column():
                titles = [(title[:1].upper() + title[1:], name) for name, title in conditions.items()]
                condition = gr.Dropdown(titles, value=first, label="Follow")
                there = sources(first)
                source = gr.Radio(
                    there, value=there[0], label="The control picture", info=_where(there, conditions[first])
                )
                with gr.Column() as uploaded:
                    image = _upload(self.first, "Picture")
                    said = self._said(image, whole=True)  # it may be a control picture, whose colours must not mix
                with gr.Column(visible=False) as drawing:
                    pad = gr.ImageEditor(
                        _canvas(Image.new("RGB", (SIDE, SIDE)), SIDE),
                        type="pil",
                        format="png",
                        label="Draw white lines",
                        brush=gr.Brush(default_size=SIDE // 128, colors=["#ffffff"], color_mode="fixed"),
                        sources=[],
                        transforms=[],
                        layers=False,
                        canvas_size=(SIDE, SIDE),
                        height=SIDE + 130,
                    )
                show = gr.Button("Show what it follows", size="sm")
                words = self._words()
                scale = gr.Slider(0, 2, 1, step=0.05, label="Scale", info="how much the control counts")
                with gr.Row():
                    start = gr.Slider(0, 1, 0, step=0.05, label="From", info="0: heard from the first step on")
                    end = gr.Slider(0, 1, 1, step=0.05, label="To", info="1: heard until the last step")
                rest = self._sliders()
                button = gr.Button("Draw", variant="primary")
            outputs = self._result(control=True)
        self._examples(self.prompts, words)
        asked = [condition, source, image, pad]
        condition.change(chosen, [condition, source], source, api_visibility="private", show_progress="hidden")
        source.change(seen, source, [uploaded, drawing], api_visibility="private", show_progress="hidden")
        show.click(shown, asked, outputs[-1], api_name="control", **ONE)

        def put(path: str, name: str) -> list[Any]:
            return [self.studio.fit(path), _line(""), sources(name)[0]]

        self.takes["ControlNet"] = ([image, said, source], put, [condition])
        names = ["condition", "source", "image", "drawing", "prompt", "scale", "start", "end"]
        self._on(button, words, given, [*asked, words, scale, start, end, *rest], outputs, "controlnet", names)

    # ---- Their parts

    def _words(self) -> gr.Textbox:
        return gr.Textbox(self.prompts[0], label="Prompt", max_length=MAX_WORDS, submit_btn=False)

    def _sliders(self) -> list[Any]:
        number = gr.Slider(1, MAX_PICTURES, 1, step=1, label="Pictures")
        with gr.Accordion("More", open=False):
            negative = gr.Textbox("", label="Not this (negative prompt)", max_length=MAX_WORDS)
            steps = gr.Slider(1, MAX_STEPS, self.studio.steps, step=1, label="Steps")
            guidance = gr.Slider(1, 20, self.studio.guidance, step=0.5, label="Guidance")
            seed = gr.Number(-1, label="Seed", precision=0, info="-1 takes another one each time")
        return [negative, steps, guidance, seed, number]

    @staticmethod
    def _examples(prompts: Sequence[str], words: gr.Textbox, strength: gr.Slider | None = None) -> None:
        """Prompts to click on, each with a strength if there is a slider for it."""
        rows: list[list[Any]] = [[prompt] for prompt in prompts]
        if strength is not None:
            rows = [[prompt, value] for prompt, value in zip(prompts, (0.5, 0.6, 0.7, 0.9), strict=False)]
        if rows:
            inputs = [words] if strength is None else [words, strength]
            gr.Examples(rows, inputs, label="Examples", cache_examples=False)

    def _said(self, image: gr.Image, whole: bool = False) -> gr.HTML:
        """A line below an upload: what is done to it, or why it cannot be used."""

        def read(path: str | None) -> tuple[Any, gr.HTML]:
            try:
                picture, done = self.studio.read(path, whole=whole)
            except ValueError as error:
                return None, _line(error)
            return picture, _line(done)

        said = gr.HTML(elem_classes="said", padding=False, visible=False)
        image.upload(read, image, [image, said], api_visibility="private", show_progress="hidden")
        image.clear(lambda: _line(""), None, said, api_visibility="private", show_progress="hidden")
        return said

    def _result(self, first: Image.Image | None = None, control: bool = False) -> list[Any]:
        """The gallery, which of its pictures is chosen, and what they follow; with buttons for the other tabs."""
        with gr.Column():
            followed = []
            if control:
                followed = [gr.Image(format="png", label="What it follows", height=SIDE - 100, interactive=False)]
            gallery = gr.Gallery(
                [(first, "seed 0")] if first else None,
                format="png",
                label="Drawn",
                columns=2,
                object_fit="contain",
                elem_classes="drawn",
                interactive=False,
                buttons=["download", "fullscreen"],
            )
            chosen = gr.State(0)
            names = [n for n in TABS if n != "Text to image" and (n != "ControlNet" or self.studio.conditions)]
            with gr.Row():
                buttons = {name: gr.Button(f"Use it in {name}", size="sm", min_width=110) for name in names}
        gallery.select(_index, None, chosen, api_visibility="private", show_progress="hidden")
        self.gives.append((gallery, chosen, buttons))
        return [gallery, chosen, *followed]

    def _send(self, gallery: gr.Gallery, chosen: gr.State, name: str, button: gr.Button) -> None:
        """Let the button put the chosen picture into the tab of that name, and open it."""
        components, put, inputs = self.takes[name]

        def use(pictures: list[tuple[str, str]] | None, index: int, *values: Any) -> list[Any]:
            with _sentences():
                if not pictures:
                    raise ValueError("There is no picture yet: draw one first.")
                return [gr.Tabs(selected=name), *put(pictures[min(index, len(pictures) - 1)][0], *values)]

        outputs = [self.tabs, *components]
        button.click(use, [gallery, chosen, *inputs], outputs, api_visibility="private", show_progress="hidden")

    def _on(
        self,
        button: gr.Button,
        words: gr.Textbox,
        given: Callable[..., tuple[Any, ...]],
        inputs: list[Any],
        outputs: list[Any],
        api_name: str,
        names: Sequence[str],
    ) -> None:
        """Draw when the button is clicked, or Enter pressed in the prompt.

        `given`, from the inputs but for the last, which is the number of pictures: a method of the studio, its options,
        and what else is shown. `names` are those of the inputs, up to the prompt and what else the tab alone has.
        """

        def told(*values: Any) -> Iterator[list[Any]]:
            *rest, number, _ = values
            with _sentences():
                method, options, *more = given(*rest)
            for pictures in self.drawings(method, int(number), options):
                # Once only, so that a picture that is chosen while others are drawn stays chosen.
                yield [pictures, 0 if len(pictures) == 1 else gr.skip(), *more]

        # Programs call it by these names; that there is a Progress among them makes the page show it.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        named = [inspect.Parameter(name, kind) for name in (*names, *OPTIONS[1:], "number")]
        signature = inspect.Signature([*named, inspect.Parameter("progress", kind, default=gr.Progress())])
        told.__signature__ = signature  # pyrefly: ignore[missing-attribute]
        button.click(told, inputs, outputs, api_name=api_name, **ONE)
        words.submit(told, inputs, outputs, api_visibility="private", **ONE)

    def _drawings(self, method: str, number: int, options: dict[str, Any]) -> Iterator[list[tuple[Image.Image, str]]]:
        """So many pictures by a method of the studio, their seeds one after the other; yields those that are there."""
        progress, pictures = gr.Progress(), []
        if not 1 <= number <= MAX_PICTURES:
            raise gr.Error(f"{number} pictures are outside 1 to {MAX_PICTURES}.", print_exception=False)
        for i in range(number):

            def watch(done: int, total: int, before: int = i) -> None:
                of = f", picture {before + 1} of {number}" if number > 1 else ""
                progress((before * total + done) / (number * total), desc=f"Step {done} of {total}{of}")

            with _sentences():
                picture, seed = getattr(self.studio, method)(**options, watch=watch)
            pictures.append((picture, f"seed {seed}"))
            options = options | {"seed": seed + 1}
            yield list(pictures)


#: Each tab is a method that fills it; add another one for a fifth tab.
TABS: dict[str, Callable[[Page], None]] = {
    "Text to image": Page.text_to_image,
    "Image to image": Page.image_to_image,
    "Inpainting": Page.inpainting,
    "ControlNet": Page.controlnet,
}


def _upload(first: Image.Image | None, label: str) -> gr.Image:
    """A picture as its file, however unusual: the studio reads it, and says what it did, or why it could not."""
    image = gr.Image(first, type="filepath", format="png", label=label, height=SIDE, sources=["upload", "clipboard"])
    # Not by a class of its own, beside whose file gradio would write another.
    image.preprocess = lambda payload: payload.path if payload else None  # pyrefly: ignore[bad-assignment]
    return image


def _options(rest: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(OPTIONS, rest, strict=True))


def _where(there: list[str], title: str) -> str:
    return "" if FOUND in there else f"For {title}, no map is found in a picture here: upload the map itself."


def _index(event: gr.SelectData) -> int:
    return event.index


def _canvas(picture: Image.Image, side: int) -> Any:
    """A picture as an editor's value."""
    return {"background": picture.resize((side, side)), "layers": [], "composite": None}


def _strokes(editor: dict[str, Any] | None) -> Image.Image | None:
    """What was painted in an editor, white on black, as large as its background; None without one."""
    background = (editor or {}).get("background")
    if editor is None or background is None:
        return None
    mask = Image.new("L", background.size)
    for layer in editor.get("layers") or []:
        mask.paste(255, mask=layer.convert("RGBA").getchannel("A").resize(background.size))
    return mask


def _sentence(said: Any) -> str:
    text = str(said)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _line(said: Any) -> gr.HTML:
    """A line below an upload, or none for ""; an error is shown as one."""
    kind = ' class="error"' if isinstance(said, Exception) else ""
    return gr.HTML(f'<p role="status"{kind}>{html.escape(_sentence(said))}</p>', visible=bool(str(said)))


@contextmanager
def _sentences() -> Iterator[None]:
    """Show what a visitor can correct as a sentence on the page; other errors go to the log."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(_sentence(error), quote=False), print_exception=False) from None


def main() -> None:
    models = [name.strip() for name in (os.environ.get("MODEL") or "model").split(",") if name.strip()]
    base = os.environ.get("BASE") or (str(HERE / "base") if "model" in models and (HERE / "base").is_dir() else None)
    steps, guidance = (os.environ.get(name) for name in ("STEPS", "GUIDANCE"))
    nets = {path.name: path for path in sorted((HERE / "controlnets").glob("*")) if path.is_dir()}
    studio = Studio(
        [str(HERE / "model") if name == "model" else name for name in models],
        base=base,
        device=os.environ.get("DEVICE") or None,
        steps=int(steps) if steps else None,
        guidance=float(guidance) if guidance else None,
        nets=nets,
    )
    prompts = [prompt.strip() for prompt in os.environ.get("PROMPT", "").split("|") if prompt.strip()]
    blocks = Page(studio, prompts).blocks
    blocks.queue(max_size=PLACES).launch(max_file_size="16mb", show_error=False, footer_links=["api"], css=STYLE)


if __name__ == "__main__":
    main()
