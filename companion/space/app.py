"""The page of the Space. Its settings (variables and secrets of the Space, all optional):

MODEL      folders or repositories, separated by commas, tried in this order; "model", beside this file, when not set
HF_TOKEN   a secret: for a private repository
PLACES     how many may wait in the queue before others are turned away (40)
PROMPT     what the first picture shows
STEPS, GUIDANCE   where the sliders start
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image
from studio import MAX_STEPS, MAX_WORDS, Studio

PLACES = int(os.environ.get("PLACES", "40"))
SIDE = 384  # of a picture on the page
# Small pictures are enlarged to fill their frame.
STYLE = ".image-frame, .image-frame img { width: 100%; height: 100%; object-fit: contain }"
# One drawing at a time, whatever the tab: a second one would only slow both down.
ONE = {"concurrency_id": "model", "concurrency_limit": 1}


def page(studio: Studio, prompt: str) -> gr.Blocks:
    """The page with all tabs. The model draws the first picture when the Space starts, which warms it up."""
    first, _ = studio.draw(prompt, steps=studio.steps, guidance=studio.guidance, seed=0)
    with gr.Blocks(title="Stable Diffusion", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(
            f"# Stable Diffusion, three ways\nPictures of {studio.size} x {studio.size} pixels, drawn one at a time "
            f"on a {'GPU' if studio.device == 'cuda' else 'CPU'}. When others are before you, the page says how many."
        )
        for name, tab in TABS.items():
            with gr.Tab(name), gr.Row():
                tab(studio, prompt, first)
    return blocks


def text_to_image(studio: Studio, prompt: str, first: Image.Image) -> None:
    with gr.Column():
        words = _words(prompt)
        rest = _sliders(studio)
        button = gr.Button("Draw", variant="primary")
    picture, seed = _result(first)
    _on(button, words, studio.draw, [words, *rest], [picture, seed], "text_to_image")


def image_to_image(studio: Studio, prompt: str, first: Image.Image) -> None:
    with gr.Column():
        image = gr.Image(first, type="pil", label="Begin with", height=SIDE, sources=["upload", "clipboard"])
        words = _words(prompt)
        strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength", info="0 keeps the picture, 1 forgets it")
        rest = _sliders(studio)
        button = gr.Button("Draw", variant="primary")
    picture, seed = _result()
    _on(button, words, studio.vary, [image, words, strength, *rest], [picture, seed], "image_to_image")


def inpainting(studio: Studio, prompt: str, first: Image.Image) -> None:
    def fill(editor: dict[str, Any] | None, *given: Any) -> tuple[Image.Image, int]:
        layers = (editor or {}).get("layers") or []
        background = (editor or {}).get("background")
        if background is None:
            raise ValueError("There is no picture: upload one.")
        mask = Image.new("L", background.size)
        for layer in layers:
            mask.paste(255, mask=layer.convert("RGBA").getchannel("A").resize(background.size))
        # Transparent parts of an upload would otherwise be black.
        paper = Image.new("RGBA", background.size, "white")
        return studio.fill(Image.alpha_composite(paper, background.convert("RGBA")), mask, *given)

    with gr.Column():
        editor = gr.ImageEditor(
            {"background": first.resize((SIDE, SIDE)), "layers": [], "composite": None},
            type="pil",
            label="Paint over what is to be drawn anew",
            brush=gr.Brush(default_size=40, colors=["#ffffff"], color_mode="fixed"),
            sources=["upload", "clipboard"],
            transforms=[],
            layers=False,
            canvas_size=(SIDE, SIDE),
            height=SIDE + 130,
        )
        words = _words(prompt)
        strength = gr.Slider(0.05, 1, 1, step=0.05, label="Strength", info="below 1, what was there shows through")
        rest = _sliders(studio)
        button = gr.Button("Draw", variant="primary")
    picture, seed = _result()
    _on(button, words, fill, [editor, words, strength, *rest], [picture, seed], "inpainting")


#: Each tab is a function that fills a row; add another function for a fourth tab, such as a ControlNet.
TABS: dict[str, Callable[[Studio, str, Image.Image], None]] = {
    "Text to image": text_to_image,
    "Image to image": image_to_image,
    "Inpainting": inpainting,
}


def _words(prompt: str) -> gr.Textbox:
    return gr.Textbox(prompt, label="Prompt", max_length=MAX_WORDS, submit_btn=False)


def _sliders(studio: Studio) -> list[gr.components.Component]:
    with gr.Accordion("More", open=False):
        negative = gr.Textbox("", label="Not this (negative prompt)", max_length=MAX_WORDS)
        steps = gr.Slider(1, MAX_STEPS, studio.steps, step=1, label="Steps")
        guidance = gr.Slider(1, 20, studio.guidance, step=0.5, label="Guidance")
        seed = gr.Number(-1, label="Seed", precision=0, info="-1 takes another one each time")
    return [negative, steps, guidance, seed]


def _result(first: Image.Image | None = None) -> tuple[gr.Image, gr.Number]:
    with gr.Column():
        picture = gr.Image(first, type="pil", format="png", label="Drawn", height=SIDE, interactive=False)
        seed = gr.Number(0 if first else None, label="Its seed", precision=0, interactive=False)
    return picture, seed


def _on(
    button: gr.Button, words: gr.Textbox, draw: Callable[..., Any], inputs: list, outputs: list, api_name: str
) -> None:
    def told(*given: Any) -> Any:
        try:
            return draw(*given)
        except ValueError as error:  # a visitor can correct these; other errors go to the log
            raise gr.Error(str(error), print_exception=False) from None

    button.click(told, inputs, outputs, api_name=api_name, **ONE)
    words.submit(told, inputs, outputs, api_visibility="private", **ONE)


def main() -> None:
    models = os.environ.get("MODEL", "model").split(",")
    if models == ["model"]:
        models = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")]
    steps, guidance = (os.environ.get(name) for name in ("STEPS", "GUIDANCE"))
    studio = Studio(
        [model.strip() for model in models],
        token=os.environ.get("HF_TOKEN"),
        steps=int(steps) if steps else None,
        guidance=float(guidance) if guidance else None,
    )
    blocks = page(studio, os.environ.get("PROMPT") or "a gold robot left of a blue house on snow at sunset")
    blocks.queue(max_size=PLACES).launch(max_file_size="8mb", show_error=False, footer_links=["api"], css=STYLE)


if __name__ == "__main__":
    main()
