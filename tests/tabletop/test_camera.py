"""Where the camera stands, and how things are framed."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop.camera import FOV, TANGENT, boxes, frame, project
from companion.tabletop.scene import Scene, Thing


def test_framing_meets_what_is_asked():
    thing = Thing("ball", "red", 0.5, 0.3, 1.0, 0.0)
    camera, look_at = frame((thing,), height=0.5, width=1.0, margin=0.1, shift=0.5, azimuth=10, pitch=12)
    left, bottom, right, top = boxes(camera, look_at, (thing,))[0]
    assert (top - bottom, bottom) == pytest.approx((0.5, 0.1), abs=0.004)
    assert (left + right) / 2 == pytest.approx(0.5 + 0.5 * (1 - right + left) / 2, abs=0.01)
    assert np.allclose(project(Scene((thing,), None, "sand", "day", camera, look_at), np.array(look_at))[:2], 64)
    assert pytest.approx(np.tan(np.deg2rad(FOV / 2))) == TANGENT


def test_a_frame_that_no_camera_gives_is_refused():
    near, far = Thing("cube", "red", -8.0, -9.0, 1.0, 0.0), Thing("cube", "blue", 8.0, 9.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="no place of the camera shows .* allow them more of the picture"):
        frame((near, far), height=5.0, width=5.0, margin=0.1, shift=0.0, azimuth=0, pitch=12)
