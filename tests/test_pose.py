"""People in photographs: the detector's arithmetic, its files, OpenPose's painting, the robot in a person's pose."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from loopback import listening

from companion import pose
from companion.conditions import CONDITIONS
from companion.pose import COLOURS, LIMBS, POINTS, Region
from companion.tabletop.scene import JOINTS
from companion.tabletop.splits import POSES

SIDES = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def person(**moved: tuple[float, float]) -> np.ndarray:
    """Somebody who faces the camera with arms and legs straight down, 100 pixels tall, all in sight."""
    at = {"nose": (100, 30), "neck": (100, 50), "right_eye": (97, 27), "left_eye": (103, 27)}
    at |= {"right_ear": (93, 29), "left_ear": (107, 29)}
    for name, out, down in zip(SIDES, (20, 20, 20, 10, 10, 10), (50, 70, 90, 100, 120, 140), strict=True):
        at |= {f"right_{name}": (100 - out, down), f"left_{name}": (100 + out, down)}
    return np.array([(*{**at, **moved}[name], 1) for name in POINTS], np.float32)


def hidden(points: np.ndarray, *names: str) -> np.ndarray:
    points = points.copy()
    points[[POINTS.index(name) for name in names], 2] = 0
    return points


class TestPainting:
    def test_a_limb_is_an_ellipse_in_a_darker_colour_and_a_point_a_disc(self):
        ends = np.zeros((18, 3), np.float32)
        ends[POINTS.index("neck")], ends[POINTS.index("right_shoulder")] = (400.5, 256.5, 1), (100.5, 256.5, 1)
        (painted,) = pose.skeletons18([ends])
        assert painted[256, 250].tolist() == [153, 0, 0] and not painted[262:, 250].any()
        assert painted[260, 250].any() and not painted[260, 112].any(), "an ellipse is thick in the middle"
        assert painted[256, 100].tolist() == list(COLOURS[2]) and painted[256, 400].tolist() == list(COLOURS[1])
        expected = np.zeros_like(painted)
        outline = cv2.ellipse2Poly((250, 256), (150, 4), 0, 0, 360, 1)
        cv2.fillConvexPoly(expected, outline, (153, 0, 0))
        cv2.circle(expected, (400, 256), 4, COLOURS[1], -1)
        cv2.circle(expected, (100, 256), 4, COLOURS[2], -1)
        assert np.array_equal(painted, expected)

    def test_the_colours_are_openpose_s(self):
        assert len(set(COLOURS)) == 18 and len(LIMBS) == 17 and COLOURS[0] == (255, 0, 0)
        assert COLOURS[5] == (85, 255, 0) and COLOURS[12] == (0, 0, 255) and COLOURS[17] == (255, 0, 85)

    def test_all_people_are_painted_and_limbs_need_both_ends(self):
        one, other = person(), person() + np.float32([200, 0, 0])
        both, alone, nobody = pose.skeletons18([np.stack([one, other]), one, np.zeros((0, 18, 3))], (300, 400))
        assert both.shape == (300, 400, 3) and not nobody.any()
        assert np.array_equal(both[:, :200], alone[:, :200]) and both[:, 200:].any() and not alone[:, 200:].any()
        armless = pose.skeletons18([hidden(one, "right_elbow")], (300, 400))[0]
        assert alone[60, 80].any() and not armless[60, 80].any()

    def test_lines_are_as_thick_as_the_picture_is_large(self):
        areas = [(pose.skeletons18([person() * [s, s, 1]], 256 * s) > 0).any(-1).mean() for s in (2, 4, 8)]
        assert np.ptp(areas) < 0.1 * areas[1]

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"key points of shape \(11, 3\); give \(18, 3\)"):
            pose.skeletons18([np.zeros((11, 3))])


class TestDecoding:
    def test_anchors_are_the_centres_of_the_cells(self):
        found = pose.anchors()
        assert found.shape == (2 * (28**2 + 14**2 + 3 * 7**2), 2) == (2254, 2)
        assert found[:3].tolist() == [[4 / 224, 4 / 224]] * 2 + [[12 / 224, 4 / 224]]
        assert found[2 * 28].tolist() == [4 / 224, 12 / 224], "rows of cells follow each other"
        assert found[2 * 28**2].tolist() == [8 / 224, 8 / 224] and found[-1].tolist() == [208 / 224, 208 / 224]
        coarse = found[2 * (28**2 + 14**2) :] * 224  # three grids of one stride are one grid with six for each cell
        assert coarse[:6].tolist() == [[16, 16]] * 6 and coarse[6:12].tolist() == [[48, 16]] * 6

    def test_boxes_and_points_are_measured_from_their_anchor(self):
        raw, logits = np.zeros((2254, 12), np.float32), np.full(2254, -9, np.float32)
        raw[2] = (5, 10, 40, 80, 0, 1, 2, 3, 0, 0, 0, 0)
        logits[2] = 0.0
        people, scores = pose.decoded(raw, logits)
        assert scores.tolist() == [0.5]
        expected = [12 + 5 - 20, 4 + 10 - 40, 12 + 5 + 20, 4 + 10 + 40, 12, 5, 14, 7, 12, 4, 12, 4]
        assert np.allclose(people * 224, [expected])

    def test_overlap_is_intersection_over_union(self):
        boxes = np.array([(0, 0, 2, 2), (1, 0, 3, 2), (5, 5, 6, 6), (0, 0, 0, 0)], float)
        assert np.allclose(pose.overlap(boxes[0], boxes), [1, 2 / 6, 0, 0])

    def test_boxes_of_the_same_person_are_averaged_by_score(self):
        people = np.zeros((3, 12))
        people[:, 2:4] = 10
        people[1, [0, 2]] += 1  # 9/11 of both
        people[2, :4] += 100
        found = pose.strongest(people, np.array([0.6, 0.9, 0.7]))
        assert len(found) == 2, "the surest first"
        assert found[0][0] == pytest.approx((0.6 * 0 + 0.9 * 1) / 1.5) and found[1][0] == 100
        assert pose.strongest(np.zeros((0, 12)), np.zeros(0)) == []
        assert len(pose.strongest(np.zeros((2, 12)), np.array([0.9, 0.8]))) == 2, "boxes without a size end the loop"

    def test_points_move_to_what_their_maps_show_nearby(self):
        heat = np.zeros((64, 64, 4), np.float32)
        heat[12, 10, :2] = 0.9
        heat[12, 11, 0] = 0.3
        heat[40, 40, 2] = 0.9  # too far
        heat[12, 10, 3] = 0.4  # not sure
        points = np.tile([11.2 / 64, 11.2 / 64], (4, 1))
        found = pose.refined(points, heat) * 64
        assert np.allclose(found, [(10.25, 12), (10, 12), (11.2, 11.2), (11.2, 11.2)])
        outside = np.array([[-0.1, 0.5], [1.0, 0.5], [0.99, 0.99], [0.5, 0.5]])
        assert np.array_equal(pose.refined(outside, heat), outside)

    def test_a_region_is_cut_out_upright_and_its_points_lead_back(self):
        picture = np.zeros((200, 300, 3), np.uint8)
        picture[90:110, 100:200] = 255  # a bar
        picture[90:110, 180:200] = (255, 0, 0)  # with a red end, towards which "up" is
        region = Region((150, 100), (60, 0))
        cut = region.cut(picture, 60)
        assert cut.shape == (60, 60, 3) and cut.min() == 0 and cut.max() == 1
        assert cut[20, 30].tolist() == [1, 1, 1] and cut[8, 30].tolist() == [1, 0, 0] and not cut[30, 15].any()
        assert np.allclose(
            region.to_picture(np.array([(30, 0), (60, 30), (30, 30)]), 60), [(210, 100), (150, 160), (150, 100)]
        )

    def test_the_whole_picture_is_a_region_with_black_beside_it(self):
        picture = np.full((100, 200, 3), 255, np.uint8)
        cut = Region((100, 50), (0, -100)).cut(picture, 50)
        assert (cut[13:37] > 0.99).all() and not cut[:12].any() and not cut[38:].any()

    def test_a_large_picture_is_made_smaller_without_losing_what_is_thin(self):
        picture = np.zeros((1024, 1024, 3), np.uint8)
        picture[::2] = 255
        cut = Region((512, 512), (0, -512)).cut(picture, 64)
        assert np.allclose(cut, 0.5, atol=0.01)

    def test_a_region_that_is_made_smaller_stays_where_it_was(self):
        """In a narrow picture, whose width does not become a whole number, and that lies slanted in the region."""
        picture = np.zeros((903, 61, 3), np.uint8)
        picture[880:890, 50:60] = 255
        cut = Region((30.5, 451.5), (320, -320)).cut(picture, 64)[..., 0]
        centre = (np.argwhere(cut > 0)[:, ::-1] * cut[cut > 0, None]).sum(0) / cut.sum() + 0.5
        assert np.allclose(Region((30.5, 451.5), (320, -320)).to_picture(centre, 64), (55, 885), atol=4), (
            "0.3 pixels of 14"
        )
        thin = Region((1500, 2), (0, -1500)).cut(np.full((4, 3000, 3), 255, np.uint8), 224)
        assert thin.shape == (224, 224, 3) and not thin[:108].any() and not thin[116:].any()

    def test_what_lies_outside_is_black_for_the_first_network_and_the_nearest_pixel_for_the_second(self):
        """As the networks were trained: see the graphs pose_detection_cpu and pose_landmark_by_roi_cpu of MediaPipe."""
        looked: list[np.ndarray] = []
        detector = pose.Detector.__new__(pose.Detector)
        detector._find = lambda x: looked.append(x) or [np.zeros((1, 2254, 12)), np.full((1, 2254, 1), -9.0)]
        detector._read = lambda x: looked.append(x) or [np.zeros((1, 195)), np.zeros((1, 1))]
        white = np.full((64, 32, 3), 255, np.uint8)
        assert detector.regions(white) == [] and detector.points(white, Region((16, 64), (0, -64))) is None
        assert (looked[0][0, :, :54] == -1).all() and (looked[0][0, 3:-3, 59:165] == 1).all()
        assert (looked[1] == 1).all()

    @pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (1, 64, 64, 3)])
    def test_other_pictures_are_refused(self, shape):
        detector = pose.Detector.__new__(pose.Detector)
        for picture in (np.zeros(shape, np.uint8), np.zeros((64, 64, 3), np.float32)):
            with pytest.raises(
                ValueError, match=r"give uint8 \(H, W, 3\), as by np.asarray\(picture.convert\('RGB'\)\)"
            ):
                detector(picture)

    def test_a_person_s_region_reaches_beyond_the_circle(self):
        region = Region.between(np.array([100, 100]), np.array([100, 20]))
        assert region.centre.tolist() == [100, 100] and region.up.tolist() == [0, -100]

    def test_thirty_three_points_become_eighteen(self):
        points = np.zeros((39, 4))
        points[:, 0], points[:, 1], points[:, 3] = np.arange(39), 50, 0.9
        points[24, 3] = 0.2  # the right hip is hidden
        points[27, 1] = 101  # the left ankle is below the picture
        found = pose.to_18(points, (100, 100))
        at = dict(zip(POINTS, found, strict=True))
        assert [at[f"right_{name}"][0] for name in SIDES] == [12, 14, 16, 24, 26, 28]
        assert [at[f"left_{name}"][0] for name in SIDES] == [11, 13, 15, 23, 25, 27]
        assert [at[name][0] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")] == [0, 5, 2, 8, 7]
        assert at["neck"].tolist() == [11.5, 50, 1]
        assert [name for name in POINTS if not at[name][2]] == ["right_hip", "left_ankle"]
        points[11, 3] = 0.1
        assert not pose.to_18(points, (100, 100))[POINTS.index("neck"), 2], "a neck needs both shoulders"


class TestFiles:
    """The networks' files, from a registry on loopback whose package is made here."""

    @pytest.fixture
    def registry(self, monkeypatch):
        contents = {"pose_detection.tflite": b"finds" * 99, "pose_landmark_full.tflite": b"reads" * 99}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, (member, _) in pose.FILES.items():
                info = tarfile.TarInfo(member)
                info.size = len(contents[name])
                archive.addfile(info, io.BytesIO(contents[name]))
        self.sent, self.asked = packed.getvalue(), []
        digest = base64.b64encode(hashlib.sha512(self.sent).digest()).decode()
        monkeypatch.setattr(pose, "INTEGRITY", f"sha512-{digest}")
        sums = {name: (member, hashlib.sha256(contents[name]).hexdigest()) for name, (member, _) in pose.FILES.items()}
        monkeypatch.setattr(pose, "FILES", sums)

        def answer(request):
            self.asked.append(request.path)
            request.send_response(200)
            request.send_header("Content-Length", str(len(self.sent)))
            request.end_headers()
            request.wfile.write(self.sent)

        with listening(answer) as url:
            yield url

    def test_they_are_fetched_once_and_whole(self, registry, tmp_path):
        folder, told = tmp_path / "pose", []

        def watch(things, total):
            told.append(total)
            return things

        assert pose.fetch(folder, registry, watch) == folder and told == [1]
        assert sorted(p.name for p in folder.iterdir()) == ["pose_detection.tflite", "pose_landmark_full.tflite"]
        assert (folder / pose.DETECTION).read_bytes() == b"finds" * 99
        assert self.asked == ["/@mediapipe/pose/-/pose-0.5.1675469404.tgz"]
        pose.fetch(folder, registry)
        assert len(self.asked) == 1, "what is there is not fetched again"
        (folder / pose.LANDMARKS).write_bytes(b"broken")
        pose.fetch(folder, registry)
        assert len(self.asked) == 2 and (folder / pose.LANDMARKS).read_bytes() == b"reads" * 99

    def test_the_environment_names_another_registry(self, registry, tmp_path, monkeypatch):
        monkeypatch.setenv("npm_config_registry", f"{registry}/")
        assert pose.fetch(tmp_path / "pose") and self.asked == [f"/{pose.PACKAGE}"]

    def test_what_was_not_published_is_not_kept(self, registry, tmp_path):
        self.sent = self.sent[:-7] + b"another"
        with pytest.raises(OSError, match="is not the package that npm published: try again"):
            pose.fetch(tmp_path / "pose", registry)
        assert not (tmp_path / "pose").exists()

    def test_what_never_ends_is_not_read_to_its_end(self, registry, tmp_path, monkeypatch):
        self.sent = bytes(2**21)
        monkeypatch.setattr(pose, "MOST", 2**19)
        with pytest.raises(OSError, match=r"sent \(524,288 bytes\) is not the package"):
            pose.fetch(tmp_path / "pose", registry)

    def test_what_is_no_answer_gets_the_same_sentence(self, tmp_path):
        with listening(lambda request: request.wfile.write(b"nonsense\r\n\r\n")) as url:
            with pytest.raises(OSError, match="(?s)cannot be fetched .*nonsense.*: check the network, or put"):
                pose.fetch(tmp_path / "pose", url)
        with pytest.raises(OSError, match="cannot be fetched .*unknown url type.*: check the network, or put"):
            pose.fetch(tmp_path / "pose", "registry.example")

    def test_without_a_network_a_sentence_says_what_to_do(self, tmp_path):
        with pytest.raises(OSError, match="cannot be fetched .*: check the network, or put pose_detection.tflite and"):
            pose.fetch(tmp_path / "pose", "http://127.0.0.1:9")


class TestRobot:
    @pytest.mark.parametrize(
        "angles",
        [
            (30.0, 40.0, 0.1, -20.0, 80.0, 0.0),
            (-70.0, -30.0, 0.2, 60.0, 20.0, 0.15),
            (0.0, 90.0, 0.05, 75.0, -50.0, 0.22),
        ],
    )
    @pytest.mark.parametrize("lean", [0, 35, -120])
    def test_a_person_in_the_robot_s_pose_gives_the_robot_s_pose(self, angles, lean):
        points = like_robot(angles) @ turned(lean)
        found = np.concatenate([points * 300 + [400, 300], np.ones((18, 1))], 1)
        assert np.allclose(pose.robot(found), angles, atol=1e-3)

    def test_joints_are_those_of_the_pose_whatever_the_person_s_size_and_place(self):
        found = pose.pose_to_robot(person())
        assert found.shape == (len(JOINTS), 3) and found.dtype == np.float32 and (found[:, 2] == 1).all()
        assert np.allclose(found, pose.pose_to_robot(person() * [3, 3, 1] + np.float32([70, -20, 0])), atol=1e-3)
        assert np.allclose(found[:, :2] * 4, pose.pose_to_robot(person(), 512)[:, :2], atol=1e-3)
        assert ((found[:, :2] > 0) & (found[:, :2] < 128)).all()
        assert CONDITIONS["openpose"].paint(found[None]).any()

    def test_an_arm_that_is_up_is_up_on_the_same_side_of_the_picture(self):
        raised = person(right_elbow=(80, 30), right_wrist=(80, 10))  # on the left of the picture
        for points in (raised, from_behind(raised)):
            at = dict(zip(JOINTS, pose.pose_to_robot(points), strict=True))
            assert at["left_hand"][1] < at["left_shoulder"][1] and at["right_hand"][1] > at["right_shoulder"][1]
            assert at["left_shoulder"][0] < at["right_shoulder"][0]

    def test_what_training_never_shows_becomes_the_nearest_that_it_does(self):
        angles = pose.robot(person())  # arms hang at -90 degrees
        assert angles[0] == angles[3] == POSES[0][0] == -75 and angles[1] == pytest.approx(-15)
        kick = pose.robot(person(left_knee=(150, 90), left_ankle=(190, 80)))
        assert kick[5] == POSES[2][1]
        # A hand on the own shoulder: of what the robot can do, a raised forearm is nearer than one that hangs.
        bent = pose.robot(person(right_elbow=(80, 70), right_wrist=(90, 52)))
        assert bent[1] == POSES[1][1]

    def test_what_is_not_seen_hangs_and_is_left_free(self):
        portrait = hidden(person(), *(f"{s}_{n}" for s in ("left", "right") for n in SIDES[1:]))
        found = dict(zip(JOINTS, pose.pose_to_robot(portrait), strict=True))
        assert [name for name in JOINTS if found[name][2]] == ["head", "neck", "left_shoulder", "right_shoulder"]
        assert pose.robot(portrait) == pose.REST * 2
        assert pose.robot(hidden(person(), "right_ankle"))[2] == 0, "a knee says where the leg goes"

    def test_people_without_shoulders_and_crowds_are_refused(self):
        with pytest.raises(ValueError, match="no shoulder is seen"):
            pose.pose_to_robot(hidden(person(), "left_shoulder", "right_shoulder"))
        with pytest.raises(ValueError, match="2 people; give one, such as people\\[0\\]"):
            pose.robot(np.stack([person()] * 2))


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([(c, s), (-s, c)])


def like_robot(angles: tuple[float, ...]) -> np.ndarray:
    """Where the robot of tabletop/shapes.py has the points of a person who faces the camera: (18, 2), y down."""
    at = {name: (0.0, 1.5) for name in POINTS} | {"neck": (0, 1.05)}
    for side, sign, (upper, fore, spread) in (("right", -1, angles[:3]), ("left", 1, angles[3:])):
        a, b = np.deg2rad(upper), np.deg2rad(upper + fore)
        shoulder, hip = np.array([sign * 0.35, 1.05]), np.array([sign * 0.15, 0.5])
        elbow = shoulder + 0.36 * np.array([sign * np.cos(a), np.sin(a)])
        wrist = elbow + 0.34 * np.array([sign * np.cos(b), np.sin(b)])
        ankle = np.array([sign * (0.16 + spread), 0.07])
        places = (shoulder, elbow, wrist, hip, (hip + ankle) / 2, ankle)
        at |= {f"{side}_{name}": place for name, place in zip(SIDES, places, strict=True)}
    return np.array([at[name] for name in POINTS]) * [1, -1]


def from_behind(points: np.ndarray) -> np.ndarray:
    """The same outline, of somebody who looks away: left and right are exchanged."""
    other = [n.replace("left", "?").replace("right", "left").replace("?", "right") for n in POINTS]
    return points[[POINTS.index(name) for name in other]]


@pytest.mark.skipif(
    not all((Path(os.environ.get("COMPANION_POSE", pose.cache())) / name).is_file() for name in pose.FILES),
    reason="the networks are not here: python -c 'from companion.pose import fetch; fetch()'",
)
def test_it_finds_grace_hopper():
    """On a photograph in the public domain that Matplotlib brings: a portrait, whose hips are out of the picture."""
    import matplotlib.cbook
    from PIL import Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = np.asarray(Image.open(file).convert("RGB"))
    detector = pose.Detector(Path(os.environ.get("COMPANION_POSE", pose.cache())))
    (found,) = detector(photograph)
    at = {name: p[:2] for name, p in zip(POINTS, found, strict=True) if p[2]}
    by_eye = {"nose": (262, 250), "right_eye": (222, 205), "left_eye": (298, 200), "neck": (262, 403)}
    by_eye |= {"right_shoulder": (95, 400), "left_shoulder": (430, 410)}
    assert max(np.linalg.norm(at[name] - place) for name, place in by_eye.items()) < 30
    ears = {"right_ear", "left_ear"}
    assert at.keys() <= by_eye.keys() | ears, "no arms and no legs are invented, which the portrait does not show"
    # Turned and made smaller, she is found in the same place.
    half = cv2.resize(cv2.rotate(photograph, cv2.ROTATE_180), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    (again,) = detector(half)
    high, wide = half.shape[:2]
    nose = (wide, high) - again[POINTS.index("nose"), :2]
    assert np.linalg.norm(2 * nose - at["nose"]) < 30
    assert detector(np.zeros((64, 64, 3), np.uint8)).shape == (0, 18, 3)
