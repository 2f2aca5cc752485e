"""Chapter 00: pictures handed over right, from three sources, and what may be wrong with them."""
import contextlib, errno, os, subprocess, sys, time, warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zerodiff import data as D
from zerodiff.data import (ALIKE, COLOURS, GARDEN_CLASSES, HEARTS, PETALS, SHAPES, Pictures, check_range, flowers102, garden,
                           held_ids, image_folder, make_grid, need, read_picture, replacing, resize_and_crop, save_image,
                           show_images, to_float, to_rgb, to_uint8)


def flower(i=0, size=32, seed=0):
    "Picture i of the garden as a PIL image."
    return Image.fromarray(garden(i + 1, size, seed).images[i].permute(1, 2, 0).numpy())


def said(f, *args, **kwargs):
    "What f(...) returns, and the texts of its warnings."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = f(*args, **kwargs)
    return result, [str(w.message) for w in seen]


# ---- numbers and ranges

def test_bytes_and_floats_are_inverse():
    b = torch.arange(256, dtype=torch.uint8)
    x = to_float(b)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), b)
    assert torch.allclose(x.double(), b.double() / 127.5 - 1, atol=1e-6)
    assert to_uint8(torch.tensor([-3., 3.])).tolist() == [0, 255]
    assert torch.equal(to_uint8(x.bfloat16()), to_uint8(x.bfloat16().float()))


def test_wrong_types_for_conversion_are_refused():
    with pytest.raises(TypeError, match="float32, expected torch.uint8"): to_float(torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"): to_uint8(torch.tensor([0., float("nan")]))
    with pytest.raises(TypeError, match="torch.uint8, expected floats"): to_uint8(torch.tensor([0, 255], dtype=torch.uint8))


def test_to_uint8_leaves_its_argument_alone():
    x = torch.tensor([-.5, .5])
    to_uint8(x)
    assert x.tolist() == [-.5, .5]


X = to_float(garden(16).images)

@pytest.mark.parametrize("bad, error, text", [
    ((X + 1) * 127.5, ValueError, r"0\.\.255"),
    ((X + 1) / 2, ValueError, r"look like \[0, 1\]"),
    (X * 3, ValueError, r"expected pictures in \[-1, 1\]"),
    (torch.where(X > .9, torch.nan, X), ValueError, "NaN"),
    (torch.where(X > .9, -torch.inf, X), ValueError, "NaN or infinite"),
    (garden(2).images, TypeError, "uint8, expected floats"),
    (X[:0], ValueError, "empty"),
], ids=["255", "unit", "wide", "nan", "inf", "uint8", "empty"])
def test_wrong_ranges_are_caught(bad, error, text):
    with pytest.raises(error, match=text): check_range(bad)


def test_right_ranges_pass_without_false_alarm():
    assert check_range(X) is X
    check_range((X[:7] + 1) / 2)                       # too few to tell
    check_range(torch.zeros(8, 3, 4, 4))               # plain grey
    check_range(X.half())
    with pytest.raises(ValueError, match="^batch runs from 0"): check_range((X + 1) / 2, "batch")


# ---- Pictures

def test_pictures_hand_out_floats_and_labels():
    ds = garden(20)
    x, y = ds.batch([3, 1, 3])
    assert x.dtype == torch.float32 and x.shape == (3, 3, 32, 32) and torch.equal(x[0], x[2])
    assert torch.equal(to_uint8(x[1]), ds.images[1]) and y.tolist() == ds.labels[[3, 1, 3]].tolist()
    image, label = ds[1]
    assert torch.equal(image, x[1]) and label == ds.labels[1] and isinstance(label, int)
    for indices in (range(4), [0, 1, 2, 3], torch.arange(4), np.arange(4)):
        assert torch.equal(ds.batch(indices)[0], ds.batch(range(4))[0])
    assert len(list(ds)) == 20                         # iteration ends
    with pytest.raises(IndexError): ds[20]


def test_subset_takes_everything_along():
    ds = garden(30)
    part = ds.subset(ds.attributes["petals"] == 5)
    keep = (ds.attributes["petals"] == 5).nonzero()[:, 0]
    assert 0 < len(part) < 30 and torch.equal(part.images, ds.images[keep])
    assert part.captions == [ds.captions[i] for i in keep] and (part.attributes["petals"] == 5).all()
    assert part.classes == ds.classes and torch.equal(part.labels, ds.labels[keep])
    assert ds.subset([2, 0]).captions == [ds.captions[2], ds.captions[0]]
    assert torch.equal(ds.to("cpu").images, ds.images)


def test_pictures_refuse_what_does_not_fit():
    images = garden(3).images
    with pytest.raises(ValueError, match=r"images: expected uint8 \(N, 3, H, W\), got torch.float32"): Pictures(images.float())
    with pytest.raises(ValueError, match="labels: 2 of them for 3 pictures"): Pictures(images, [0, 1])
    with pytest.raises(ValueError, match="hue: 1 of them"): Pictures(images, attributes={"hue": torch.zeros(1)})


# ---- garden

def test_garden_is_the_same_for_ever():
    "Golden: a changed garden changes every figure made with it."
    a = garden(6).attributes
    assert [GARDEN_CLASSES[i] for i in garden(6).labels] == ["red slender", "pink slender", "yellow round", "yellow pointed",
                                                             "purple pointed", "white slender"]
    assert a["petals"].tolist() == [5, 8, 4, 8, 10, 8]
    assert a["hue"].tolist() == pytest.approx(GOLDEN_HUES, abs=1e-3)
    assert garden(6).images.double().mean((1, 2, 3)).tolist() == pytest.approx(GOLDEN_MEANS, abs=.2)


GOLDEN_HUES = [356.584, 331.516, 49.254, 56.977, 284.085, 0.148]
GOLDEN_MEANS = [32.15, 61.26, 157.19, 166.83, 78.73, 62.71]


@pytest.mark.parametrize("size", [8, 32, 50])
def test_garden_picture_i_does_not_depend_on_n(size):
    many = garden(700, size, seed=3)                   # more than is drawn at once
    for n in (1, 15, 300):
        few = garden(n, size, seed=3)
        assert torch.equal(few.images, many.images[:n]) and few.captions == many.captions[:n]
        assert all(torch.equal(v, many.attributes[k][:n]) for k, v in few.attributes.items())
    assert not torch.equal(garden(1, size, seed=4).images, many.images[:1])


def test_garden_attributes_classes_and_captions_agree():
    ds = garden(2000)
    a = ds.attributes
    assert COLOURS == ("white", "yellow", "orange", "red", "pink", "purple", "blue")
    assert torch.bincount(ds.labels, minlength=21).min() > 50 and set(a["petals"].tolist()) == set(PETALS)
    for i in range(200):
        colour, shape, heart = COLOURS[a["colour"][i]], SHAPES[a["shape"][i]], HEARTS[a["heart"][i]]
        assert ds.classes[ds.labels[i]] == f"{colour} {shape}"
        assert f" {colour} flower" in ds.captions[i] and f" {shape} petals" in ds.captions[i]
        assert ds.captions[i].endswith(f"a {heart} heart") and heart != colour
        assert ds.captions[i].startswith("an orange" if colour == "orange" else f"a {colour}")
    assert all(len(v) == 2000 for v in a.values())


def test_garden_petals_can_be_counted():
    "On a circle through the petals' outer part, a slender flower's colour comes and goes once for each petal."
    ds = garden(300, size=128)
    a = ds.attributes
    turn = torch.arange(720) * 2 * torch.pi / 720
    for i in ((a["shape"] == 2) & (a["background"] == 1)).nonzero()[:, 0].tolist():
        x, y = ((a[k][i] + .75 * a["radius"][i] * f(turn) + 1) * 64 for k, f in (("x", torch.cos), ("y", torch.sin)))
        bright = ds.images[i].amax(0)[y.long().clamp(0, 127), x.long().clamp(0, 127)] > 110
        assert (bright & ~bright.roll(1)).sum() == a["petals"][i], ds.captions[i]


def test_garden_refuses_nonsense():
    with pytest.raises(ValueError, match="n is 0"): garden(0)
    with pytest.raises(ValueError, match="size is 7, expected at least 8"): garden(3, size=7)


# ---- from a PIL image to a tensor

def test_area_resize_averages_and_crops_the_middle():
    x = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mean = x[:, 8:40].reshape(8, 4, 8, 4, 3).mean((1, 3))
    got = resize_and_crop(Image.fromarray(x), 8)
    assert got.dtype == torch.uint8 and got.shape == (3, 8, 8)
    assert np.abs(got.permute(1, 2, 0).numpy() - mean).max() < 1.01        # PIL rounds twice
    tall = resize_and_crop(Image.fromarray(x.transpose(1, 0, 2)), 8)
    assert (tall.int() - got.transpose(1, 2).int()).abs().max() <= 1


def test_a_picture_of_the_right_size_is_left_alone():
    im = flower()
    assert torch.equal(resize_and_crop(im, 32), garden(1).images[0])


@pytest.mark.parametrize("orientation, back", [
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (4, Image.Transpose.FLIP_TOP_BOTTOM),
    (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_90), (7, Image.Transpose.TRANSVERSE), (8, Image.Transpose.ROTATE_270)])
def test_exif_rotation_is_honoured(orientation, back, tmp_path):
    im = flower(7)
    stored = im.transpose(back)
    stored.getexif()[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=stored.getexif())
    assert torch.equal(read_picture(tmp_path / "a.png", 32)[0], resize_and_crop(im, 32))


def test_broken_exif_loses_no_picture(tmp_path):
    "PIL stumbles over it in several ways; the pixels are fine, and the orientation, if it can be read, holds."
    im = flower(7)
    im.save(tmp_path / "short.png", exif=b"Exif\0\0II*\0")
    assert torch.equal(read_picture(tmp_path / "short.png", 32)[0], resize_and_crop(im, 32))
    odd = Image.Exif()
    odd[0x0112], odd[0x011A] = 3, "72"                            # the resolution as text
    with contextlib.suppress(Exception):                         # PIL may refuse to write it
        im.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "odd.png", exif=odd)
        assert torch.equal(read_picture(tmp_path / "odd.png", 32)[0], resize_and_crop(im, 32))


def test_drawings_start_no_other_program(tmp_path):
    flower(7).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="made of pixels"): read_picture(tmp_path / "a.jpg", 32)


def test_exif_rotation_of_a_jpeg(tmp_path):
    im = flower(7, size=256)
    stored = im.transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6
    stored.save(tmp_path / "a.jpg", exif=stored.getexif(), quality=95)
    error = (read_picture(tmp_path / "a.jpg", 32)[0].float() - resize_and_crop(im, 32).float()).abs()
    assert error.mean() < 3


def test_alpha_goes_on_white():
    rgba = Image.new("RGBA", (16, 16), (200, 0, 0, 0))         # a colour nobody is meant to see
    rgba.paste((0, 0, 200, 255), (0, 0, 16, 8))
    got = resize_and_crop(rgba, 16)
    assert (got[:, 8:] == 255).all() and got[:, 0, 0].tolist() == [0, 0, 200]
    half = resize_and_crop(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), 8)
    assert (half.int() - 127).abs().max() <= 1
    grey = resize_and_crop(Image.new("LA", (16, 16), (0, 0)), 8)
    assert (grey == 255).all()


def test_transparent_palette_and_transparent_colour(tmp_path):
    im = Image.new("P", (16, 16), 0)
    im.putpalette([255, 0, 0, 0, 255, 0])
    im.paste(1, (0, 0, 16, 8))
    assert resize_and_crop(im, 16)[:, 12, 0].tolist() == [255, 0, 0]
    im.save(tmp_path / "a.png", transparency=0)
    got = read_picture(tmp_path / "a.png", 16)[0]
    assert got[:, 12, 0].tolist() == [255, 255, 255] and got[:, 0, 0].tolist() == [0, 255, 0]
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "b.png", transparency=(9, 9, 9))
    assert (read_picture(tmp_path / "b.png", 16)[0] == 255).all()


def test_cmyk_grey_and_one_bit(tmp_path):
    im = flower(1, size=64)
    im.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    got, right = read_picture(tmp_path / "a.jpg", 32)[0].float(), resize_and_crop(im, 32).float()
    assert (got - right).abs().mean() < 6              # inverted inks would be off by some 100
    grey = resize_and_crop(im.convert("L"), 32)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert set(resize_and_crop(im.convert("1"), 64).unique().tolist()) == {0, 255}


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_sixteen_bits_and_floats_are_not_clipped(kind, tmp_path):
    grey = np.asarray(flower(1).convert("L"))
    if kind == "F": im = Image.fromarray(grey.astype(np.float32) / 255)
    else: im = Image.fromarray((grey.astype(np.int32) * 257).astype(np.uint16 if kind == "I;16" else np.int32))
    assert im.mode == kind
    assert torch.equal(resize_and_crop(im, 32)[0], torch.from_numpy(grey.copy()))
    if kind == "I;16":
        im.save(tmp_path / "a.png")
        assert torch.equal(read_picture(tmp_path / "a.png", 32)[0][0], torch.from_numpy(grey.copy()))
    if kind == "F":
        with pytest.raises(ValueError, match="out of range"): to_rgb(Image.fromarray(grey.astype(np.float32)))


def test_tiny_pictures_and_sizes_are_refused():
    with pytest.raises(ValueError, match="only 1x1 pixels, expected at least 8x8"): resize_and_crop(Image.new("RGB", (1, 1)), 64)
    with pytest.raises(ValueError, match="size is 0"): resize_and_crop(flower(), 0)


# ---- folders

@pytest.fixture
def folder(tmp_path):
    "Two classes of four and three pictures."
    ds = garden(7)
    for i in range(7):
        place = tmp_path / "mine" / ("daisy" if i < 4 else "aster")
        place.mkdir(parents=True, exist_ok=True)
        save_image(ds.images[i], place / f"{i}.png")
    return tmp_path / "mine"


def test_subfolders_are_classes_in_stable_order(folder):
    ds, text = said(image_folder, folder, 32)
    assert ds.classes == ["aster", "daisy"] and ds.labels.tolist() == [0] * 3 + [1] * 4
    assert torch.equal(ds.images, garden(7).images[[4, 5, 6, 0, 1, 2, 3]])
    assert len(text) == 1 and "only 7 pictures" in text[0]
    assert not said(image_folder, folder, 32, small=7)[1]


def test_a_flat_folder_has_no_classes(folder):
    ds, _ = said(image_folder, folder / "daisy", 16)
    assert ds.classes == [] and ds.labels.tolist() == [0] * 4 and ds.images.shape == (4, 3, 16, 16)


def test_small_pictures_are_enlarged_with_a_word(folder):
    ds, text = said(image_folder, str(folder), 64)
    assert ds.images.shape[-1] == 64 and "7 of 7 are smaller than 64 pixels and were enlarged" in text[0]


@pytest.mark.filterwarnings("ignore:.*only")
def test_class_folders_may_be_links(tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    for place in (far / "rose", near / "daisy"):
        place.mkdir(parents=True)
        flower().save(place / "a.png")
    try: (near / "rose").symlink_to(far / "rose", target_is_directory=True)
    except OSError: pytest.skip("no links here")
    (far / "rose" / "again").symlink_to(near, target_is_directory=True)            # round and round
    found = image_folder(near, 16)
    assert found.classes == ["daisy", "rose"] and len(found) == 2


def test_unreadable_files_are_skipped_with_one_warning(folder):
    whole = (folder / "daisy/0.png").read_bytes()
    (folder / "daisy/cut.png").write_bytes(whole[:len(whole) // 2])
    flower(size=256).save(folder / "daisy/cut.jpg")
    jpeg = (folder / "daisy/cut.jpg").read_bytes()
    (folder / "daisy/cut.jpg").write_bytes(jpeg[:len(jpeg) // 2])
    (folder / "daisy/head.jpg").write_bytes(jpeg[:20])
    (folder / "daisy/notes.txt").write_text("water twice a week")
    (folder / "daisy/empty.png").touch()
    (folder / "daisy/.DS_Store").write_bytes(b"\0" * 20)            # hidden: not worth a word
    Image.new("RGB", (1, 1)).save(folder / "daisy/dot.png")
    save_image(garden(1).images[0], folder / "loose.png")
    ds, text = said(image_folder, folder, 32, small=0)
    assert len(ds) == 7 and len(text) == 1 and text[0].startswith("skipped 7 of 14 files")
    for name in ("daisy/cut.png", "daisy/cut.jpg", "daisy/dot.png (only 1x1 pixels", "daisy/empty.png", "and 2 more"):
        assert name in text[0]
    assert ".DS_Store" not in text[0] and "\n" not in text[0]


def test_folders_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="is empty, expected pictures"): image_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no picture in .* can be read: a.jpg \(not a picture\)"): image_folder(tmp_path / "texts")
    with pytest.raises(FileNotFoundError, match="there is no folder"): image_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"): image_folder(tmp_path / "texts/a.jpg")
    with pytest.raises(ValueError, match="size is 4"): image_folder(tmp_path / "texts", 4)


HUGE = """
import resource, sys
from zerodiff.data import read_picture
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: result = tuple(read_picture(path, 64)[0].shape)
    except ValueError as e: result = e
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024), result)
"""

@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in Linux's units")
def test_pictures_of_twenty_thousand_pixels_do_not_eat_the_memory(tmp_path):
    kinds = [("wide.png", (20000, 100), "(3, 64, 64)"), ("a.png", (20000, 20000), "more than 50,000,000 pixels"),
             ("b.png", (8000, 8000), "8000x8000 is more than 50,000,000 pixels"), ("a.jpg", (20000, 20000), "(3, 64, 64)")]
    for name, size, _ in kinds: Image.new("L" if name == "a.jpg" else "1", size, 1).save(tmp_path / name)
    out = subprocess.run([sys.executable, "-c", HUGE, *(tmp_path / k[0] for k in kinds)], capture_output=True, text=True, timeout=120)
    lines = out.stdout.splitlines()
    assert len(lines) == 4, out.stderr
    for line, (_, _, expected) in zip(lines, kinds):
        grown, result = line.split(" ", 1)
        assert result.startswith(expected) and int(grown) < 150        # MB; a whole copy would be 400 or more


def test_a_huge_progressive_jpeg_is_refused(tmp_path):
    "It would have to be unpacked whole, at any scale."
    Image.new("L", (7200, 7200)).save(tmp_path / "a.jpg", progressive=True)
    with pytest.raises(ValueError, match="7200x7200 is more than"): read_picture(tmp_path / "a.jpg", 32)


def test_reduced_decoding_looks_the_same(tmp_path):
    im = flower(7, size=1200)
    im.save(tmp_path / "a.jpg", quality=95)
    assert (read_picture(tmp_path / "a.jpg", 16)[0].float() - resize_and_crop(im, 16).float()).abs().mean() < 1


def test_pictures_of_the_originals_size_are_decoded_in_full(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    assert torch.equal(read_picture(tmp_path / "a.jpg", 64)[0], resize_and_crop(Image.open(tmp_path / "a.jpg"), 64))


# ---- grids and files

def test_grid_puts_each_picture_in_its_cell():
    x = torch.arange(5.).view(5, 1, 1, 1).expand(5, 1, 4, 6) / 5
    grid = make_grid(x, columns=2, padding=1)
    assert grid.shape == (1, 3 * 5 + 1, 2 * 7 + 1)
    assert [grid[0, r * 5 + 2, c * 7 + 3].item() for r in range(3) for c in range(2)] == pytest.approx([0, .2, .4, .6, .8, 1])
    assert (grid[0, 0] == 1).all() and (grid[0, :, -1] == 1).all()
    assert make_grid(x, 2, 0).shape == (1, 12, 12) and make_grid(x, columns=99).shape[-1] == 5 * 8 + 2
    assert make_grid(garden(3).images).dtype == torch.uint8
    with pytest.raises(ValueError, match="expected"): make_grid(x[0])


def test_show_images_draws_what_it_is_given():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    ds = garden(6)
    show_images(to_float(ds.images), columns=3)
    assert np.array_equal(plt.gca().get_images()[0].get_array(), make_grid(ds.images, 3).permute(1, 2, 0))
    show_images(ds.images[:5], columns=3, titles="abcde")
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == list("abcde") + [""]
    assert np.array_equal(axes[4].get_images()[0].get_array(), ds.images[4].permute(1, 2, 0))
    show_images(ds.images[0, :1])                      # one grey picture
    plt.close("all")


def test_saved_pictures_come_back(tmp_path):
    ds = garden(4)
    save_image(to_float(ds.images[2]), tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), ds.images[2].permute(1, 2, 0))
    save_image(ds.images, str(tmp_path / "b.png"))
    assert Image.open(tmp_path / "b.png").size == (70, 70)
    save_image(ds.images[:, :1], tmp_path / "c.jpg")
    assert Image.open(tmp_path / "c.jpg").mode == "L"
    with pytest.raises(ValueError, match="cannot write a.xyz"): save_image(ds.images, tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="expected a picture"): save_image(torch.zeros(4, 8, 8), tmp_path / "d.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "c.jpg"]


@pytest.fixture
def old(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/a.txt").write_text("old")
    return tmp_path / "here/a.txt"

def untouched(path): return os.listdir(path.parent) == [path.name] and path.read_text() == "old"


def test_replacing_replaces(old):
    old.chmod(0o640)
    os.link(old, old.parent.parent / "reader")         # whoever has the old file open keeps it whole
    with replacing(old) as tmp:
        assert tmp.parent == old.parent and tmp.suffix == ".txt" and tmp != old
        tmp.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and os.listdir(old.parent) == ["a.txt"] and old.stat().st_mode & 0o777 == 0o640
    assert (old.parent.parent / "reader").read_text() == "old"


def test_replacing_gives_the_usual_permissions(tmp_path):
    "safetensors writes files that only their owner can read."
    from safetensors.torch import save_file
    with replacing(tmp_path / "a.safetensors") as tmp: save_file({"x": torch.zeros(2)}, tmp)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError("no errno")])
def test_replacing_leaves_the_old_file_on_failure(old, error):
    with pytest.raises(type(error)):
        with replacing(old) as tmp:
            tmp.write_text("half")
            raise error
    assert untouched(old)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_replacing_puts_no_file_in_the_place_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device or a pipe"), D.replacing(tmp_path / "pipe"): pass
    assert not (tmp_path / "pipe").is_file() and len(list(tmp_path.iterdir())) == 1


def test_replacing_with_nothing_written(old):
    with pytest.raises(FileNotFoundError, match="a.txt"):
        with replacing(old): pass
    assert untouched(old)


def test_replacing_on_a_full_disk(old, monkeypatch):
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write \(No space left on device\): .*a.txt") as e:
        with replacing(old) as tmp: tmp.write_text("new")
    assert e.value.errno == errno.ENOSPC and untouched(old)


def test_replacing_understands_the_full_disk_of_safetensors(old):
    from safetensors import SafetensorError
    with pytest.raises(OSError, match="No space left") as e:
        with replacing(old) as tmp:
            tmp.write_text("half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert e.value.errno == errno.ENOSPC and untouched(old)


LIMITED = """
import resource, signal, sys, torch
from zerodiff.data import replacing
from safetensors.torch import save_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for write in (lambda tmp: tmp.write_bytes(bytes(100_000)), lambda tmp: save_file({"x": torch.zeros(100_000)}, tmp)):
    try:
        with replacing(sys.argv[1]) as tmp: write(tmp)
    except OSError as e: print(type(e).__name__, e.filename)
"""

@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_replacing_when_the_system_stops_in_the_middle_of_writing(old):
    out = subprocess.run([sys.executable, "-c", LIMITED, old], capture_output=True, text=True, timeout=120)
    assert out.stdout.splitlines() == [f"OSError {old}"] * 2, out.stderr
    assert untouched(old)


def test_replacing_in_a_read_only_folder(old, monkeypatch):
    if os.name == "posix" and os.geteuid():
        old.parent.chmod(0o500)
    else:                                              # the administrator may write anywhere
        def refuse(self, *a, **k): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        monkeypatch.setattr(Path, "touch", refuse)
    entered = False
    try:
        with pytest.raises(PermissionError, match="cannot write .*a.txt"):
            with replacing(old): entered = True
    finally: old.parent.chmod(0o700)
    assert not entered and untouched(old)              # refused before the work, not after


def test_replacing_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        with replacing(tmp_path / "no/a.txt"): pass
    with pytest.raises(IsADirectoryError, match="is a folder"):
        with replacing(tmp_path): pass


def test_need_names_the_extra(monkeypatch, tmp_path):
    assert need("math", "any") is __import__("math")
    with pytest.raises(ImportError, match=r"package no_such_thing: .* pip install '\.\[film\]'"): need("no_such_thing.io", "film")
    (tmp_path / "broken_thing.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_thing'"): need("broken_thing", "film")


# ---- the split

def test_held_is_the_same_for_ever():
    "Golden: every published figure rests on this cut."
    held = held_ids()
    assert len(held) == 841 and min(held) >= 1 and max(held) <= 8189
    assert sha256(",".join(map(str, sorted(held))).encode()).hexdigest() == GOLDEN_HELD
    assert held_ids(100) == {i for i in held if i <= 100}


GOLDEN_HELD = "436df80eb5633f6432aad18241ef9b840f8055ceba6a4ec53b58a4612ed04127"


def test_twins_stay_together():
    held = held_ids()
    members = [i for group in ALIKE for i in group]
    assert len(members) == len(set(members)) and all(1 <= i <= 8189 for i in members)
    assert all(group == tuple(sorted(group)) and len({i in held for i in group}) == 1 for group in ALIKE)
    assert (5252, 5257) in ALIKE and any(group[0] in held for group in ALIKE)


# ---- Oxford-102, a small one and the real one

N = 60

@pytest.fixture
def small(tmp_path, monkeypatch):
    "Sixty garden pictures in torchvision's layout."
    io = pytest.importorskip("scipy.io")
    from torchvision.datasets import Flowers102
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: self._images_folder.is_dir())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZERODIFF_DATA", raising=False)
    base = tmp_path / "data/flowers-102"
    (base / "jpg").mkdir(parents=True)
    ids = np.arange(1, N + 1)
    for i in ids: flower(i - 1, size=40).save(base / f"jpg/image_{i:05d}.jpg")
    io.savemat(base / "imagelabels.mat", {"labels": ids[None] % 102 + 1})
    io.savemat(base / "setid.mat", {"trnid": ids[None, 19::-1], "valid": ids[None, 20:30], "tstid": ids[None, 30:]})
    return tmp_path / "data"


def test_splits_are_disjoint_and_complete(small):
    part = {s: flowers102(small, s, 32) for s in D.SPLITS}
    ids = {s: part[s].ids.tolist() for s in part}
    assert ids["all"] == list(range(1, N + 1)) and sorted(ids["fit"] + ids["held"]) == ids["all"]
    assert set(ids["held"]) == held_ids(N) and ids["held"]
    assert ids["train"] == list(range(20, 0, -1)) and ids["val"] == list(range(21, 31)) and ids["test"] == list(range(31, 61))
    assert len(part["all"].classes) == 102 and part["all"].classes[59] == "pink-yellow dahlia?" and part["all"].classes[77] == "lotus"
    for p in part.values():
        assert torch.equal(p.labels, p.ids % 102)
        assert torch.equal(p.images, part["all"].images[p.ids - 1])
    im = Image.open(small / "flowers-102/jpg/image_00007.jpg")
    assert torch.equal(part["all"].images[6], resize_and_crop(im, 32))


def test_root_comes_from_the_environment_or_names_the_folder_itself(small, monkeypatch):
    direct = flowers102(small / "flowers-102", "all", 16)
    monkeypatch.setenv("ZERODIFF_DATA", str(small))
    assert torch.equal(flowers102(split="all", size=16).images, direct.images)


def counted(monkeypatch):
    calls, decode = [], D._decode
    monkeypatch.setattr(D, "_decode", lambda *a: calls.append(1) or decode(*a))
    return calls


def test_cache_is_used_and_never_trusted(small, monkeypatch):
    calls = counted(monkeypatch)
    first = flowers102(small, "all", 32)
    cache, jpg = small / "flowers-102/zerodiff-32px.safetensors", small / "flowers-102/jpg"
    assert cache.exists() and len(calls) == 1
    assert torch.equal(flowers102(small, "all", 32).images, first.images) and len(calls) == 1
    flowers102(small, "all", 16)
    assert len(calls) == 2                             # another size is another cache
    good = cache.read_bytes()
    flipped = bytearray(good); flipped[-1] ^= 1; flipped[-5000] ^= 1
    for n, broken in enumerate((good[:-100], b"", b"\x08\0\0\0\0\0\0\0{}      ", b"x" * 500, bytes(flipped)), 3):
        cache.write_bytes(broken)
        assert torch.equal(flowers102(small, "all", 32).images, first.images) and len(calls) == n
    assert torch.equal(flowers102(small, "all", 32).images, first.images) and len(calls) == 7      # made whole again
    flower(3, size=40, seed=5).save(jpg / "image_00002.jpg")            # the data change: the cache is stale
    after = flowers102(small, "all", 32)
    assert len(calls) == 8 and not torch.equal(after.images[1], first.images[1])
    assert torch.equal(after.images[2:], first.images[2:])


def test_cache_moves_or_is_left_out_where_it_cannot_be_written(small, monkeypatch):
    calls, real, allowed = counted(monkeypatch), D.replacing, ["home"]
    def picky(path):
        if not any(a in str(path) for a in allowed): raise PermissionError(errno.EACCES, "read-only", str(path))
        return real(path)
    monkeypatch.setattr(D, "replacing", picky)
    first = flowers102(small, "all", 32)
    assert not list(small.rglob("*.safetensors")) and len(list((small.parent / "home").rglob("*-32px.safetensors"))) == 1
    assert torch.equal(flowers102(small, "all", 32).images, first.images) and len(calls) == 1
    allowed.clear()
    for n in (2, 3): assert len(flowers102(small, "all", 16)) == N and len(calls) == n


def test_broken_or_missing_flowers_are_named(small):
    jpg = small / "flowers-102/jpg"
    whole = (jpg / "image_00005.jpg").read_bytes()
    (jpg / "image_00005.jpg").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"1 pictures .* image_00005.jpg \("): flowers102(small, "fit", 32)
    (jpg / "image_00009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 pictures are missing in .*: image_00009.jpg"): flowers102(small, "fit", 32)


def test_enlarging_small_copies_is_said(small):
    _, text = said(flowers102, small, "all", 64)
    assert len(text) == 1 and "40 pixels high" in text[0]
    assert not said(flowers102, small, "all", 32)[1]


def test_of_two_processes_one_downloads(tmp_path, monkeypatch):
    "The other waits, and finds it all there."
    import threading
    from torchvision.datasets import Flowers102
    there, calls, inside = [], [], []
    def check(self): return bool(there)
    def download(self):
        if check(self): return
        calls.append(1); inside.append(1)
        assert len(inside) == 1
        time.sleep(.3)
        there.append(1); inside.pop()
    monkeypatch.setattr(Flowers102, "_check_integrity", check)
    monkeypatch.setattr(Flowers102, "download", download)
    def init(self, root, split, download):
        if download: self.download()
        if not check(self): raise RuntimeError("Dataset not found")
    monkeypatch.setattr(Flowers102, "__init__", init)
    threads = [threading.Thread(target=D._open_flowers, args=(tmp_path / "new", True)) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(calls) == 1 and there


def test_flowers102_says_what_to_do_when_there_are_none(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"not in .*flowers-102 \(download=False\).*ZERODIFF_DATA"):
        flowers102(tmp_path, download=False)
    from torchvision.datasets import Flowers102
    def offline(self): raise OSError("no route to host")
    monkeypatch.setattr(Flowers102, "download", offline)
    with pytest.raises(FileNotFoundError, match="the download failed: no route to host.*imagelabels.mat"): flowers102(tmp_path)
    with pytest.raises(ValueError, match="got 'dev', expected one of fit, held, train, val, test, all"): flowers102(tmp_path, "dev")
    with pytest.raises(ValueError, match="size is 2"): flowers102(tmp_path, size=2)


@pytest.mark.skipif(not os.environ.get("ZERODIFF_DATA"), reason="needs Oxford-102: set ZERODIFF_DATA to the folder above flowers-102")
def test_the_real_flowers():
    part = {s: flowers102(split=s, download=False) for s in D.SPLITS}
    assert {s: len(p) for s, p in part.items()} == dict(fit=7348, held=841, train=1020, val=1020, test=6149, all=8189)
    assert torch.equal(part["all"].ids, torch.arange(1, 8190)) and set(part["held"].ids.tolist()) == held_ids()
    assert torch.bincount(part["held"].labels, minlength=102).min() >= 2
    assert torch.bincount(part["train"].labels).tolist() == [10] * 102
    assert part["all"].classes[part["all"].labels[0]] == "passion flower"
    x, _ = part["all"].batch(range(0, 8189, 100))
    check_range(x)
    for group in ALIKE:
        assert len({i in set(part["held"].ids.tolist()) for i in group}) == 1
    # no held picture has a twin in fit
    def prints(images, flip=False):
        z = torch.nn.functional.adaptive_avg_pool2d(to_float(images), 16)
        z = (z.flip(-1) if flip else z)
        return torch.nn.functional.normalize((z - z.mean((2, 3), keepdim=True)).flatten(1))
    held = prints(part["held"].images)
    for flip in (False, True):
        assert (held @ prints(part["fit"].images, flip).T).max() < .9


def test_no_pictures_is_a_data_set_too():
    "An empty list of indices used to become a tensor of floats, which cannot index."
    data = garden(3, 8)
    assert len(data.subset([])) == 0 and data.batch([])[0].shape == (0, 3, 8, 8)
