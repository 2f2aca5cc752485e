"""Films, strips and sliders: files are read back, and what fails leaves the old file and says why in one line."""
import json
import re
import stat

import pytest
import torch
from PIL import Image

from zerodiff.data import make_grid
from zerodiff.film import caption, enlarge, ffmpeg, near_square, plain, play, read_film, read_sprite, save_film, save_sprite, slide, slider, strip


def film(n=5, h=24, w=32):
    "n frames, each of one colour, all different."
    return [torch.stack([torch.full((h, w), v) for v in (i / n * 2 - 1, 0., 1 - i / n * 2)]) for i in range(n)]


@pytest.fixture
def program(tmp_path, monkeypatch):
    "Put a shell script in ffmpeg's place."
    pytest.importorskip("imageio_ffmpeg")
    def put(script):
        path = tmp_path / "ffmpeg"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    return put


@pytest.mark.parametrize("ending", ["gif", "mp4", "MP4"])
def test_a_film_comes_back_frame_by_frame(tmp_path, ending):
    frames = film(7)
    save_film(iter(frames), tmp_path / f"x.{ending}")
    back = read_film(tmp_path / f"x.{ending}")
    assert back.shape == (7, 3, 24, 32) and (back - torch.stack(frames)).abs().max() < .06          # the pause is not seven more frames
    assert [f.name for f in tmp_path.iterdir()] == [f"x.{ending}"]


def test_colours_survive_and_are_labelled_for_browsers(tmp_path):
    "Red, green, blue, white and black come back, since the file says by which matrix it was made; the layout is the one that browsers play."
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1], [-1, -1, -1.]])
    save_film([c[:, None, None].expand(3, 32, 32) for c in colours], tmp_path / "x.mp4", hold=0)
    assert (read_film(tmp_path / "x.mp4").mean((2, 3)) - colours).abs().max() < .05
    said = ffmpeg(["-i", tmp_path / "x.mp4", "-f", "null", "-"])[1]
    assert re.search(r"h264.*yuv420p\(tv, bt709", said)


def test_odd_sides_are_evened(tmp_path):
    save_film([torch.ones(3, 23, 31)] * 2, tmp_path / "x.mp4")
    back = read_film(tmp_path / "x.mp4")
    assert back.shape == (2, 3, 24, 32) and back.min() > .95            # by the edge's white, not by black


def test_the_last_frame_is_held(tmp_path):
    save_film(film(4), tmp_path / "x.gif", fps=10, hold=2)
    with Image.open(tmp_path / "x.gif") as im:
        durations = []
        for i in range(im.n_frames): im.seek(i); durations.append(im.info["duration"])
    assert durations == [100, 100, 100, 2100]
    save_film(film(4), tmp_path / "x.mp4", fps=10, hold=2)
    assert "Duration: 00:00:02.40" in ffmpeg(["-i", tmp_path / "x.mp4", "-f", "null", "-"])[1]


@pytest.mark.parametrize("frames, name, says", [
    (film(), "x.avi", "x.avi"), ([], "x.gif", "no frames"), (film(2) + film(1, 8), "x.mp4", "2 shapes"),
    ([torch.full((3, 8, 8), float("nan"))], "x.gif", "NaN"),
])
def test_what_is_no_film_is_refused(tmp_path, frames, name, says):
    with pytest.raises(ValueError, match=says): save_film(frames, tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="fps"): save_film(film(), tmp_path / "x.gif", fps=0)


@pytest.mark.parametrize("script, says", [
    ("echo 'Unknown encoder libx264' >&2; exit 8", "exit code 8: Unknown encoder libx264"),
    ('for last; do :; done; echo half > "$last"; echo "No space left on device" >&2; exit 1', "No space left"),
    ("kill -9 $$", "exit code -9"),
])
def test_a_failing_ffmpeg_leaves_the_old_film(tmp_path, program, script, says):
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "x.mp4").write_bytes(b"old")
    program(script)
    with pytest.raises(RuntimeError, match=says) as e: save_film(film(), folder / "x.mp4")
    assert "\n" not in str(e.value)
    assert (folder / "x.mp4").read_bytes() == b"old" and len(list(folder.iterdir())) == 1


def test_an_ffmpeg_that_does_not_run(tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match="cannot be run"): save_film(film(), tmp_path / "x.mp4")


def test_without_the_extra_an_mp4_names_it_and_a_gif_works(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"\[film\]"): save_film(film(), tmp_path / "x.mp4")
    save_film(film(), tmp_path / "x.gif")
    assert [f.name for f in tmp_path.iterdir()] == ["x.gif"]


def test_what_cannot_be_read_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.mp4"): read_film(tmp_path / "no.mp4")
    (tmp_path / "x.mp4").write_bytes(b"not a film")
    with pytest.raises(RuntimeError, match="exit code"): read_film(tmp_path / "x.mp4")


# ---------------------------------------------------------------- captions, strips

def test_captions_differ_fit_and_leave_the_picture_alone():
    picture = torch.rand(3, 40, 60) * 2 - 1
    said = [caption(picture, t) for t in ("w = 1", "w = 2", "a text much longer than sixty pixels are wide " * 3, "")]
    assert len({s.shape for s in said}) == 1 and all(torch.equal(s[:, -40:], picture) for s in said)
    assert not torch.equal(said[0], said[1]) and (said[3][:, :-40] == 1).all()
    for s in said[:3]: assert (s[:, :-40, :1] == 1).all() and (s[:, :-40, -1:] == 1).all()          # nothing runs over the edge
    with pytest.raises(ValueError, match="frame"): caption(picture[None], "x")


def test_letters_the_font_lacks_are_spelt():
    assert plain("φ = −2 → Röschen 花") == "phi = -2 -> Roschen ?"


def test_a_strip_has_the_first_and_the_last_frame():
    frames = film(41, 4, 4)
    s = strip(frames, 5)
    assert s.shape == (3, 4, 20) and torch.equal(s[..., :4], frames[0]) and torch.equal(s[..., -4:], frames[-1]) and torch.equal(s[..., 8:12], frames[20])
    assert strip(iter(frames[:3]), 8).shape == (3, 4, 12)
    for bad in ([], 3), (frames, 0):
        with pytest.raises(ValueError, match="strip"): strip(*bad)


def test_enlarging_keeps_flat_pictures_flat():
    x = torch.full((2, 3, 8, 8), .5)
    assert enlarge(x, 3).shape == (2, 3, 24, 24) and (enlarge(x, 3) - .5).abs().max() < .01 and enlarge(x, 1) is x
    with pytest.raises(ValueError, match="zoom"): enlarge(x, 0)


# ---------------------------------------------------------------- sliders

@pytest.mark.parametrize("ending", ["webp", "jpg"])
@pytest.mark.parametrize("n", [1, 5, 41])
def test_each_frame_lies_where_the_slider_looks(tmp_path, monkeypatch, ending, n):
    "The shares in the page, applied to the sprite, show frame i."
    monkeypatch.chdir(tmp_path)
    frames, path = film(n, 16, 24), f"x.{ending}"
    for start in (0, n - 1):
        page = slider(frames, [f"frame <{i}>" for i in range(n)], path, start=start).data
        x, y = (float(v) for v in re.search(r"transform:translate\(-([\d.]+)%,-([\d.]+)%\)", page).groups())
        with Image.open(path) as sheet:
            left, top = round(x / 100 * sheet.width), round(y / 100 * sheet.height)
            seen = torch.tensor(sheet.convert("RGB").getpixel((left + 12, top + 8))) / 127.5 - 1
        assert (seen - frames[start][:, 8, 12]).abs().max() < .08
    assert read_sprite(path) == dict(columns=read_sprite(path)["columns"], size=[24, 16], labels=[f"frame <{i}>" for i in range(n)])


def test_the_page_links_to_the_sprite_and_holds_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    page = slider(film(9), [f'w = {i} "<&' for i in range(9)], "films/a b.webp").data
    assert 'src="films/a%20b.webp"' in page and "data:image" not in page and "<script" not in page and " id=" not in page
    assert 'type="range"' in page and "aria-valuetext" in page and len(page) < 3000
    assert slide("films/a b.webp", start=-1).data.count("w = 8") > page.count("w = 8")
    with pytest.raises(IndexError): slide("films/a b.webp", start=9)


def test_sprites_that_will_not_do(tmp_path):
    with pytest.raises(ValueError, match="labels: got 2"): save_sprite(film(3), "ab", tmp_path / "x.webp")
    with pytest.raises(ValueError, match="x.png"): save_sprite(film(3), "abc", tmp_path / "x.png")
    with pytest.raises(ValueError, match="16383"): save_sprite([torch.zeros(3, 8, 17000)], "a", tmp_path / "x.webp")
    with pytest.raises(ValueError, match="MB"): save_sprite([torch.randn(3, 64, 64).clamp(-1, 1)] * 4, "abcd", tmp_path / "x.webp", limit=2000)
    assert not list(tmp_path.iterdir())
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.webp")
    (tmp_path / "text.webp").write_text("no picture")
    exif = Image.Exif()
    for name, about in dict(script=dict(columns=1, size=['1px"><img src=x onerror=alert(1)>', 1], labels=["a"]), list=[1], empty=dict(columns=1, size=[4, 4], labels=[]), zero=dict(columns=0, size=[4, 4], labels=["a"])).items():
        exif[0x010E] = json.dumps(about)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.webp", exif=exif)
    for name in "foreign", "text", "script", "list", "empty", "zero":
        with pytest.raises(ValueError, match="not written by save_sprite"): slide(tmp_path / f"{name}.webp")
    with pytest.raises(FileNotFoundError): slide(tmp_path / "none.webp")


def test_quality_falls_until_the_file_is_small_enough(tmp_path):
    frames = [make_grid(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1) for i in range(4)]
    sizes = []
    for limit in (10**6, 10**6, 40_000):
        save_sprite(frames, "abcd", tmp_path / "x.webp", limit=min(limit, sizes[0] - 1) if limit < 10**6 else limit)
        sizes.append((tmp_path / "x.webp").stat().st_size)
    assert sizes[2] < sizes[0] == sizes[1]


@pytest.mark.parametrize("n, shape", [(1, 1), (2, 1.5), (5, 1), (41, 1.5), (100, .2), (60, 3)])
def test_sheets_are_about_square(n, shape):
    c = near_square(n, shape)
    rows = -(-n // c)
    assert 1 <= c <= n and 1 / 3 < c * shape / rows <= 3 and rows * c - n < rows       # no column is empty


def test_a_sheet_of_very_tall_frames_has_columns_too():
    assert near_square(1, .0625) == 1 and near_square(2, .05) in (1, 2)


def test_a_gif_keeps_time(tmp_path):
    "Its clock ticks in hundredths of a second: twelve frames a second are not twelve and a half."
    save_film(film(25), tmp_path / "x.gif", fps=12, hold=0)
    with Image.open(tmp_path / "x.gif") as gif:
        times = []
        for i in range(gif.n_frames): gif.seek(i); times.append(gif.info["duration"])
    assert sum(times) == 2080 and set(times) == {80, 90}
    for wrong in (dict(fps=60), dict(hold=700)):
        with pytest.raises(ValueError, match="in a GIF"): save_film(film(2), tmp_path / "y.gif", **wrong)


def test_play_links_to_the_film(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_film(film(), "x.gif")
    assert '<img src="x.gif" alt="a &lt;film&gt;"' in play("x.gif", "a <film>").data
    (tmp_path / "x.mp4").write_bytes(b"")
    assert re.search(r"<video controls loop muted playsinline .*src=\"x.mp4\"", play("x.mp4").data)
    with pytest.raises(FileNotFoundError, match="y.mp4"): play("y.mp4")


def test_labels_may_hold_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = ["'", '"', "</figure>", "phi → φ"]
    page = slider(film(4), labels, "x.webp").data
    import html
    held = re.search(r'data-labels="([^"]*)"', page)[1]
    assert json.loads(html.unescape(held)) == labels == read_sprite("x.webp")["labels"] and page.count("</figure>") == 1
