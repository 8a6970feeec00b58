"""The pose editor's own script in a real Chromium: joints by mouse, touch and keys, and what Python has then."""

from __future__ import annotations

import time

import numpy as np
import pytest
from editor_page import EditorPage

from companion.tabletop.scene import BONES, JOINTS
from companion.widgets import PoseEditor
from companion.widgets.controlnet import poses

pytestmark = pytest.mark.browser


def place(editor: EditorPage, joint: str) -> np.ndarray:
    return editor.widget.array[JOINTS.index(joint), :2]


def move(editor: EditorPage, joint: str, dx: float, dy: float) -> np.ndarray:
    """Drag a joint with the mouse; returns by how much each joint has moved, (11, 2)."""
    before, (x, y) = editor.widget.array, place(editor, joint)
    editor.drag((x, y), (x + dx, y + dy))
    editor.sent()
    return (editor.widget.array - before)[:, :2]


def lengths(pose: np.ndarray) -> np.ndarray:
    return np.array([np.hypot(*(pose[JOINTS.index(a)] - pose[JOINTS.index(b)])[:2]) for a, b in BONES])


def others(*names: str) -> list[int]:
    return [i for i, name in enumerate(JOINTS) if name not in names]


def test_a_dragged_joint_moves_alone(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    moved = move(editor, "left_hand", 12, -9)
    assert np.allclose(moved[JOINTS.index("left_hand")], (12, -9), atol=0.5)
    assert np.allclose(moved[others("left_hand")], 0, atol=0.01)


def test_on_its_way_it_is_told_as_moving(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    x, y = place(editor, "head")
    mouse, before = editor.page.mouse, editor.widget.array
    mouse.move(*editor.at(x, y))
    begin = time.monotonic()
    mouse.down()
    for i in range(20):
        mouse.move(*editor.at(x + i, y))
        editor.page.wait_for_timeout(20)
    way, most = editor.sent(), 1 + (time.monotonic() - begin) / 0.1
    # At most one each 100 ms, however long the moves took; Python has the latest, while the pose is what it was.
    assert 2 <= len(way) <= most and all(set(state) == {"moving"} for state in way)
    assert editor.widget.latest[0, 0] > x + 5 and np.array_equal(editor.widget.array, before)
    mouse.up()
    *_, last = editor.sent()
    assert last["moving"] == [] and np.isclose(editor.widget.array[0, 0], x + 19, atol=0.5)
    assert np.array_equal(editor.widget.latest, editor.widget.array)


def test_a_joint_stays_in_the_picture(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    move(editor, "right_hand", 90, -300)
    assert np.allclose(place(editor, "right_hand"), (128, 0))


def test_limbs_keep_their_lengths(opened):
    editor = opened(PoseEditor(keep_lengths=True))
    before = editor.widget.array
    moved = move(editor, "left_elbow", -9, -12)
    assert np.allclose(lengths(editor.widget.array), lengths(before), atol=0.05)
    # The forearm turns with the elbow, about the shoulder; all else stays.
    assert np.allclose(moved[others("left_elbow", "left_hand")], 0, atol=0.01)
    assert all(np.hypot(*moved[JOINTS.index(j)]) > 3 for j in ("left_elbow", "left_hand"))
    arms = [editor.widget.array[[JOINTS.index(f"left_{j}") for j in ("shoulder", "elbow", "hand")], :2], before]
    arms[1] = before[[JOINTS.index(f"left_{j}") for j in ("shoulder", "elbow", "hand")], :2]
    turns = [np.arctan2(*(arm[i] - arm[0])[::-1]) for arm in arms for i in (1, 2)]
    assert np.isclose(turns[0] - turns[2], turns[1] - turns[3], atol=0.01)


def test_the_hips_take_all_along_as_far_as_the_picture_goes(opened):
    editor = opened(PoseEditor(keep_lengths=True))
    before = editor.widget.array
    moved = move(editor, "hips", 100, 5)
    assert np.allclose(moved, moved[0], atol=0.05) and np.isclose(moved[0, 1], 5, atol=0.5)
    assert np.isclose(editor.widget.array[:, 0].max(), 128, atol=0.05)
    assert np.allclose(lengths(editor.widget.array), lengths(before), atol=0.05)


def test_a_limb_turns_as_far_as_the_picture_goes(opened):
    editor = opened(PoseEditor(poses()["stand"] + [-20, 0, 0], keep_lengths=True))
    before = editor.widget.array
    for to in ((-60, -20), (-60, -80), (0, -80)):
        move(editor, "left_elbow", *to)
        now = editor.widget.array[:, :2]
        assert np.allclose(lengths(editor.widget.array), lengths(before), atol=0.05)
        assert now.min() >= 0 and now.max() <= 128


def test_the_box_chooses_whether_lengths_are_kept(opened):
    editor = opened(PoseEditor())
    box = editor.page.get_by_label("keep limb lengths")
    assert box.is_checked()
    box.uncheck()
    editor.sent()
    assert not editor.widget.keep_lengths
    moved = move(editor, "left_elbow", -9, -12)
    assert np.allclose(moved[others("left_elbow")], 0, atol=0.01)


def test_a_pose_that_python_rounds_is_no_new_pose(opened):
    """Joints are kept in single precision; what comes back is rounded, and can still be undone."""
    editor = opened(PoseEditor())
    first = editor.widget.array
    editor.drag(place(editor, "left_hand"), place(editor, "head"))
    (sent,) = [state["joints"] for state in editor.sent() if "joints" in state][-1:]
    assert editor.widget.joints != sent and np.allclose(editor.widget.joints, sent, atol=1e-4)
    editor.press("Undo")
    editor.sent()
    assert np.allclose(editor.widget.array, first, atol=0.01)


def test_undo_and_redo(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    first = editor.widget.array
    move(editor, "head", 10, 0)
    second = editor.widget.array
    move(editor, "hips", 0, 8)
    third = editor.widget.array

    def now() -> np.ndarray:
        editor.sent()
        return editor.widget.array

    keyboard = editor.page.keyboard
    keyboard.press("Control+z")
    assert np.array_equal(now(), second)
    editor.press("Undo")
    assert np.allclose(now(), first, atol=0.01)
    assert editor.page.locator(".pose-editor-undo").get_attribute("aria-disabled") == "true"
    keyboard.press("Control+Shift+Z")
    keyboard.press("Control+y")
    assert np.array_equal(now(), third)
    keyboard.press("Control+z")
    move(editor, "head", 0, 5)
    assert editor.page.locator(".pose-editor-redo").get_attribute("aria-disabled") == "true"


def test_presets_mirror_and_reset(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    first = editor.widget.array
    editor.press("wave")
    editor.sent()
    assert np.allclose(editor.widget.array, poses()["wave"], atol=0.01)
    editor.press("Mirror")
    editor.sent()
    wave, now = poses()["wave"], editor.widget.array
    left, right = JOINTS.index("left_hand"), JOINTS.index("right_hand")
    assert np.allclose(now[left], [128 - wave[right, 0], *wave[right, 1:]], atol=0.01)
    assert np.isclose(now[0, 0], 128 - wave[0, 0], atol=0.01)
    editor.press("Reset")
    editor.sent()
    assert np.allclose(editor.widget.array, first, atol=0.01)
    for _ in range(3):
        editor.press("Undo")
    editor.sent()
    assert np.allclose(editor.widget.array, first, atol=0.01)


def test_keys_move_a_joint_and_jupyterlab_gets_none_of_them(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    before = editor.widget.array
    editor.focus('[data-joint="left_hand"]')
    editor.page.evaluate("window.keys = []")
    keyboard = editor.page.keyboard
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        keyboard.press(key)
    editor.sent()
    moved = (editor.widget.array - before)[JOINTS.index("left_hand")]
    assert np.allclose(moved, (2, 7, 0), atol=0.01)
    joint = editor.page.locator('[data-joint="left_hand"]')
    x, y = np.round(place(editor, "left_hand")).astype(int)
    assert joint.get_attribute("aria-valuetext") == f"{x} across, {y} down"
    assert editor.page.locator(".editor-said").inner_text() == f"left hand: {x} across, {y} down"
    # A key that is held is one change.
    keyboard.down("ArrowLeft")
    for _ in range(5):
        keyboard.down("ArrowLeft")
    keyboard.up("ArrowLeft")
    editor.sent()
    assert np.isclose(place(editor, "left_hand")[0], before[JOINTS.index("left_hand"), 0] + 2 - 6, atol=0.01)
    keyboard.press("Control+z")
    editor.sent()
    assert np.isclose(place(editor, "left_hand")[0], before[JOINTS.index("left_hand"), 0] + 2, atol=0.01)
    keyboard.press("x")
    assert editor.page.evaluate("window.keys") == []
    assert editor.page.locator("#editor").get_attribute("data-lm-suppress-shortcuts") == "true"


def test_a_joint_is_hidden_and_shown(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    hand = JOINTS.index("left_hand")
    x, y = editor.at(*place(editor, "left_hand"))
    editor.page.mouse.dblclick(x, y)
    editor.sent()
    assert editor.widget.array[:, 2].tolist() == [float(i != hand) for i in range(11)]
    assert editor.page.locator("line.pose-editor-hidden").count() == 1
    editor.page.keyboard.press("h")
    editor.sent()
    assert editor.widget.array[:, 2].all()
    editor.page.keyboard.press("h")
    assert np.hypot(*move(editor, "left_hand", 5, 0)[hand]) > 4 and editor.widget.array[hand, 2] == 1


def test_a_finger_takes_the_nearest_joint(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    x, y = place(editor, "head")
    editor.touch((x - 6, y - 8), (x, y - 16), (x + 4, y - 18))
    editor.sent()
    assert np.allclose(place(editor, "head"), (x + 10, y - 10), atol=0.7)


def test_python_sets_the_pose_too(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    move(editor, "head", 10, 0)
    editor.widget.array = poses()["walk"]
    editor.page.evaluate("pose => model.set('joints', pose)", editor.widget.joints)
    x, y = place(editor, "head")
    transform = editor.page.locator('[data-joint="head"]').get_attribute("transform")
    assert np.allclose([float(v) for v in transform.removeprefix("translate(").removesuffix(")").split()], (x, y))
    assert editor.page.locator(".pose-editor-undo").get_attribute("aria-disabled") == "true"


def test_it_leaves_nothing_behind(opened):
    editor = opened(PoseEditor(keep_lengths=False))
    editor.page.evaluate("clean()")
    assert editor.page.evaluate("Object.values(model.handlers).flat().length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_can_be_read(opened, theme):
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    picture = np.stack(
        [np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128)), np.full((128, 128), 90, np.uint8)], 2
    )
    editor = opened(PoseEditor(picture=picture), theme)
    editor.focus('[data-joint="right_elbow"]')
    editor.screenshot(f"pose-{theme}")
    assert editor.page.evaluate("document.documentElement.scrollWidth") <= 600
    box = editor.stage.bounding_box()
    assert box["width"] == box["height"] == 288
