"""The defects described in docs/upstream are still there: when one is mended, its script and its text go."""

from __future__ import annotations

import importlib.util
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest

import companion

FOLDER = companion.ROOT / "docs" / "upstream"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def module_of(script: Path):
    spec = importlib.util.spec_from_file_location(f"upstream_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(text: str) -> list[str]:
    """The text's lines without their numbers, whose last digits depend on the processor."""
    return [re.sub(r"[\d.]+(e-?\d+)?", "#", line).strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_defect_is_still_there_and_its_text_shows_the_output(script, capsys):
    module = module_of(script)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs are not the matter here
        left = module.main()
    printed = capsys.readouterr().out
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "peft", "diffusers"))
    assert left == 0, f"{script.name} no longer shows its defect with {versions}; withdraw it:\n{printed}"
    text = script.with_suffix(".md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    assert words(shown) == words(printed)


def test_every_script_has_its_text_and_its_row():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = {path.stem for path in SCRIPTS}
    assert names == {path.stem for path in FOLDER.glob("*.md")} - {"README"}
    assert names == set(re.findall(r"\]\((\w+)\.py\)", page)) == set(re.findall(r"\]\((\w+)\.md\)", page))


def test_a_script_notices_a_mended_library(monkeypatch, capsys):
    """Where the input is left alone, an untrained adapter changes nothing, and the script says so."""
    from peft.tuners.oft.layer import OFTRotationModule

    module = module_of(FOLDER / "peft_oft_conv2d_kernels.py")
    monkeypatch.setattr(OFTRotationModule, "forward", lambda self, x: x)
    assert module.main() == 1
    assert "3x3: an identity adapter changes the output by 0 %" in capsys.readouterr().out


def test_the_script_for_dreambooth_runs_the_lines_of_a_real_file(tmp_path, capsys):
    module = module_of(FOLDER / "diffusers_dreambooth_snr_gamma.py")
    assert module.main() == 0
    excerpt = capsys.readouterr().out
    lines = module.EXCERPT.strip().replace("    model_pred, model", "    # Chunk the noise\n    model_pred, model", 1)
    body = "".join(f"    {line}\n" if line else "\n" for line in lines.splitlines())
    file = tmp_path / "train_dreambooth.py"
    file.write_text(f"def main():\n{body}\n    accelerator.backward(loss)\n", encoding="utf-8")
    assert module.main(str(file)) == 0
    assert capsys.readouterr().out == excerpt
    mended = body.replace(
        "compute_snr(noise_scheduler, timesteps)", "compute_snr(noise_scheduler, timesteps.chunk(2)[0])"
    )
    mended = mended.replace("ones_like(timesteps)", "ones_like(timesteps.chunk(2)[0])")
    file.write_text(f"def main():\n{mended}\n    accelerator.backward(loss)\n", encoding="utf-8")
    assert module.main(str(file)) == 1
    file.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no loss with prior preservation"):
        module.main(str(file))
