"""Figures: what goes in is what is drawn, wrong input is named, and progress leaves nothing on stderr."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from companion import figures, start_here


def drawn(figure: Figure) -> np.ndarray:
    (data,) = [data for kind, data in figure._repr_mimebundle_().items() if kind.startswith("image/")]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def has_colour(pixels: np.ndarray, colour: tuple[int, int, int], within: int = 12) -> bool:
    return bool((np.abs(pixels - np.array(colour)).max(-1) <= within).any())


class TestPictures:
    def test_all_forms_give_the_same_pixels(self):
        array = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        tensor = torch.as_tensor(array).permute(2, 0, 1).float() / 127.5 - 1
        for form in (array, Image.fromarray(array), tensor, tensor.numpy(), tensor.double().requires_grad_()):
            assert np.array_equal(figures.as_array(form), array)

    def test_values_beyond_the_range_are_cut(self):
        assert figures.as_array(torch.full((3, 2, 2), 7.0)).max() == 255

    @pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 4, 3)), torch.zeros(4, 8, 8)])
    def test_another_form_is_named(self, wrong):
        with pytest.raises(ValueError, match="is no picture: give uint8"):
            figures.as_array(wrong)

    def test_enlarging_keeps_the_shape(self):
        assert figures.as_pil(np.zeros((10, 20, 3), np.uint8), 60).size == (60, 30)

    def test_a_grid_shows_every_picture(self):
        colours = [(250, 30, 30), (30, 250, 30), (30, 30, 250)]
        figure = figures.grid(
            [Image.new("RGB", (8, 8), c) for c in colours], ["one", "two", "three"], columns=2, title="T"
        )
        pixels = drawn(figure)
        assert all(has_colour(pixels, c) for c in colours)
        (axis,) = figure.axes
        assert [text.get_text() for text in axis.texts] == ["one", "two", "three"]
        places = [image.get_extent() for image in axis.images]
        assert places[0][:2] == places[2][:2] and places[0][2:] == places[1][2:], "two columns, two rows"
        assert places[0][1] < places[1][0] and places[0][2] < places[2][3], "and a gap between them"

    def test_names_stand_beside_their_rows_and_above_their_columns(self):
        black = [Image.new("RGB", (128, 128))] * 6
        figure = figures.grid(black, columns=3, row_names=["up", "down\nhere"], column_names=["a", "b\nc", "d"])
        FigureCanvasAgg(figure).draw()
        (axis,) = figure.axes
        pictures = [image.get_window_extent() for image in axis.images]
        boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
        for name, row in (("up", pictures[0]), ("down\nhere", pictures[3])):
            assert boxes[name].x1 < row.x0 and row.y0 < boxes[name].y0 < boxes[name].y1 < row.y1
        for name, column in zip(("a", "b\nc", "d"), pictures, strict=False):
            assert boxes[name].y0 > column.y1 and column.x0 < boxes[name].x0 < boxes[name].x1 < column.x1
        assert all(figure.bbox.x0 <= b.x0 for b in boxes.values())

    def test_long_names_take_no_room_from_pictures_and_titles(self):
        names = {"row_names": ["a name that is\nmuch longer than most"], "labels": ["four\nlines\nof\nletters"] * 3}
        figure = figures.grid([Image.new("RGB", (128, 128))] * 3, title="A title", caption="A caption", **names)
        FigureCanvasAgg(figure).draw()
        (axis,) = figure.axes
        assert min(image.get_window_extent().width for image in axis.images) >= 128
        title = figure._suptitle.get_window_extent()
        assert all(text.get_window_extent().y1 < title.y0 for text in axis.texts)
        assert all(text.get_window_extent().x0 >= 0 for text in axis.texts)
        caption = figure._supxlabel.get_window_extent()
        assert 0 <= caption.y0 and caption.y1 < min(image.get_window_extent().y0 for image in axis.images)

    def test_pictures_of_other_shapes_keep_them_in_places_of_the_first_one_s_size(self):
        shapes = [(128, 128), (64, 64), (128, 64), (64, 128)]  # width, height
        (axis,) = figures.grid([Image.new("RGB", shape) for shape in shapes], columns=2).axes
        sides = [(abs(x1 - x0), abs(y1 - y0)) for x0, x1, y0, y1 in (image.get_extent() for image in axis.images)]
        assert np.allclose([w / h for w, h in sides], [w / h for w, h in shapes])
        assert np.allclose([max(side) for side in sides], max(sides[0]))

    @pytest.mark.parametrize(("columns", "rows"), [(1, 2), (4, 2), (6, 1), (6, 3)])
    def test_pictures_of_the_miniature_are_no_smaller_than_they_are(self, columns, rows):
        black = [Image.new("RGB", (128, 128))] * columns * rows
        names = {"row_names": ["a row"] * rows, "column_names": ["a column"] * columns}
        pixels = drawn(figures.grid(black, columns=columns, title="T", caption="C", **names))
        dark = (pixels.max(-1) < 20).sum(1)  # in a line of pixels through a row of pictures, nearly all of it is theirs
        assert dark.max() >= 128 * columns
        assert (dark >= 128 * columns - 4).sum() >= 126 * rows
        assert pixels.shape[1] <= 96 * figures.WIDEST

    def test_a_single_point_keeps_its_colour_and_paper_is_white(self):
        names = [str(i) for i in range(len(figures.COLOURS))]
        points = {name: [i] for i, name in enumerate(names)}
        figure = figures.curves(points, points, title="T", x_label="x", y_label="y", joined=False)
        pixels = drawn(figure)
        for colour in (*figures.COLOURS, "#ffffff"):
            assert has_colour(pixels, ImageColor.getrgb(colour), within=0)
        markers = {line.get_marker() for line in figure.axes[0].lines}
        assert len(markers) == len(names)

    def test_ticks_of_a_logarithmic_axis_leave_each_other_room(self):
        rates = {"a": [1e-4, 1e-3, 1e-2], "b": [1.05e-4, 1.05e-3, 1e-2]}
        figure = figures.curves(rates, {k: [1, 2, 3] for k in rates}, title="T", x_label="x", y_label="y", log_x=True)
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0.0001", "0.001", "0.01"]

    def test_pictures_are_stored_as_jpeg_and_curves_as_png(self):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        bundles = [
            figures.grid([noise])._repr_mimebundle_(),
            figures.curves([0, 1], {"a": [0, 1]}, title="T", x_label="x", y_label="y")._repr_mimebundle_(),
        ]
        assert [sorted(bundle) for bundle in bundles] == [["image/jpeg", "text/plain"], ["image/png", "text/plain"]]
        assert bundles[0]["text/plain"].startswith("<")  # the gate ignores such text

    def test_maps_share_one_scale_with_a_unit(self):
        figure = figures.grid([np.full((4, 4), -1.0), torch.full((4, 4), 3.0)], unit="volts")
        images = figure.axes[0].images
        assert [image.get_clim() for image in images] == [(-3.0, 3.0)] * 2
        assert figure.axes[-1].get_ylabel() == "volts"

    def test_what_cannot_be_a_grid_is_refused(self):
        with pytest.raises(ValueError, match="no picture to show"):
            figures.grid([])
        with pytest.raises(ValueError, match="2 labels for 1 pictures"):
            figures.grid([Image.new("RGB", (4, 4))], ["a", "b"])

    def test_an_overlay_marks_the_place_and_draws_the_box(self):
        heat = torch.zeros(4, 4)
        heat[0, 0] = 1
        figure = figures.overlays(Image.new("RGB", (32, 32), "black"), {"ball": heat}, boxes={"ball": (0, 0, 0.5, 0.5)})
        map_axis = figure.axes[1]
        values = map_axis.images[1].get_array()
        assert values[0, 0] == 1 and values.sum() == 1
        (box,) = map_axis.patches
        assert (box.get_width(), box.get_height()) == (16, 16)

    def test_a_title_is_never_wider_than_the_figure(self):
        figure = figures.grid([Image.new("RGB", (8, 8))], title="a very long title " * 8)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        assert figure._suptitle.get_window_extent(renderer).x1 <= figure.bbox.x1
        assert figure._suptitle.get_text().count("\n") > 1


class TestNumbers:
    def test_points_that_are_not_joined_are_told_apart_by_colour_or_marker(self):
        values = {str(i): [i] for i in range(10)}
        figure = figures.curves({k: [1] for k in values}, values, title="T", x_label="x", y_label="y", joined=False)
        lines = figure.axes[0].get_lines()
        assert {line.get_linestyle() for line in lines} == {"None"}
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10

    def test_an_order_keeps_a_name_its_colour_from_figure_to_figure(self):
        def colours(*names, order=None):
            lines = {name: [1, 2] for name in names}
            figure = figures.curves([1, 2], lines, title="T", x_label="x", y_label="y", order=order)
            return [line.get_color() for line in figure.axes[0].get_lines()]

        first, second = colours("a", "b", "c"), colours("c", "new", "a", order=["a", "b", "c"])
        assert second == [first[2], figures.COLOURS[3], first[0]]

    def test_curves_hold_their_numbers(self):
        figure = figures.curves(
            [1, 2],
            {"a": [3, 4], "b": torch.tensor([5.0, 6.0])},
            title="T",
            x_label="x",
            y_label="y (dB)",
            errors={"a": ([2, 3], [4, 5])},
            levels={"limit": 4.5},
        )
        (axis,) = figure.axes
        assert [list(line.get_ydata()) for line in axis.lines[:2]] == [[3, 4], [5, 6]]
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "limit"]
        assert axis.get_ylabel() == "y (dB)" and len(axis.collections) == 1

    def test_bars_hold_their_numbers_and_errors(self):
        figure = figures.bars(
            {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}, title="T", y_label="share", errors={"a": {"x": (0.5, 1.6)}}
        )
        (axis,) = figure.axes
        heights = [
            bar.get_height() for container in axis.containers if hasattr(container, "patches") for bar in container
        ]
        assert heights[:3] == [1.0, 2.0, 3.0]
        (segments, *_) = [c.get_segments() for c in axis.collections]
        assert [round(float(y), 6) for y in segments[0][:, 1]] == [0.5, 1.6]

    def test_a_table_in_text_and_in_html(self):
        table = figures.Table(("name", "n"), [("a<b", 1), ("long name", 22)], {"long name": "x.ipynb"})
        assert repr(table).splitlines() == ["name       n", "---------  --", "a<b        1", "long name  22"]
        assert "a&lt;b" in table._repr_html_() and '<a href="x.ipynb">long name</a>' in table._repr_html_()
        with pytest.raises(ValueError, match="needs 2 cells"):
            figures.Table(("a", "b"), [(1,)])


class TestProgress:
    def test_everything_is_passed_on_and_nothing_is_printed(self, capsys):
        assert list(figures.progress(iter(range(5)), 5, "counting", note=str)) == [0, 1, 2, 3, 4]
        assert capsys.readouterr() == ("", "")

    def test_in_a_notebook_one_place_changes(self, monkeypatch):
        shown = []
        monkeypatch.setattr(figures, "in_notebook", lambda: True)
        monkeypatch.setattr("IPython.display.display", lambda thing, display_id: shown.append(thing) or Handle())

        class Handle:
            def update(self, thing):
                shown.append(thing)

        list(figures.progress(range(3), 3, "work", note=lambda i: f"at {i}", every=0))
        assert [repr(bar) for bar in shown[:3]] == [f"work: at {i} ({i} of 3)" for i in range(3)]
        assert repr(shown[-1]).startswith("work: ") and "(3 of 3)" in repr(shown[-1])
        assert 'value="3" max="3"' in shown[-1]._repr_html_()

    def test_live_is_silent_outside_a_notebook(self, capsys):
        figures.Live().show("x")
        assert capsys.readouterr() == ("", "")


class TestStartHere:
    def test_the_map_knows_what_is_there(self, tmp_path):
        (tmp_path / "01_latent_diffusion.ipynb").write_text("{}", encoding="utf-8")
        table = start_here.course_map(tmp_path)
        assert [row[2] for row in table.rows] == ["planned", "here"] + ["planned"] * 7
        assert (
            '<a href="01_latent_diffusion.ipynb">' in table._repr_html_()
            and "02_samplers.ipynb" not in table._repr_html_()
        )

    def test_asked_and_read(self, monkeypatch):
        from companion.tabletop import measures
        from companion.tabletop.judge import Reading

        reading = Reading(("house", "robot"), ("blue", "gold"), "neither", "snow", "day", ((0, 0, 1, 1),) * 2, 0.9)
        monkeypatch.setattr(measures, "read", lambda pictures: [reading])
        table = start_here.asked_and_read("a gold robot right of a blue house at night", Image.new("RGB", (128, 128)))
        assert table.rows == [
            ["count", "2", "2", "yes"],
            ["kind", "robot, house", "house, robot", "yes"],
            ["finish", "gold, blue", "blue, gold", "yes"],
            ["time", "night", "day", "no"],
            ["relation", "right of", "side by side", "yes"],
        ]
        with pytest.raises(ValueError, match="names 0 things"):
            start_here.asked_and_read("a dog", Image.new("RGB", (128, 128)))


def test_clouds_of_points_share_their_axes():
    points = np.zeros((5, 2))
    figure = figures.scatter({"a": {"x": points, "y": points + 1}, "b": {"x": points}}, title="t", limit=2)
    assert [axis.get_xlim() for axis in figure.axes] == [(-2, 2)] * 2
    assert [len(axis.collections) for axis in figure.axes] == [2, 1]
