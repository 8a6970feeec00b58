"""The course's exercises, which readers solve in the notebooks and which check themselves.

def first_step(steps, strength):
    ...
exercises.check("first_step", first_step)             # says what is right, or what to look at
exercises.solution("first_step")                      # shows one way to do it
first_step = exercises.use("first_step", first_step)  # the reader's function once it is right, or the course's

Each notebook has its own module, which holds the solution of each exercise and the test of an answer. The stub in the
notebook is cut from the solution. machinery.py does the rest.
"""

from __future__ import annotations

# Importing a notebook's module registers its exercises.
from companion.exercises import (  # noqa: F401
    controlnet,
    dreambooth,
    img2img_inpainting,
    latent_diffusion,
    oft_vs_lora,
    samplers,
    start_here,
    where_to_run,
)
from companion.exercises.machinery import (
    EXERCISES,
    Exercise,
    Source,
    Verdict,
    Wrong,
    check,
    exercise,
    solution,
    stub,
    use,
)

__all__ = ["EXERCISES", "Exercise", "Source", "Verdict", "Wrong", "check", "exercise", "solution", "stub", "use"]
