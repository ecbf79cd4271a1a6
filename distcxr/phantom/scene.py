"""The parts of a synthetic X-ray: soft brushes, noise, the body's measures, and the fields that findings change.

Lengths are in half image sides: u runs from -1 (left of the picture, the patient's right) to 1, v from -1 (top) to 1.
`out` is the distance from the midline towards the given side, so both lungs share one description.
Only +, -, *, / and sqrt touch the pixels: these are rounded alike by every processor, where exp and sin are
not, so a seed gives the same pixels on another machine. Fields are float32; Python floats leave them so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32 [H, W]
SIDES = (-1, 1)  # left and right of the picture


def ramp(x: Field) -> Field:
    """A soft step: 0 below -0.5, 1 above 0.5."""
    t = x + 0.5
    np.clip(t, 0, 1, out=t)
    slope = 3 - 2 * t
    slope *= t  # in place: this is the brush used most, and fresh arrays cost more than the sums
    slope *= t
    return slope


def bump(q: Field) -> Field:
    """A soft blob of a squared, scaled distance: 1 at q = 0, 0 from q = 1 on."""
    t = 1 - q
    np.maximum(t, 0, out=t)
    t *= t
    return t


def line(distance: Field, half_width: float) -> Field:
    """A soft stroke where `distance` (signed or not) is less than `half_width`."""
    return bump((distance / half_width) ** 2)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """Noise with features of 1/cells of the X-ray, about -1 to 1, [size, size]."""
    knots = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    at = (np.arange(size, dtype=np.float32) + rng.uniform()) * (cells / size)
    low = at.astype(np.intp)
    t = at - low
    t = (t * t * (3 - 2 * t)).astype(np.float32)
    rows = knots[low] * (1 - t)[:, None] + knots[low + 1] * t[:, None]
    return np.asarray(rows[:, low] * (1 - t) + rows[:, low + 1] * t, dtype=np.float32)


def looked_up_noise(rng: np.random.Generator, x: Field, y: Field, cells: tuple[int, int]) -> Field:
    """Noise at coordinates x and y (each 0 to 1) of a plane with that many cells, about -1 to 1, [H, W]."""
    width = cells[1] + 2
    knots = rng.uniform(-1, 1, (cells[0] + 2) * width).astype(np.float32)
    x, y = np.clip(x, 0, 1) * cells[0], np.clip(y, 0, 1) * cells[1]
    i, j = x.astype(np.intp), y.astype(np.intp)
    s, t = x - i.astype(np.float32), y - j.astype(np.float32)
    corner = i * width + j
    top = knots.take(corner) * (1 - t) + knots.take(corner + 1) * t
    low = knots.take(corner + width) * (1 - t) + knots.take(corner + (width + 1)) * t
    noise: Field = top * (1 - s) + low * s
    return noise


@dataclass
class Anatomy:
    """The measures of one chest, in half image sides; index 0 of a pair is the left of the picture."""

    half_width: float
    apex: float
    base: list[float]  # height of each diaphragm's dome
    dome: float  # curvature of the diaphragm
    medial: float
    heart_half_width: float
    heart_half_height: float
    vessels: float  # strength of the lung markings

    @staticmethod
    def sample(rng: np.random.Generator, view: str) -> "Anatomy":
        """A chest without findings; an AP X-ray shows the heart wider and the breath shallower."""
        ap = view == "AP"
        base = rng.uniform(0.26, 0.56) - (0.08 if ap else 0.0)
        return Anatomy(
            half_width=rng.uniform(0.66, 0.78),
            apex=rng.uniform(-0.84, -0.74),
            base=[base, base + rng.uniform(0.0, 0.08)],
            dome=rng.uniform(0.5, 1.3),
            medial=rng.uniform(0.10, 0.15),
            heart_half_width=rng.uniform(0.23, 0.32) * (1.06 if ap else 1.0),
            heart_half_height=rng.uniform(0.26, 0.32),
            vessels=rng.uniform(0.6, 1.1),
        )


class Scene:
    """Fields [H, W] of one X-ray; findings change `air`, `vessels` and `added`, with random numbers of `rng`.

    air: 0 to 1, how much of the ray is aerated lung. vessels: 0 to 1, where lung markings may show.
    added: density laid over the rest (0.46 turns lung into soft tissue). lung: the lungs before any finding.
    """

    def __init__(self, anatomy: Anatomy, chest_rng: np.random.Generator, rng: np.random.Generator, size: int) -> None:
        self.anatomy, self.rng, self.size = anatomy, rng, size
        self.pixel = 2.0 / size
        self.u, self.v = _posed_grid(chest_rng, size)
        self.wobble = smooth_noise(chest_rng, size, 7) * 0.012
        self.heart = self._heart()
        self.lungs = {side: self._lung(side) * (1 - 0.9 * self.heart) for side in SIDES}
        self.lung = self.lungs[-1] + self.lungs[1]
        self.air = self.lung.copy()
        self.vessels = np.full_like(self.air, anatomy.vessels)
        self.added = np.zeros_like(self.air)

    def out(self, side: int) -> Field:
        return self.u * side

    def edge(self, distance: Field, softness: float = 0.02) -> Field:
        """0 to 1 across the line distance = 0, never sharper than the pixels can show."""
        return ramp(distance / max(softness, 1.5 * self.pixel))

    def stroke(self, distance: Field, half_width: float) -> Field:
        """A line of that half width about distance = 0, never thinner than the pixels can show."""
        return line(distance, max(half_width, 1.2 * self.pixel))

    def wall(self, side: int) -> Field:
        """Distance inwards from the chest wall; negative outside the lung."""
        shape = self.anatomy
        base = shape.base[side > 0] + 0.12
        t = np.clip((base - self.v) / (base - shape.apex), 0, 1)
        # 1 - t^3 under the root: straight flanks, a round apex.
        return shape.half_width * np.sqrt(1 - t * t * t) - self.out(side) + self.wobble

    def above_diaphragm(self, side: int) -> Field:
        """Height above that side's diaphragm; negative in the abdomen."""
        shape = self.anatomy
        off = self.out(side) - 0.5 * shape.half_width
        return shape.base[side > 0] + shape.dome * off * off + self.wobble - self.v

    def point_in_lung(self, margin: float, side: int | None = None) -> tuple[float, float]:
        """A random position in aerated lung, `margin` away from the wall and the diaphragm, as (u, v)."""
        for _ in range(200):
            s = int(self.rng.choice(SIDES)) if side is None else side
            u, v = s * self.rng.uniform(0.18, 0.75), self.rng.uniform(-0.75, 0.45)
            row, column = self._nearest_pixel(u, v)
            near = max(1, round(margin / self.pixel))
            rows, columns = (slice(max(0, at - near), at + near + 1, near) for at in (row, column))
            patch = self.air[rows, columns]
            if patch.min() > 0.6:
                return u, v
        return 0.4 * (side or 1), -0.2  # a lung too small for the margin: its middle

    def _nearest_pixel(self, u: float, v: float) -> tuple[int, int]:
        flat = int(((self.u - u) ** 2 + (self.v - v) ** 2).argmin())
        return flat // self.size, flat % self.size

    def _lung(self, side: int) -> Field:
        inner = self.out(side) - self.anatomy.medial + self.wobble
        return self.edge(self.wall(side)) * self.edge(inner, 0.05) * self.edge(self.above_diaphragm(side))

    def _heart(self) -> Field:
        """The heart's shadow: its left border (right of the picture) slopes out to a low apex, its right bulges."""
        shape, dv = self.anatomy, self.v - (sum(self.anatomy.base) / 2 - 0.08)
        above, low = dv / (1.9 * shape.heart_half_height), dv / 0.3
        q = np.where(dv < 0, above, low)
        swell = np.maximum(1 - q * q, 0)
        left = (1.45 * shape.heart_half_width - shape.medial) * swell * (0.35 + 0.65 * swell)
        rise = dv + 0.12
        right = 0.37 * shape.heart_half_width * bump((rise / (1.6 * shape.heart_half_height)) ** 2)
        inner, wide = shape.medial, 2 * self.wobble
        return self.edge(inner + left + wide - self.u, 0.03) * self.edge(self.u + inner + right - wide, 0.03)


def _posed_grid(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Body coordinates u, v of every pixel after a random turn, zoom and shift of the patient."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    zoom, stretch = rng.uniform(0.92, 1.16), rng.uniform(0.94, 1.06)
    x, y = axis[None, :] - rng.normal(0, 0.075), axis[:, None] - rng.normal(0, 0.08)
    half = rng.normal(0, 0.04)  # tangent of half the turn, about 4.6 degrees: gives sine and cosine by fractions
    c, s = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    return (c * x + s * y) * (zoom * stretch), (c * y - s * x) * (zoom / stretch)
