"""Drawn faces, so that tests and demonstrations have identities without anybody's photographs.

No download and no consent question: geometry and colours are a pure function of (seed, identity), while pose, light,
expression, clothes, background and camera are a pure function of (seed, identity, photograph).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError

Floats = NDArray[np.float64]
Traits = Mapping[str, float]

# Lengths are in half heads: the head's centre is (0, 0), its crown (0, -1), its chin about (0, 1); x right, y down.
# Ranges are uniform; a trait said to be "from 0" is absent where the draw is negative.
IDENTITY: dict[str, tuple[float, float]] = {
    "width": (0.64, 0.86), "chin": (0.94, 1.14), "jaw": (0.5, 1.15), "skin": (0, 1), "ruddy": (-1, 1), "ear": (0.10, 0.19),
    "hair": (0, 1), "hairline": (-0.8, -0.45), "recess": (2.5, 9), "parting": (-0.7, 0.7), "sweep": (-0.14, 0.14),
    "volume": (0.02, 0.24), "length": (-0.9, 1.2), "curl": (-0.04, 0.05), "eye_y": (-0.08, 0.08), "eye_x": (0.285, 0.385),
    "eye_width": (0.105, 0.165), "eye_height": (0.05, 0.085), "slant": (-0.25, 0.25), "iris": (0, 1),
    "iris_size": (0.85, 1.15), "brow_width": (0.14, 0.22), "brow_thick": (0.018, 0.075), "brow_angle": (-0.3, 0.25),
    "brow_arch": (0, 0.09), "brow_gap": (0.14, 0.22), "nose": (0.32, 0.48), "nose_width": (0.09, 0.18),
    "mouth_gap": (0.17, 0.25), "mouth_width": (0.18, 0.31), "lip_up": (0.02, 0.065), "lip_low": (0.035, 0.09),
    "lip": (0, 1), "beard": (-1.6, 1), "moustache": (-2, 1), "glasses": (-3, 1), "mole": (-1, 1), "mole_x": (-0.5, 0.5),
    "mole_y": (0.15, 0.75), "freckles": (-2, 1), "age": (-0.5, 1),
}  # fmt: skip
# Angles in radians, sizes as a fraction of the picture's side.
PHOTOGRAPH: dict[str, tuple[float, float]] = {
    "roll": (-0.35, 0.35), "yaw": (-0.4, 0.4), "pitch": (-0.22, 0.22), "scale": (0.2, 0.3), "shift_x": (-0.08, 0.08),
    "shift_y": (-0.06, 0.05), "smile": (-0.04, 0.09), "open": (-0.09, 0.09), "lids": (0.6, 1.15), "lift": (-0.03, 0.05),
    "gaze_x": (-0.35, 0.35), "gaze_y": (-0.2, 0.2), "light": (-1.3, 1.3), "height": (-0.9, 0.3), "strength": (0.1, 0.75),
    "gain": (0.7, 1.3), "gamma": (0.75, 1.35), "warmth": (-0.28, 0.28), "tint": (-0.12, 0.12), "blur": (0.2, 1.3),
    "noise": (0, 9), "quality": (35, 95), "black": (0, 45), "white": (0.8, 1.05),
}  # fmt: skip
SKIN = [(92, 58, 42), (134, 88, 62), (172, 122, 90), (205, 156, 122), (228, 184, 152), (242, 208, 186)]
HAIR = [
    (22, 18, 18),
    (48, 30, 22),
    (88, 54, 32),
    (140, 62, 30),
    (176, 128, 70),
    (222, 190, 126),
    (150, 148, 146),
]
IRIS = [(58, 34, 20), (110, 72, 34), (106, 112, 54), (66, 128, 92), (84, 138, 178), (120, 146, 168)]
SIDES, NOSE_DEPTH, INK = (-1.0, 1.0), 0.15, np.array([18.0, 14, 14])
LIPS = [(120, 60, 58), (176, 84, 84), (206, 104, 100), (176, 44, 62)]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """How many drawn people, how many photographs of each, how large, and from which seed."""

    identities: int = 40
    """People drawn, at least 1."""
    photographs: int = 24
    """Photographs of each person, at least 1."""
    side: int = 250
    """Height and width of a photograph in pixels, at least 64: below it the eyes are a pixel or two."""
    seed: int = 0
    """At least 0; another seed is other people."""

    def __post_init__(self) -> None:
        for name, least in (("identities", 1), ("photographs", 1), ("side", 64), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} {value} is below {least}; choose --{name} {least} or more")


def write_collection(folder: Path, config: SyntheticConfig) -> int:
    """Photographs written as `folder/person_0007/person_0007_0003.jpg`; one that exists already is kept, not counted."""
    written = 0
    for identity in range(config.identities):
        person = folder / f"person_{identity:04d}"
        person.mkdir(parents=True, exist_ok=True)
        for photograph in range(config.photographs):
            path = person / f"{person.name}_{photograph:04d}.jpg"
            if not path.exists():
                _write_jpeg(path, render(identity, photograph, side=config.side, seed=config.seed))
                written += 1
    return written


def render(identity: int, photograph: int, *, side: int = 250, seed: int = 0) -> NDArray[np.uint8]:
    """One photograph of a drawn person, RGB uint8 [side, side, 3]: the same bytes for the same arguments."""
    # Streams differ in the last number: SeedSequence pads with zeros, so [s, i] and [s, i, 0] would be one stream.
    person = np.random.default_rng([seed, identity, 0])
    camera = np.random.default_rng([seed, identity, photograph + 1])
    face, view = _draw(person, IDENTITY), _draw(camera, PHOTOGRAPH)
    sketch = Sketch(_background(camera, side), face["width"], view)
    skin, hair = (
        _palette(SKIN, face["skin"]) + face["ruddy"] * np.array([7.0, -2, -5]),
        _palette(HAIR, face["hair"]),
    )
    _body(sketch, face, skin, hair, camera.uniform(20, 235, 3))
    _head(sketch, face, skin)
    _nose(sketch, face, view, skin)
    for sign in SIDES:
        _eye(sketch, face, view, skin, hair, sign)
    _facial_hair(sketch, face, hair)
    _mouth(sketch, face, view)
    _marks(sketch, face, skin, person)
    _hair(sketch, face, hair, person)
    return _expose(sketch, view, camera)


def landmarks(identity: int, photograph: int, *, side: int = 250, seed: int = 0) -> Floats:
    """Where `render` put the eyes, nose tip and mouth corners: [5, 2] pixels (x, y), in MTCNN's order."""
    face = _draw(np.random.default_rng([seed, identity, 0]), IDENTITY)
    view = _draw(np.random.default_rng([seed, identity, photograph + 1]), PHOTOGRAPH)
    sketch = Sketch(np.zeros((side, side, 3), np.float32), face["width"], view)
    x, y, (tip, mouth) = face["eye_x"], face["eye_y"], _rows(face)
    corner = (face["mouth_width"], mouth - view["smile"])
    flat = sketch.place(np.array([(-x, y), (x, y), (-corner[0], corner[1]), corner]))
    return np.insert(flat, 2, sketch.place(np.array([(0.0, tip)]), NOSE_DEPTH), axis=0)


class Sketch:
    """A float32 RGB canvas in 0-255 that is painted in head coordinates, turned by the view's pose."""

    def __init__(self, canvas: NDArray[np.float32], width: float, view: Traits) -> None:
        self.canvas, self.side, self.width, self.view = canvas, canvas.shape[0], width, view
        self.scale = view["scale"] * self.side
        cos, sin = np.cos(view["roll"]), np.sin(view["roll"])
        self.turn = self.scale * np.array([[cos, sin], [-sin, cos]])
        self.centre = self.side * np.array([0.5 + view["shift_x"], 0.47 + view["shift_y"]])

    def place(self, points: Floats, depth: float = 0.0) -> Floats:
        """Pixels [n, 2] of head points [n, 2] on an ellipsoid, `depth` half heads before its surface."""
        z = 0.75 * np.sqrt(np.clip(1 - (points[:, 0] / self.width) ** 2 - points[:, 1] ** 2, 0, 1)) + depth
        x = points[:, 0] * np.cos(self.view["yaw"]) + z * np.sin(self.view["yaw"])
        y = points[:, 1] * np.cos(self.view["pitch"]) + z * np.sin(self.view["pitch"])
        return np.stack([x, y], axis=1) @ self.turn + self.centre

    def paint(
        self, shapes: Sequence[Floats], colour: Floats, *, alpha: float = 1.0, soft: float = 0.0, line: float = 0.0,
        depth: float = 0.0, clip: Floats | None = None,
    ) -> None:  # fmt: skip
        """Blend closed shapes (or open lines `line` half heads thick) inside their bounding box, edges `soft` half heads."""
        pixels = [self.place(shape, depth) for shape in shapes]
        margin = 2 + (2.5 * soft + line) * self.scale
        low = np.clip(np.min([p.min(0) for p in pixels], 0) - margin, 0, self.side).astype(int)
        high = np.clip(np.max([p.max(0) for p in pixels], 0) + margin, 0, self.side).astype(int)
        if (high <= low).any():
            return
        mask = self._mask(pixels, low, high, line)
        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft * self.scale)
        if clip is not None:
            mask = cv2.multiply(mask, self._mask([self.place(clip)], low, high, 0.0), scale=1 / 255)
        region = self.canvas[low[1] : high[1], low[0] : high[0]]
        region += (mask * np.float32(alpha / 255))[..., None] * (colour.astype(np.float32) - region)

    def _mask(
        self, pixels: Sequence[Floats], low: NDArray[np.int_], high: NDArray[np.int_], line: float
    ) -> NDArray[np.uint8]:
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        fixed = [np.round((p - low - 0.0) * 16).astype(np.int32) for p in pixels]
        if line:
            cv2.polylines(mask, fixed, False, 255, max(1, round(line * self.scale)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, 4)
        return mask


def _draw(rng: np.random.Generator, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: float(rng.uniform(low, high)) for name, (low, high) in ranges.items()}


def _palette(colours: Sequence[tuple[int, int, int]], at: float) -> Floats:
    table = np.array(colours, float)
    return np.array([np.interp(at * (len(table) - 1), np.arange(len(table)), table[:, c]) for c in range(3)])


def _ellipse(x: float, y: float, rx: float, ry: float) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 33)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _curve(x: Floats, y: Floats) -> Floats:
    return np.stack([x, y], axis=1)


def _rows(face: Traits) -> tuple[float, float]:
    """Heights of the nose tip and of the mouth."""
    return face["eye_y"] + face["nose"], face["eye_y"] + face["nose"] + face["mouth_gap"]


def _outline(face: Traits) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    sin, below = np.sin(angle), np.cos(angle) < 0
    x = face["width"] * np.sign(sin) * np.abs(sin) ** np.where(below, face["jaw"], 0.8)
    return np.stack([x, -np.cos(angle) * np.where(below, face["chin"], 1.0)], axis=1)


def _body(sketch: Sketch, face: Traits, skin: Floats, hair: Floats, shirt: Floats) -> None:
    neck, reach, u = face["width"] * 0.58, face["width"] * 1.04 + face["volume"], np.linspace(-1, 1, 40)
    if face["length"] > 0:
        ends = _curve(-u * reach, 0.3 + face["length"] - 0.15 * u**2 + face["curl"] * np.cos(14 * u))
        sketch.paint([np.concatenate([[(-reach, -0.3), (reach, -0.3)], ends])], hair * 0.7, soft=0.02)
    sketch.paint([np.array([(-neck, 0.4), (neck, 0.4), (neck * 1.1, 1.7), (-neck * 1.1, 1.7)])], skin * 0.86)
    top = _curve(2.1 * u, 1.32 + 0.7 * u**2 + 0.22 * np.exp(-6.6 * (u / neck) ** 2))
    sketch.paint([np.concatenate([top, [(2.2, 4.5), (-2.2, 4.5)]])], shirt)
    sketch.paint([top[10:-10]], shirt * 0.7, line=0.05, soft=0.015)


def _head(sketch: Sketch, face: Traits, skin: Floats) -> None:
    outline, w, ear_y = _outline(face), face["width"], face["eye_y"] + 0.16
    sketch.paint(
        [_ellipse(sign * w * 0.99, ear_y, face["ear"] * 0.6, face["ear"] * 1.3) for sign in SIDES],
        skin * 0.88,
    )
    ear = [_ellipse(sign * w * 1.03, ear_y, face["ear"] * 0.3, face["ear"] * 0.9) for sign in SIDES]
    sketch.paint(ear, skin * 0.66, soft=0.02)
    sketch.paint([outline * 0.97 + (0, 0.12)], skin * 0.4, alpha=0.5, soft=0.06)
    sketch.paint([outline], skin)
    cheeks = [_ellipse(sign * w * 0.56, face["eye_y"] + 0.38, 0.15, 0.12) for sign in SIDES]
    sketch.paint(cheeks, skin * (1.06, 0.85, 0.82), alpha=0.6, soft=0.08, clip=outline)
    lit = [_ellipse(0, -0.42, w * 0.4, 0.14), _ellipse(0, face["chin"] - 0.16, 0.1, 0.06)]
    sketch.paint(lit, skin * 1.14, alpha=0.6, soft=0.1, clip=outline)
    if face["age"] > 0:
        tip, mouth = _rows(face)
        fold = np.array([(0.7, tip - 0.04), (1.0, (tip + mouth) / 2), (1.08, mouth)]) * (
            face["mouth_width"] + 0.03,
            1,
        )
        sketch.paint([fold, fold * (-1, 1)], skin * 0.6, alpha=face["age"], line=0.02, soft=0.012)


def _eye(sketch: Sketch, face: Traits, view: Traits, skin: Floats, hair: Floats, sign: float) -> None:
    u, x, y = np.linspace(-1, 1, 17), sign * face["eye_x"], face["eye_y"]
    rx, ry, tilt = (
        face["eye_width"],
        face["eye_height"] * view["lids"],
        -sign * face["slant"] * face["eye_width"] * u,
    )
    upper = _curve(x + rx * u, y + tilt - ry * (1 - u**2) ** 0.7)
    almond = np.concatenate([upper, _curve(x + rx * u, y + tilt + 0.75 * ry * (1 - u**2))[::-1]])
    sketch.paint([_ellipse(x, y - 0.02, rx * 1.25, 0.1)], skin * 0.62, alpha=0.55, soft=0.035)
    sketch.paint([almond], np.array([238.0, 234, 228]))
    radius = 0.062 * face["iris_size"]
    at = (x + view["gaze_x"] * rx * 0.7, y + view["gaze_y"] * ry - 0.004)
    for size, colour in (
        (1.0, 0.55 * _palette(IRIS, face["iris"])),
        (0.82, _palette(IRIS, face["iris"])),
        (0.42, INK),
    ):
        sketch.paint([_ellipse(*at, radius * size, radius * size)], colour, clip=almond)
    sketch.paint([_ellipse(at[0] - 0.02, at[1] - 0.022, 0.014, 0.014)], np.full(3, 250.0), clip=almond)
    sketch.paint([upper], INK + 0.15 * skin, line=0.026)
    sketch.paint([upper - (0, 0.045)], skin * 0.6, alpha=0.7, line=0.014, soft=0.006)
    middle, rise = (
        y - face["brow_gap"] - view["lift"],
        -sign * face["brow_angle"] * 0.16 * u - face["brow_arch"] * (1 - u**2),
    )
    thick = face["brow_thick"] * (1 - 0.7 * np.clip(sign * u, 0, 1)) * (1 - u**8) ** 0.5
    along = x + sign * 0.02 + face["brow_width"] * u
    brow = np.concatenate([_curve(along, middle + rise - thick), _curve(along, middle + rise + thick)[::-1]])
    sketch.paint([brow], hair * 0.6 + skin * 0.08, alpha=0.92, soft=0.008)


def _nose(sketch: Sketch, face: Traits, view: Traits, skin: Floats) -> None:
    (tip, _), w, top = _rows(face), face["nose_width"], face["eye_y"] - 0.05
    away = np.sign(view["light"]) or 1.0
    side = np.array([(-0.045 * away, top), (-0.06 * away, tip - 0.14), (-w * away, tip), (-0.02 * away, tip)])
    sketch.paint([side], skin * 0.68, alpha=0.55, soft=0.02, depth=NOSE_DEPTH / 2)
    sketch.paint(
        [_ellipse(0, tip + 0.035, w * 0.95, 0.035)], skin * 0.6, alpha=0.7, soft=0.02, depth=NOSE_DEPTH / 2
    )
    sketch.paint([_ellipse(0, tip, w * 0.62, 0.065)], skin * 1.04, soft=0.015, depth=NOSE_DEPTH)
    ridge = np.array([(-0.025, top), (0.025, top), (0.035, tip), (-0.035, tip)])
    sketch.paint([ridge], skin * 1.16, alpha=0.6, soft=0.018, depth=NOSE_DEPTH)
    sketch.paint(
        [_ellipse(s * w * 0.85, tip + 0.005, w * 0.3, 0.05) for s in SIDES],
        skin * 0.93,
        soft=0.01,
        depth=0.06,
    )
    sketch.paint(
        [_ellipse(s * w * 0.5, tip + 0.04, w * 0.24, 0.02) for s in SIDES], skin * 0.3, soft=0.006, depth=0.1
    )


def _mouth(sketch: Sketch, face: Traits, view: Traits) -> None:
    u, w, (_, y) = np.linspace(-1, 1, 25), face["mouth_width"], _rows(face)
    bow, gap = 1 - u**2, max(0.0, view["open"])
    seam = y - view["smile"] * u**2
    top = seam - face["lip_up"] * bow**0.8 * (1 - 0.45 * np.exp(-((u / 0.16) ** 2)))
    jaw = seam + gap * bow
    colour = _palette(LIPS, face["lip"])
    inside = np.concatenate([_curve(w * u, seam), _curve(w * u, jaw)[::-1]])
    if gap > 0.02:
        sketch.paint([inside], np.array([62.0, 18, 20]))
        sketch.paint([_ellipse(0, y - 0.01, w * 0.8, gap * 0.5)], np.array([236.0, 230, 218]), clip=inside)
    sketch.paint([np.concatenate([_curve(w * u, top), _curve(w * u, seam)[::-1]])], colour * 0.86, soft=0.006)
    sketch.paint(
        [np.concatenate([_curve(w * u, jaw), _curve(w * u, jaw + face["lip_low"] * bow)[::-1]])],
        colour,
        soft=0.006,
    )
    sketch.paint(
        [_ellipse(0, y + gap + 0.4 * face["lip_low"], w * 0.4, 0.01)], colour * 1.3, alpha=0.5, soft=0.015
    )
    sketch.paint([_curve(w * 1.04 * u, seam)], colour * 0.35, line=0.016, soft=0.004)


def _facial_hair(sketch: Sketch, face: Traits, hair: Floats) -> None:
    (tip, mouth), w, u = _rows(face), face["mouth_width"] * 1.1, np.linspace(-1, 1, 25)
    if face["beard"] > 0:
        edge = _curve(face["width"] * 1.1 * u, mouth + 0.1 - (mouth - face["eye_y"] - 0.1) * np.abs(u) ** 3)
        beard = np.concatenate([edge, [(1, 1.3), (-1, 1.3)]])
        sketch.paint([beard], hair * 0.75, alpha=0.35 + 0.6 * face["beard"], soft=0.035, clip=_outline(face))
    if face["moustache"] > 0:
        lip = _curve(w * u, mouth - face["lip_up"] - 0.01 + 0.05 * u**2)
        above = _curve(w * u, tip + 0.08 + 0.1 * u**2)
        sketch.paint(
            [np.concatenate([lip, above[::-1]])], hair * 0.7, alpha=0.5 + 0.5 * face["moustache"], soft=0.012
        )


def _marks(sketch: Sketch, face: Traits, skin: Floats, person: np.random.Generator) -> None:
    """Freckles, mole and glasses."""
    spots = person.uniform((-0.4, 0.08), (0.4, 0.42), (14, 2)) + (0, face["eye_y"])
    if face["freckles"] > 0:
        sketch.paint(
            [_ellipse(x, y, 0.016, 0.016) for x, y in spots], skin * 0.6, alpha=face["freckles"], soft=0.004
        )
    if face["mole"] > 0:
        sketch.paint([_ellipse(face["mole_x"], face["mole_y"], 0.024, 0.024)], skin * 0.25)
    if face["glasses"] > 0:
        x, y, r = face["eye_x"], face["eye_y"] + 0.02, face["eye_x"] * 0.76
        lenses = [_ellipse(sign * x, y, r, r * (0.6 + 0.4 * face["glasses"])) for sign in SIDES]
        arms = [np.array([(sign * (x + r), y), (sign * face["width"], y - 0.02)]) for sign in SIDES]
        sketch.paint([*lenses, *arms, np.array([(r - x, y), (x - r, y)])], INK, line=0.026, depth=0.04)


def _hair(sketch: Sketch, face: Traits, hair: Floats, person: np.random.Generator) -> None:
    u, angle = np.linspace(-1, 1, 40), np.linspace(-1.85, 1.85, 60)
    grow, end = 1 + face["volume"] * (0.6 + 0.4 * np.cos(angle)), 0.28
    bumps = face["curl"] * np.sin(11 * angle) if face["curl"] > 0 else 0.0
    crown = _curve(
        face["width"] * np.sign(angle) * np.abs(np.sin(angle)) ** 0.8 * 1.03 * grow,
        -np.cos(angle) * grow - bumps,
    )
    notch = 0.1 * np.exp(-(((u - face["parting"]) / 0.2) ** 2))
    line = (
        face["hairline"] - notch + face["sweep"] * u + (end - face["hairline"]) * np.abs(u) ** face["recess"]
    )
    front = np.concatenate([crown, _curve(face["width"] * 0.97 * u, line)[::-1]])
    sketch.paint([front + (0, 0.04)], hair * 0.3, alpha=0.35, soft=0.03, clip=_outline(face))
    sketch.paint([front], hair, soft=0.008)
    for tone, root in zip((1.35, 0.6), person.uniform(-0.9, 0.9, (2, 9)), strict=True):
        bend = np.linspace(0, 1, 8)[:, None]
        x = face["parting"] * 0.5 * (1 - bend) + root * face["width"] * bend**0.6 * 1.15
        y = -1 - face["volume"] + bend**2 * (1 + face["hairline"] + 0.5 * root**2)
        strands = [_curve(x[:, i], y[:, i]) for i in range(9)]
        sketch.paint(strands, hair * tone, alpha=0.5, line=0.03, soft=0.014, clip=front)


def _background(camera: np.random.Generator, side: int) -> NDArray[np.float32]:
    """A blurred room: a base colour, and coarse patches of a random strength and size."""
    cells = int(camera.integers(3, 9))
    patches = camera.uniform(20, 235, 3) + camera.uniform(10, 70) * camera.standard_normal((cells, cells, 3))
    return cv2.resize(
        np.clip(patches, 0, 255).astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR
    )


def _expose(sketch: Sketch, view: Traits, camera: np.random.Generator) -> NDArray[np.uint8]:
    """Light the scene from one side, then take the photograph: colour cast, contrast, blur, noise and JPEG."""
    picture = sketch.canvas * cv2.resize(_shade(sketch, view), (sketch.side, sketch.side))[..., None]
    cast = 1 + view["warmth"] * np.array([1, 0, -1]) + view["tint"] * np.array([-0.5, 1, -0.5])
    picture = cv2.GaussianBlur(picture, (0, 0), view["blur"] * sketch.side / 250)
    tone = np.clip(picture * (view["gain"] * cast / 255).astype(np.float32), 0, 1) ** np.float32(
        view["gamma"]
    )
    grain = view["noise"] * camera.standard_normal((sketch.side, sketch.side, 1), dtype=np.float32)
    sharp = np.clip(
        tone * np.float32(255 * view["white"] - view["black"]) + view["black"] + grain, 0, 255
    ).astype(np.uint8)
    packed = cv2.imencode(".jpg", sharp, [cv2.IMWRITE_JPEG_QUALITY, int(view["quality"])])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def _shade(sketch: Sketch, view: Traits) -> NDArray[np.float32]:
    """Brightness [32, 32] of a Lambertian ellipsoid in the head's place, about 1 where it faces the light."""
    axis = (np.arange(32) + 0.5) * sketch.side / 32
    pixels = np.stack(np.meshgrid(axis, axis), axis=-1) - sketch.centre
    flat = pixels @ np.linalg.inv(sketch.turn) / (sketch.width, 1.1)
    z = np.sqrt(np.clip(1.1 - (flat**2).sum(-1), 0.05, 1))
    normal = np.concatenate([flat, z[..., None]], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = np.array([np.sin(view["light"]), view["height"], np.cos(view["light"])])
    lambert = np.clip(normal @ (light / np.linalg.norm(light)), 0, 1)
    return (1 - view["strength"] + view["strength"] * 1.25 * lambert).astype(np.float32)


def _write_jpeg(path: Path, photograph: NDArray[np.uint8]) -> None:
    packed = cv2.imencode(".jpg", photograph[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(packed.tobytes())
    os.replace(partial, path)
