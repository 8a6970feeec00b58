"""The house has floors: no module imports from a floor above its own (companion/README.md draws them)."""

from __future__ import annotations

import ast
from pathlib import Path

import companion

PACKAGE = companion.ROOT / "companion"
#: From the ground up; a name stands for a module, or for a package and everything in it.
FLOORS = (
    ("files", "intervals", "metrics", "energy", "figures", "machine", "pictures", "photographs", "workers"),
    ("models",),
    ("diffusion", "schedules", "mixture"),
    ("training", "fast"),
    ("tabletop",),
    ("conditions", "photo_conditions", "pose", "controlnet", "oft_vs_lora", "angles", "class_images"),
    ("pretraining", "finetuning", "finetuning_run"),
    (
        "start_here",
        "latent_diffusion",
        "samplers",
        "sampler_sweeps",
        "finetuning_sweeps",
        "control_sweeps",
        "img2img_inpainting",
        "dreambooth",
        "where_to_run",
    ),
    ("exercises", "widgets", "space", "replicate"),
    ("run", "doctor", "badges", "dreambooth_command", "finetuning_command", "cli"),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """The part of the package that a module belongs to: "companion.tabletop.scene" is in "tabletop"."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and module of each import from companion in a file, lazy ones and those for annotations too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "companion":  # from companion import training
                found += [(node.lineno, f"companion.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module))
    return [(line, name) for line, name in found if room(name) in FLOOR]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(("companion", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def test_every_module_is_on_a_floor():
    assert {room(name) for name in modules()} - {""} == set(FLOOR)


def test_no_import_runs_upwards():
    up = [
        f"{name}, line {line}: {other}"
        for name, path in modules().items()
        if name != "companion"  # its `load` imports companion.models when it is called
        for line, other in imports(path)
        if FLOOR[room(other)] > FLOOR[room(name)]
    ]
    assert not up, "\n".join(up)


def test_the_page_that_draws_the_floors_names_every_room():
    page = (PACKAGE / "README.md").read_text(encoding="utf-8")
    missing = [name for name in FLOOR if f"`{name}" not in page]
    assert not missing


def test_the_rule_sees_an_import_that_runs_upwards(tmp_path):
    file = tmp_path / "metrics.py"
    file.write_text("def f():\n    from companion.tabletop.judge import Judge\n", encoding="utf-8")
    assert imports(file) == [(2, "companion.tabletop.judge")]
    assert FLOOR[room("companion.tabletop.judge")] > FLOOR["metrics"]
