"""A seeded renderer of small scenes: balls, boxes, cones, trees and a person on textured ground.

Each pixel is a ray, so mask and depth are exact. The picture is rendered at twice the resolution and averaged.
World axes: x right, y up, z forwards, in metres; the camera looks along z from (0, CAMERA_M, 0). With focal length
one picture height, pixel (u, v) in [0, 1] sees the ray (u − ½, HORIZON − v, 1).
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

SEGMENTATION_NAMES = ("sky", "ground", "ball", "box", "cone", "tree", "person")
"""Label of name i is i + 1; 0 is unlabelled, as in ADE20K, and does not occur."""
CAMERA_M = 1.35
HORIZON = 0.40
FAR_M = 60.0
"""Depth written for the sky, in metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """Appearance of a class: colours of sky and ground, light, and kinds of objects."""

    zenith: tuple[float, float, float]
    haze: tuple[float, float, float]
    ground: tuple[float, float, float]
    sun: tuple[float, float, float]
    light: float
    kinds: tuple[str, ...]


THEMES: dict[str, Theme] = {
    "beach": Theme(
        zenith=(0.16, 0.60, 0.92), haze=(0.72, 0.94, 0.98), ground=(0.95, 0.84, 0.58), sun=(1.0, 0.98, 0.85),
        light=1.0, kinds=("ball", "ball", "cone"),
    ),
    "desert": Theme(
        zenith=(0.93, 0.58, 0.28), haze=(1.0, 0.86, 0.58), ground=(0.83, 0.46, 0.22), sun=(1.0, 0.96, 0.75),
        light=1.0, kinds=("box", "cone", "cone"),
    ),
    "dusk": Theme(
        zenith=(0.33, 0.16, 0.48), haze=(0.98, 0.50, 0.46), ground=(0.36, 0.27, 0.42), sun=(1.0, 0.72, 0.40),
        light=0.8, kinds=("box", "tree", "ball"),
    ),
    "meadow": Theme(
        zenith=(0.24, 0.48, 0.90), haze=(0.76, 0.89, 1.0), ground=(0.34, 0.66, 0.22), sun=(1.0, 0.97, 0.80),
        light=1.0, kinds=("tree", "ball", "tree"),
    ),
    "night": Theme(
        zenith=(0.02, 0.03, 0.12), haze=(0.11, 0.16, 0.36), ground=(0.09, 0.17, 0.20), sun=(0.95, 0.96, 0.90),
        light=0.62, kinds=("box", "cone", "ball"),
    ),
    "snow": Theme(
        zenith=(0.55, 0.68, 0.82), haze=(0.90, 0.94, 0.98), ground=(0.95, 0.96, 1.0), sun=(1.0, 1.0, 0.96),
        light=0.95, kinds=("tree", "tree", "box"),
    ),
}  # fmt: skip
CLASS_NAMES = tuple(sorted(THEMES))
_PAINTS = np.array([[0.92, 0.16, 0.14], [0.98, 0.76, 0.08], [0.13, 0.36, 0.88], [0.93, 0.38, 0.68], [0.12, 0.68, 0.62]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One rendered scene of S×S pixels."""

    image: npt.NDArray[np.uint8]
    """[S, S, 3]."""
    segmentation: npt.NDArray[np.uint8]
    """[S, S]; labels 1 … len(SEGMENTATION_NAMES)."""
    depth: npt.NDArray[np.float32]
    """[S, S]; distance along the viewing axis in metres, FAR_M for the sky."""
    keypoints: npt.NDArray[np.float32]
    """[18, 2]; (x, y) in pixels, -1 if the joint is outside the picture. A hidden joint keeps its position."""
    label: int
    """Index into CLASS_NAMES."""


class _Canvas:
    """Colour, label and depth buffers over a grid of rays; objects are drawn with a z-test."""

    def __init__(self, size: int, light: Array, theme: Theme) -> None:
        centres = ((np.arange(size) + 0.5) / size).astype(np.float32)  # twice as fast as float64
        self.u, self.v = np.meshgrid(centres, centres)
        self.dx, self.dy = self.u - 0.5, HORIZON - self.v
        self.light, self.theme = [float(part) for part in light], theme
        self.color = np.zeros((size, size, 3), dtype=np.float32)
        self.label = np.ones((size, size), dtype=np.uint8)
        self.depth = np.full((size, size), FAR_M, dtype=np.float32)

    def window(self, xs: tuple[float, float], heights: tuple[float, float], zs: tuple[float, float]) -> "_Canvas":
        """Return the part, sharing memory, that sees a box of x, height above the ground and z, in metres."""
        size, part = len(self.u), copy.copy(self)
        us = [x / z + 0.5 for x in xs for z in zs]
        vs = [HORIZON - (height - CAMERA_M) / z for height in heights for z in zs]
        columns, rows = (
            slice(*(np.clip([min(at) * size - 1, max(at) * size + 2], 0, size).astype(int))) for at in (us, vs)
        )
        for name in ("u", "v", "dx", "dy", "color", "label", "depth"):
            setattr(part, name, getattr(self, name)[rows, columns])
        return part

    def put(
        self, hit: npt.NDArray[np.bool_], depth: Array, normal: tuple[Any, Any, Any], paint: Array, name: str
    ) -> None:
        """Draw a surface where `hit` and nearer than the buffer, shaded by Lambert's law with ambient light."""
        seen = hit & (depth < self.depth) & (depth > 0.2)
        lambert = sum(n * part for n, part in zip(normal, self.light, strict=True))
        shade = self.theme.light * (0.50 + 0.55 * np.clip(lambert, 0, 1))
        tint = 0.55 + 0.45 * np.array(self.theme.sun)
        self.color[seen] = (np.broadcast_to(shade, hit.shape)[..., None] * (paint * tint))[seen]
        self.depth[seen] = np.broadcast_to(depth, hit.shape)[seen]
        self.label[seen] = SEGMENTATION_NAMES.index(name) + 1


def _draw_sky_and_ground(canvas: _Canvas, rng: np.random.Generator, shadows: list[tuple[float, float, float]]) -> None:
    theme, size = canvas.theme, len(canvas.u)
    up = np.clip(canvas.v / HORIZON, 0, 1)[..., None]
    canvas.color[:] = np.array(theme.zenith) * (1 - up) + np.array(theme.haze) * up
    # The sun (at night the moon) is in the direction of the light.
    sun_u, sun_v = 0.5 + 0.42 * canvas.light[0], 0.06 + 0.16 * (1 - canvas.light[1])
    glow = np.hypot(canvas.u - sun_u, canvas.v - sun_v)[..., None]
    disc = np.clip((0.065 - glow) * size, 0, 1) + 0.35 * np.exp(-((glow / 0.12) ** 2))
    canvas.color[:] = canvas.color * (1 - np.clip(disc, 0, 1)) + np.array(theme.sun) * np.clip(disc, 0, 1)
    below = canvas.v > HORIZON
    depth = np.full_like(canvas.v, FAR_M)
    depth[below] = np.minimum(CAMERA_M / (canvas.v[below] - HORIZON), FAR_M)
    x = canvas.dx * depth
    phase = rng.uniform(0, 6.28, 2).tolist()
    ripple = np.sin(1.7 * x + phase[0]) * np.sin(1.3 * depth + phase[1]) / (1 + 0.08 * depth)
    ground = np.array(theme.ground) * (1 + 0.05 * ripple[..., None])
    shadow = np.zeros_like(depth)
    for at_x, at_z, radius in shadows:
        # A cast shadow: an ellipse on the ground, stretched and shifted away from the light.
        reach = 0.9 * radius
        cx, cz = at_x - canvas.light[0] * reach, at_z + 0.3 * reach
        shadow = np.maximum(
            shadow, np.clip(1.5 - np.hypot((x - cx) / (1.5 * radius), (depth - cz) / (1.2 * radius)) * 1.3, 0, 1)
        )
    ground = ground * (1 - 0.42 * shadow[..., None])
    haze = np.clip(depth / FAR_M, 0, 1)[..., None] ** 0.8
    canvas.color[below] = (ground * (0.4 + 0.6 * theme.light) * (1 - haze) + np.array(theme.haze) * haze)[below]
    canvas.depth[below] = depth[below]
    canvas.label[below] = 2


def _draw_ball(canvas: _Canvas, x: float, z: float, radius: float, paint: Array) -> None:
    canvas = canvas.window((x - radius, x + radius), (0, 2 * radius), (z - radius, z + radius))
    oy = radius - CAMERA_M
    a = canvas.dx**2 + canvas.dy**2 + 1
    b = canvas.dx * x + canvas.dy * oy + z
    root = b * b - a * (x * x + oy * oy + z * z - radius * radius)
    depth = (b - np.sqrt(np.maximum(root, 0))) / a
    normal = ((canvas.dx * depth - x) / radius, (canvas.dy * depth - oy) / radius, (depth - z) / radius)
    half = np.hypot(*(np.asarray(n) - part for n, part in zip(normal[:2], canvas.light[:2], strict=True)))
    shine = np.clip(1 - half / 0.35, 0, 1) * (normal[2] < 0)
    canvas.put(root > 0, depth, normal, paint + 0.5 * shine[..., None] * (1 - paint), "ball")


def _draw_box(canvas: _Canvas, x: float, z: float, half: float, height: float, paint: Array, name: str = "box") -> None:
    """Draw an upright box; the slab method finds the entry point of each ray."""
    canvas = canvas.window((x - half, x + half), (0, height), (z - half, z + half))
    tiny = 1e-9
    rays = (canvas.dx + tiny, canvas.dy + tiny, np.ones_like(canvas.dx))
    bounds = ((x - half, x + half), (-CAMERA_M, height - CAMERA_M), (z - half, z + half))
    enter = np.stack([np.minimum(low / ray, high / ray) for ray, (low, high) in zip(rays, bounds, strict=True)])
    leave = np.stack([np.maximum(low / ray, high / ray) for ray, (low, high) in zip(rays, bounds, strict=True)])
    depth, axis = enter.max(0), enter.argmax(0)
    normal = tuple(np.where(axis == i, -np.sign(ray), 0.0) for i, ray in enumerate(rays))
    canvas.put(depth < leave.min(0), depth, (normal[0], normal[1], normal[2]), paint, name)


def _draw_cone(
    canvas: _Canvas, x: float, z: float, radius: float, foot: float, top: float, paint: Array, name: str
) -> None:
    """Draw a cone with its circle at height `foot` and its tip at height `top`, in metres."""
    canvas = canvas.window((x - radius, x + radius), (foot, top), (z - radius, z + radius))
    slope2 = (radius / (top - foot)) ** 2
    tip = top - CAMERA_M
    a = canvas.dx**2 + 1 - slope2 * canvas.dy**2
    b = -(canvas.dx * x + z) + slope2 * canvas.dy * tip
    c = x * x + z * z - slope2 * tip * tip
    root = b * b - a * c
    depth = (-b - np.sqrt(np.maximum(root, 0))) / a
    y = canvas.dy * depth
    hit = (root > 0) & (y <= tip) & (y >= foot - CAMERA_M)
    nx, nz = canvas.dx * depth - x, depth - z
    ny = slope2 * (tip - y)
    length = np.sqrt(nx**2 + ny**2 + nz**2) + 1e-9
    canvas.put(hit, depth, (nx / length, ny / length, nz / length), paint, name)


def _pose(rng: np.random.Generator, x: float, height: float) -> Array:
    """Joints [18, 2] as (x, y) in metres of a person who faces the camera (their right is on the left)."""
    joints = np.zeros((18, 2))
    unit = height / 1.75
    lean = rng.normal(0, 0.03)

    def walk(start: int, path: tuple[int, int], lengths: tuple[float, float], angles: tuple[float, float]) -> None:
        at = joints[start]
        for joint, length, angle in zip(path, lengths, angles, strict=True):
            at = at + length * unit * np.array([np.sin(angle), -np.cos(angle)])
            joints[joint] = at

    spread = rng.uniform(0.05, 0.42, 2)
    drop = max(float(np.cos(spread).max()) * 0.90 * unit, 0.7 * unit)
    hip = np.array([x, drop])
    joints[1] = hip + np.array([lean, 0.56 * unit])
    joints[2], joints[5] = (joints[1] + np.array([side * 0.21 * unit, -0.02 * unit]) for side in (-1, 1))
    joints[8], joints[11] = (hip + np.array([side * 0.12 * unit, 0.0]) for side in (-1, 1))
    for side, shoulder, arm, thigh, leg, opening in (
        (-1, 2, (3, 4), 8, (9, 10), spread[0]),
        (1, 5, (6, 7), 11, (12, 13), spread[1]),
    ):
        swing = rng.uniform(0.15, 2.6)
        walk(shoulder, arm, (0.29, 0.27), (side * swing, side * (swing + rng.uniform(-0.4, 1.0))))
        walk(thigh, leg, (0.46, 0.44), (side * opening, side * opening * rng.uniform(0.3, 1.0)))
    joints[0] = joints[1] + np.array([lean, 0.20 * unit])
    for joint, (ox, oy) in zip(
        (14, 15, 16, 17), ((-0.04, 0.04), (0.04, 0.04), (-0.10, 0.02), (0.10, 0.02)), strict=True
    ):
        joints[joint] = joints[0] + np.array([ox, oy]) * unit
    return joints


def _draw_person(canvas: _Canvas, joints: Array, z: float, shirt: Array, trousers: Array) -> None:
    """Draw limbs as capsules in the plane of the body, rounded by shading."""
    skin = np.array([0.93, 0.72, 0.56])

    def capsule(a: Array, b: Array, radius: float, paint: Array) -> None:
        xs, ys = ((min(a[axis], b[axis]) - radius, max(a[axis], b[axis]) + radius) for axis in (0, 1))
        part = canvas.window(xs, ys, (z, z))
        wx, wy = part.dx * z, part.dy * z + CAMERA_M
        a, b = a.astype(np.float32), b.astype(np.float32)
        ab = b - a
        t = np.clip(((wx - a[0]) * ab[0] + (wy - a[1]) * ab[1]) / (ab @ ab + 1e-9), 0, 1)
        ox, oy = (wx - a[0] - t * ab[0]) / radius, (wy - a[1] - t * ab[1]) / radius
        inside = 1 - ox**2 - oy**2
        bulge = np.sqrt(np.maximum(inside, 0))
        part.put(inside > 0, z - radius * bulge, (ox, oy, -bulge), paint, "person")

    unit = float(np.linalg.norm(joints[1] - (joints[8] + joints[11]) / 2)) / 0.56
    for a, b, radius, paint in (
        (8, 9, 0.085, trousers), (9, 10, 0.07, trousers), (11, 12, 0.085, trousers), (12, 13, 0.07, trousers),
        (2, 3, 0.07, shirt), (5, 6, 0.07, shirt), (3, 4, 0.06, skin), (6, 7, 0.06, skin),
    ):  # fmt: skip
        capsule(joints[a], joints[b], radius * unit, paint)
    middle = (joints[8] + joints[11]) / 2
    capsule(middle + (joints[1] - middle) * 0.12, middle + (joints[1] - middle) * 0.80, 0.20 * unit, shirt)
    capsule(joints[1], joints[0], 0.06 * unit, skin)
    capsule(joints[0] + np.array([0, 0.01]), joints[0] + np.array([0, 0.05 * unit]), 0.125 * unit, skin)


@dataclass(frozen=True, slots=True)
class _Object:
    kind: str
    x: float
    z: float
    size: float
    paint: Array


def _compose(rng: np.random.Generator, theme: Theme) -> tuple[list[_Object], float, float]:
    """Choose two or three objects and the person's position, all in separate parts of the picture."""
    person_z = float(rng.uniform(3.4, 4.6))
    slots = rng.permutation(np.array([-0.36, -0.12, 0.12, 0.36])) + rng.uniform(-0.05, 0.05, 4)
    person_x = float(slots[0]) * person_z
    objects = []
    for slot in slots[1 : 1 + int(rng.integers(2, 4))]:
        kind = str(rng.choice(theme.kinds))
        z = float(rng.uniform(5.5, 9.0) if kind == "tree" else rng.uniform(3.2, 6.0))
        size = float(
            {"ball": rng.uniform(0.42, 0.68), "tree": rng.uniform(0.9, 1.25)}.get(kind, rng.uniform(0.38, 0.60))
        )
        objects.append(_Object(kind, float(slot) * z, z, size, _PAINTS[rng.integers(len(_PAINTS))]))
    return objects, person_x, person_z


def _draw_object(canvas: _Canvas, item: _Object) -> None:
    x, z, size, paint = item.x, item.z, item.size, item.paint
    if item.kind == "ball":
        _draw_ball(canvas, x, z, size, paint)
    elif item.kind == "box":
        _draw_box(canvas, x, z, size, 1.7 * size, paint)
    elif item.kind == "cone":
        _draw_cone(canvas, x, z, size, 0.0, 2.8 * size, paint, "cone")
    else:
        leaves = np.array([0.10, 0.42, 0.20])
        _draw_box(canvas, x, z, 0.14 * size, 0.6 * size, np.array([0.42, 0.27, 0.15]), "tree")
        _draw_cone(canvas, x, z, 0.85 * size, 0.5 * size, 1.9 * size, leaves, "tree")
        _draw_cone(canvas, x, z, 0.65 * size, 1.2 * size, 2.7 * size, leaves * 1.15, "tree")


def _render(canvas: _Canvas, rng: np.random.Generator) -> Array:
    """Draw a scene, and return the person's joints as (u, v) in [0, 1]."""
    objects, person_x, person_z = _compose(rng, canvas.theme)
    shadows = [(item.x, item.z, item.size * (0.6 if item.kind == "tree" else 0.9)) for item in objects]
    _draw_sky_and_ground(canvas, rng, [*shadows, (person_x, person_z, 0.36)])
    for item in objects:
        _draw_object(canvas, item)
    joints = _pose(rng, person_x, float(rng.uniform(1.65, 1.85)))
    shirt, trousers = _PAINTS[rng.permutation(len(_PAINTS))[:2]]
    _draw_person(canvas, joints, person_z, shirt, trousers * 0.6)
    return np.stack([joints[:, 0] / person_z + 0.5, HORIZON - (joints[:, 1] - CAMERA_M) / person_z], axis=1)


def render_scene(seed: int, index: int, size: int = 64, *, split: int = 0) -> Scene:
    """Render one scene. The result is a pure function of the arguments; its composition does not depend on the size.

    Args:
        seed: Seed of the dataset.
        index: Number of the scene.
        size: Side in pixels.
        split: Number of the split; splits do not share scenes.
    """

    def draw(side: int) -> tuple[_Canvas, Array, int]:
        rng = np.random.default_rng((seed, split, index))
        label = int(rng.integers(len(CLASS_NAMES)))
        azimuth, elevation = rng.uniform(-0.9, 0.9), rng.uniform(0.5, 0.9)
        light = np.array([np.sin(azimuth), elevation, -0.4], dtype=np.float32)
        canvas = _Canvas(side, light / np.linalg.norm(light), THEMES[CLASS_NAMES[label]])
        return canvas, _render(canvas, rng), label

    fine, joints, label = draw(2 * size)
    exact, _, _ = draw(size)  # mask and depth are sampled at pixel centres, which the fine grid does not have
    averaged = np.clip(fine.color, 0, 1).reshape(size, 2, size, 2, 3).mean((1, 3))
    inside = ((joints >= 0) & (joints < 1)).all(1, keepdims=True)
    return Scene(
        image=np.rint(averaged * 255).astype(np.uint8),
        segmentation=exact.label,
        depth=exact.depth.astype(np.float32),
        keypoints=np.where(inside, joints * size, -1).astype(np.float32),
        label=label,
    )
