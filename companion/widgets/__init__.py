"""Interactive panels. Each leaves a picture of itself in the notebook, for readers who do not run it."""

from __future__ import annotations

from companion.widgets.adapters import AdapterStrength
from companion.widgets.base import Panel
from companion.widgets.controlnet import PoseEditor, PoseToPicture, ScribblePad, ScribbleToPicture
from companion.widgets.crop import Cropper
from companion.widgets.editing import Comparison, Inpainter, MaskPainter, StrengthSlider
from companion.widgets.energy import EnergyExplorer
from companion.widgets.guidance import GuidanceSlider
from companion.widgets.playground import Playground
from companion.widgets.samplers import SamplerComparison, ScheduleExplorer
from companion.widgets.scrubber import Scrubber
from companion.widgets.training import TrainingScrubber

__all__ = [
    "AdapterStrength",
    "Comparison",
    "Cropper",
    "EnergyExplorer",
    "GuidanceSlider",
    "Inpainter",
    "MaskPainter",
    "Panel",
    "Playground",
    "PoseEditor",
    "PoseToPicture",
    "SamplerComparison",
    "ScheduleExplorer",
    "ScribblePad",
    "ScribbleToPicture",
    "Scrubber",
    "StrengthSlider",
    "TrainingScrubber",
]
