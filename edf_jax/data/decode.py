"""One image: from encoded bytes to uint8 pixels of the wanted size."""

from __future__ import annotations

import dataclasses
import io

import numpy as np

_LONGEST = 100  # a longer image, of so many times its height or width, is cut before resizing


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How images are decoded and resized.

    Attributes:
        resolution: height and width; 0 keeps the image's own.
        resize: 'squash' (both sides to `resolution`, as the published ImageNet subsets) or 'crop'
          (the short side, then the centre).
        antialias: average over what a pixel covers when shrinking; False samples bilinearly, as
          older code did.
        channels: 1 or 3.
        upright: turn a photograph as its EXIF data says.
    """

    resolution: int
    resize: str
    antialias: bool
    channels: int
    upright: bool


class Unreadable(Exception):
    """Why an image cannot be used."""


def decode(content: bytes | np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, str]:
    """Pixels of an image.

    Args:
        content: an encoded image, or uint8 pixels `[H, W, C]`.
        settings: what it is to become.

    Returns:
        uint8 `[H, W, C]`, and a remark where not all of the image was used, else ''.

    Raises:
        Unreadable: with the reason.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[-1] not in (1, 3):
            raise Unreadable(f"{content.dtype} {list(content.shape)}, not uint8 [H, W, 1 or 3]")
        image = Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content)
        return _finish(image, settings), ""
    if not content:
        raise Unreadable("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            remark = ""
            # A multi-picture JPEG from a phone holds a preview beside the photograph.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                remark = f"first of {getattr(image, 'n_frames', 0)} frames"
            if settings.upright:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
            return _finish(_plain(image), settings), remark
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("no image of a known kind") from None
    # Damaged files make Pillow's plugins raise nearly anything.
    except Exception as error:
        raise Unreadable(" ".join(str(error).split())[:120] or type(error).__name__) from None


def _plain(image):
    """The image in mode 'L' or 'RGB', eight bits a channel, on white where transparent."""
    from PIL import Image

    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
    elif image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        # Of PNG and PGM, whole numbers have 16 bits; of other kinds of file, it is not said.
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            if not 0 <= pixels.min(initial=0) <= pixels.max(initial=0) < 2**16:
                raise Unreadable("whole-number pixels of unknown range")
            pixels <<= 8 * (pixels.max(initial=0) < 2**8)
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise Unreadable("floating-point pixels of unknown range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _finish(image, settings: ImageSettings) -> np.ndarray:
    mode = "L" if settings.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if settings.resolution:
        image = _resize(image, settings)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _resize(image, settings: ImageSettings):
    side = settings.resolution
    width, height = image.size
    if settings.resize == "squash":
        return _sample(image, side, side, settings.antialias)
    if max(width, height) > _LONGEST * min(width, height):
        # Resizing all of a 60,000 x 1 image would take gigabytes for what is then cut off.
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        square = image.crop((left, top, left + short, top + short))
        return _sample(square, side, side, settings.antialias)
    if width <= height:
        wide, high = side, max(side, int(side * height / width))
    else:
        wide, high = max(side, int(side * width / height)), side
    image = _sample(image, wide, high, settings.antialias)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _sample(image, width: int, height: int, antialias: bool):
    from PIL import Image

    if image.size == (width, height):
        return image
    bilinear = Image.Resampling.BILINEAR
    if antialias:
        return image.resize((width, height), bilinear)
    return image.transform(
        (width, height), Image.Transform.EXTENT, (0, 0, *image.size), resample=bilinear
    )
