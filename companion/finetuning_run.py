"""A finetuning with everything that is needed to repeat it, in one folder.

folder = Folder(Path("duck/"), settings)
for progress in folder.run(tuned, sets, steps=400, prompts=["a sks duck on the moon"]):
    ...

duck/settings.json       what was asked for, and the versions that it ran with
duck/log.jsonl           loss and learning rate, every ten steps
duck/samples/            the same prompts and seeds, drawn as training goes on
duck/metrics.jsonl       measured then: errors that chance does not shake, and what the drawn pictures are like
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import __version__
from companion.diffusion import draw
from companion.figures import as_pil
from companion.files import read_rows, write_rows, written
from companion.finetuning import Examples, Tuned, accelerator_for, errors, finetune, save_learned
from companion.training import Progress

#: In metrics.jsonl, the error of the first set of examples, and of the second, if there is one.
ERRORS = ("error", "class_error")
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
        measure: Callable[[Tensor], Mapping[str, float]] | None = None,
        **options: Any,
    ) -> Iterator[Progress]:
        """Train, yielding after each step; it goes on from the folder's last checkpoint, to the same weights.

        Args:
            prompts: drawn with the same seeds before, every `show` steps, and after. Then the errors are measured, too.
            sampling: options of `diffusion.draw`: steps and guidance_scale.
            measure: numbers, by name, of the pictures that were drawn (N, 3, H, W), for metrics.jsonl.
            options: those of `finetuning.finetune`.
        """
        accelerator = accelerator_for(tuned.pipe)
        first = accelerator.is_main_process  # of several, one writes
        if first:
            self.open(sets)
            look = partial(self._look, tuned, sets, prompts, sampling, seed, measure, accelerator)
            if not self.metrics():
                look(0)
        options |= {"checkpoint": self.path / "run.safetensors", "log": self.path / "log.jsonl", "log_every": 10}
        for progress in finetune(tuned, sets, steps, seed=seed, accelerator=accelerator, **options):
            if first and (progress.step % show == 0 or progress.step == steps):
                look(progress.step)
            yield progress
        if first:
            save_learned(tuned, self.path / "learned")
            with written(self.path / "report.html") as temporary:
                temporary.write_text(self.report(), encoding="utf-8")

    def _look(self, tuned: Tuned, sets, prompts: Sequence[str], sampling, seed: int, measure, accelerator, step: int):
        """Draw, and measure. A run that goes on from before a step does it again, and finds the same."""
        found = dict(zip(ERRORS, errors(tuned, sets, seed=seed, accelerator=accelerator), strict=False))
        if prompts and tuned.net is None:
            learning = tuned.parts.training
            tuned.parts.eval()
            pictures = draw(tuned.pipe, list(prompts), [seed + i for i in range(len(prompts))], **sampling)
            tuned.parts.train(learning)
            with written(self.path / "samples" / f"{step:06d}.png") as temporary:
                as_pil(torch.cat(list(pictures), 2)).save(temporary, "PNG")
            found |= measure(pictures) if measure is not None else {}
        earlier = [row for row in self.metrics() if row["step"] < step]
        write_rows(self.path / "metrics.jsonl", [*earlier, {"step": step, **found}])

    def log(self) -> list[dict[str, float]]:
        """Step, mean loss and learning rate, every ten steps so far."""
        return read_rows(self.path / "log.jsonl")

    def metrics(self) -> list[dict[str, float]]:
        """What was measured so far, each time with its "step": the errors (see `ERRORS`), and what `measure` found."""
        return read_rows(self.path / "metrics.jsonl")

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
<h2>Loss</h2><p>It hardly falls in a good run: look at the pictures. The loss adds up
the sets' errors, each time with other noise. The errors beside it are of the same pictures with the same noise each
time, so that chance does not shake them.</p>{_embedded(self._curves())}
<h2>Settings, source and versions</h2><table>{rows}</table>
</html>
"""

    def _curves(self) -> bytes:
        """The loss, the errors, and what the pictures are like, as a PNG."""
        from matplotlib.figure import Figure

        log, found = self.log(), self.metrics()
        of_pictures = [name for name in found[0] if name not in ("step", *ERRORS)]
        figure = Figure(figsize=(8, 3 if not of_pictures else 6), layout="constrained")
        loss, *more = figure.subplots(2 if of_pictures else 1, squeeze=False)[:, 0]
        loss.plot([line["step"] for line in log], [line["loss"] for line in log], label="loss, mean of 10 steps")
        for axes, names in ((loss, [n for n in ERRORS if n in found[0]]), *((axes, of_pictures) for axes in more)):
            for name in names:
                axes.plot([row["step"] for row in found], [row[name] for row in found], "o-", label=name)
            axes.legend()
            axes.set(xlabel="step")
        loss.set(ylabel="squared error", ylim=(0, None))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def _embedded(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="">'
