"""A finetuning with everything that is needed to repeat it, in one folder.

folder = Folder(Path("duck/"), settings)
for progress in folder.run(tuned, sets, steps=400, prompts=["a sks duck on the moon"]):
    ...

duck/settings.json       what was asked for, and the versions that it ran with
duck/log.jsonl           loss and learning rate, every ten steps
duck/samples/            the same prompts and seeds, drawn as training goes on
duck/learned/            what was learned, as `finetuning.save_learned` writes it
duck/report.html         all of this on a page
duck/run.safetensors     the run's state while it lasts: called again, it goes on where it was killed
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from companion import __version__
from companion.diffusion import draw
from companion.figures import as_pil
from companion.files import written
from companion.finetuning import Examples, Tuned, accelerator_for, finetune, save_learned
from companion.training import Progress

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def digest(sets: Sequence[Examples]) -> str:
    """16 hexadecimal digits that tell sets of examples apart: of their latents, prompts, controls and weights."""
    found = hashlib.sha256()
    for s in sets:
        for values in (s.latents, s.controls):
            if values is not None:
                found.update(values.float().contiguous().numpy().tobytes())
        found.update(json.dumps([list(s.prompts), s.weight]).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Folder:
    """Where a run keeps everything.

    Attributes:
        path: a new folder, or one of the same run, which then goes on.
        settings: what was asked for, as JSON can hold it.
        source: where it came from, such as the photographs' folder; noted beside the settings. It may differ when the
            run goes on, since folders may be moved; what the examples are may not.
    """

    path: Path
    settings: Mapping[str, Any]
    source: Mapping[str, Any] = field(default_factory=dict)

    def open(self, sets: Sequence[Examples]) -> None:
        """Make the folder, or check that it is of this run.

        Raises:
            ValueError: it holds another run; the message names a setting that differs. Nothing is changed then.
        """
        import importlib.metadata as installed

        wanted = json.loads(json.dumps({**self.settings, "examples": digest(sets)}))
        target = self.path / "settings.json"
        if target.exists():
            found = json.loads(target.read_text(encoding="utf-8"))["settings"]
            for name in sorted(wanted.keys() | found.keys()):
                if wanted.get(name) != found.get(name):
                    raise ValueError(
                        f"{self.path} holds a run with {name} {found.get(name)!r}, and this one has "
                        f"{wanted.get(name)!r}: name another folder, or give the same settings to go on"
                    )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty, and holds no run: name a new folder")
        versions = {name: installed.version(name) for name in LIBRARIES}
        versions |= {"companion": __version__, "python": platform.python_version()}
        with written(target) as temporary:
            told = {"settings": wanted, "source": dict(self.source), "versions": versions}
            text = json.dumps(told, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def run(
        self,
        tuned: Tuned,
        sets: Sequence[Examples],
        steps: int,
        *,
        prompts: Sequence[str],
        sampling: Mapping[str, Any],
        show: int = 100,
        seed: int = 0,
        **options: Any,
    ) -> Iterator[Progress]:
        """Train, yielding after each step; it goes on from the folder's last checkpoint, to the same weights.

        Args:
            prompts: drawn with the same seeds before, every `show` steps, and after.
            sampling: options of `diffusion.draw`: steps and guidance_scale.
            options: those of `finetuning.finetune`.
        """
        accelerator = accelerator_for(tuned.pipe)
        first = accelerator.is_main_process  # of several, one writes
        if first:
            self.open(sets)
            self._draw(tuned, prompts, sampling, seed, 0, again=False)
        options |= {"checkpoint": self.path / "run.safetensors", "log": self.path / "log.jsonl", "log_every": 10}
        for progress in finetune(tuned, sets, steps, seed=seed, accelerator=accelerator, **options):
            if first and (progress.step % show == 0 or progress.step == steps):
                self._draw(tuned, prompts, sampling, seed, progress.step)
            yield progress
        if first:
            save_learned(tuned, self.path / "learned")
            with written(self.path / "report.html") as temporary:
                temporary.write_text(self.report(), encoding="utf-8")

    def _draw(self, tuned: Tuned, prompts: Sequence[str], sampling, seed: int, step: int, again: bool = True) -> None:
        target = self.path / "samples" / f"{step:06d}.png"
        if not prompts or tuned.net is not None or (target.exists() and not again):
            return
        learning = tuned.parts.training
        tuned.parts.eval()
        pictures = draw(tuned.pipe, list(prompts), [seed + i for i in range(len(prompts))], **sampling)
        tuned.parts.train(learning)
        with written(target) as temporary:
            as_pil(torch.cat(list(pictures), 2)).save(temporary, "PNG")

    def log(self) -> list[dict[str, float]]:
        """Step, mean loss and learning rate, every ten steps so far."""
        target = self.path / "log.jsonl"
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] if target.exists() else []

    def report(self) -> str:
        """The run as an HTML page with its pictures in it."""
        stored = json.loads((self.path / "settings.json").read_text(encoding="utf-8"))
        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>"
            for part in ("settings", "source", "versions")
            for k, v in stored[part].items()
        )
        shown = "".join(
            f"<figure><figcaption>after {int(p.stem)} steps</figcaption>{_embedded(p.read_bytes())}</figure>"
            for p in sorted((self.path / "samples").glob("*.png"))
        )
        return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(self.path.name)}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
td {{ padding-right: 2em; vertical-align: top }} img {{ max-width: 100% }} figure {{ margin: 1em 0 }}</style>
<h1>{html.escape(self.path.name)}</h1>
<h2>The same prompts and seeds, as training goes on</h2>{shown or "<p>None were drawn.</p>"}
<h2>Loss</h2><p>It hardly falls in a good run: look at the pictures.</p>{_embedded(self._curve())}
<h2>Settings, source and versions</h2><table>{rows}</table>
</html>
"""

    def _curve(self) -> bytes:
        """The loss as a PNG."""
        from matplotlib.figure import Figure

        log = self.log()
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([line["step"] for line in log], [line["loss"] for line in log])
        axes.set(xlabel="step", ylabel="loss, mean of 10 steps", ylim=(0, None))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def _embedded(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="">'
