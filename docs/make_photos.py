"""Makes a small folder of photos to try `configs/folder.py` with.

    python docs/make_photos.py photos

Two hundred JPEG files of four classes, 40 to train and 10 to test of each. They are not two hundred
photographs: two classes are crops of the two that come with scikit-learn (flower, palace), the
other two its handwritten digits, pasted onto such crops (three, eight). Crops overlap, those to
test with those to train too, so accuracies on them say nothing of real photos.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_image

_CROP = {"flower": "flower.jpg", "palace": "china.jpg"}
_DIGIT = {"three": 3, "eight": 8}
_SPLITS = {"train": 40, "test": 10}


def make_photos(folder: pathlib.Path) -> int:
    """Writes `folder/{train,test}/<class>/NNN.jpg`; returns how many."""
    generator = np.random.default_rng(0)
    digits = load_digits()
    photographs = {name: Image.fromarray(load_sample_image(name)) for name in _CROP.values()}
    count = 0
    for split, number in _SPLITS.items():
        for label in (*_CROP, *_DIGIT):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for index in range(number):
                source = _CROP.get(label) or generator.choice(list(photographs))
                photo = _crop(photographs[source], generator)
                if label in _DIGIT:
                    of_class = digits.images[digits.target == _DIGIT[label]]
                    # Test images show other digits than training images.
                    half = len(of_class) // 2
                    row = generator.integers(half) + (half if split == "test" else 0)
                    _write(photo, of_class[row], generator)
                photo.save(folder / split / label / f"{index:03d}.jpg", quality=90)
                count += 1
    return count


def _crop(photograph: Image.Image, generator: np.random.Generator) -> Image.Image:
    height = int(generator.integers(160, 321))
    width = height * 4 // 3
    left = int(generator.integers(photograph.width - width + 1))
    top = int(generator.integers(photograph.height - height + 1))
    photo = photograph.crop((left, top, left + width, top + height)).resize((160, 120))
    return ImageEnhance.Brightness(photo).enhance(float(generator.uniform(0.7, 1.3)))


def _write(photo: Image.Image, digit: np.ndarray, generator: np.random.Generator) -> None:
    side = int(generator.integers(70, 111))
    ink = Image.fromarray((digit * (255 / digit.max())).astype(np.uint8)).resize((side, side))
    colour = tuple(int(c) for c in generator.integers(160, 256, 3))
    where = (
        int(generator.integers(photo.width - side + 1)),
        int(generator.integers(photo.height - side + 1)),
    )
    photo.paste(Image.new("RGB", (side, side), colour), where, ink)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/make_photos.py FOLDER")
    print(f"{make_photos(pathlib.Path(sys.argv[1]))} photos in {sys.argv[1]}")
