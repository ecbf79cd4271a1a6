"""Draws the fourteen findings of NIH ChestX-ray14 into a synthetic X-ray.

`RESHAPERS` change the measures of the chest before it is drawn, `PAINTERS` change its fields afterwards. Sizes,
positions and strengths vary; texture and outline distinguish the findings.
Lengths are in half image sides, as in `scene`.
"""

from collections.abc import Callable

import numpy as np

from distcxr.phantom.scene import SIDES, Anatomy, Scene, bump, ramp, smooth_noise


def _any_side(scene: Scene) -> int:
    return int(scene.rng.choice(SIDES))


def _widen_heart(anatomy: Anatomy, rng: np.random.Generator) -> None:
    anatomy.heart_half_width *= rng.uniform(1.4, 1.75)
    anatomy.heart_half_height *= rng.uniform(1.0, 1.15)


def _inflate(anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Emphysema: flat, low diaphragms, a narrow heart, few vessels."""
    low = rng.uniform(0.0, 0.04)
    anatomy.base = [b + low for b in anatomy.base]
    anatomy.dome *= rng.uniform(0.2, 0.5)
    anatomy.heart_half_width *= rng.uniform(0.85, 0.95)
    anatomy.vessels *= rng.uniform(0.35, 0.6)


def _collapse_base(anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Atelectasis: lost volume lifts the diaphragm of one side a little."""
    anatomy.base[int(rng.integers(2))] -= rng.uniform(0.0, 0.06)


def _plates(scene: Scene) -> None:
    """Atelectasis: dense straight bands, nearly level, low in a lung."""
    rng = scene.rng
    side = _any_side(scene)
    for _ in range(int(rng.integers(2, 4))):
        u0, v0 = scene.point_in_lung(0.10, side)
        tilt, length = rng.normal(0, 0.2), rng.uniform(0.16, 0.28)
        du = scene.u - u0
        dv = scene.v - v0 - tilt * du
        extent = ramp((length - np.abs(du)) / 0.06)
        scene.added += rng.uniform(0.25, 0.38) * scene.stroke(dv, 0.035) * extent * scene.lung


def _consolidate(scene: Scene) -> None:
    """Consolidation: a lobe filled up to a straight fissure, dark branching airways inside."""
    rng, side = scene.rng, _any_side(scene)
    v1 = rng.uniform(-0.5, 0.15)
    tilt = rng.uniform(-0.35, 0.35)
    depth = rng.uniform(0.28, 0.45)
    below = scene.v - v1 - tilt * (scene.out(side) - 0.4)
    lobe = scene.edge(below) * ramp((depth - below) / 0.12) * scene.lungs[side]
    airways = np.zeros_like(lobe)
    for _ in range(4):
        start, slope = rng.uniform(-0.1, 0.4), rng.uniform(-0.8, 0.8)
        course = below - start - slope * (scene.out(side) - 0.3) + 4 * scene.wobble
        airways = np.maximum(airways, scene.stroke(course, 0.016))
    scene.vessels *= 1 - lobe
    scene.added += rng.uniform(0.28, 0.38) * lobe * (1 - 0.7 * airways)


def _flood_alveoli(scene: Scene) -> None:
    """Edema: a haze around both hila and short level lines at the edge of both lungs (Kerley B)."""
    rng = scene.rng
    haze, lines = rng.uniform(0.08, 0.18), rng.uniform(0.16, 0.26)
    period, phase = rng.uniform(0.055, 0.075), rng.uniform()
    for side in SIDES:
        du, dv = (scene.out(side) - 0.25) / 0.4, (scene.v + 0.05) / 0.5
        wing = bump(du * du + dv * dv) * (1 + 0.5 * smooth_noise(rng, scene.size, 10))
        saw = (scene.v + 0.1 * scene.out(side) + 2 * scene.wobble) / period + phase
        comb = scene.stroke(np.abs(saw - np.floor(saw) - 0.5) * period, 0.018)
        wall = scene.wall(side)
        rim = ramp((0.22 - wall) / 0.05) * ramp((scene.v + 0.35) / 0.15)
        scene.added += (haze * wing + lines * comb * rim) * scene.lungs[side]


def _pool_fluid(scene: Scene) -> None:
    """Effusion: fluid that fills the angle between diaphragm and wall, its surface climbing the wall."""
    rng = scene.rng
    for side in SIDES if rng.uniform() < 0.25 else (_any_side(scene),):
        level = rng.uniform(0.0, 0.20)
        climb = np.maximum(1 - scene.wall(side) / 0.32, 0)
        surface = scene.above_diaphragm(side) - level - 0.30 * climb * climb
        fluid = scene.edge(-surface, 0.03) * scene.lungs[side]
        scene.air *= 1 - 0.93 * fluid
        scene.vessels *= 1 - fluid


def _blow_bullae(scene: Scene) -> None:
    """Emphysema: black, empty bubbles with hairline walls."""
    rng = scene.rng
    for _ in range(int(rng.integers(4, 8))):
        radius = rng.uniform(0.06, 0.12)
        u0, v0 = scene.point_in_lung(radius)
        du, dv = scene.u - u0, scene.v - v0
        far = np.sqrt(du * du + dv * dv * 1.2)
        inside = scene.edge(radius - far)
        scene.vessels *= 1 - inside
        scene.added += scene.lung * (0.14 * scene.stroke(far - radius, 0.014) - 0.07 * inside)


def _weave_net(scene: Scene) -> None:
    """Fibrosis: a coarse net of scars at the wall and the bases."""
    rng = scene.rng
    net = np.zeros_like(scene.u)
    for cells in (18, 22):
        net = np.maximum(net, ramp((0.16 - np.abs(smooth_noise(rng, scene.size, cells))) / 0.16))
    strength = rng.uniform(0.14, 0.24)
    sides = SIDES if rng.uniform() < 0.4 else (_any_side(scene),)
    for side in sides:
        rim = ramp((0.30 - np.minimum(scene.wall(side), scene.above_diaphragm(side))) / 0.12)
        scene.added += strength * net * rim * scene.lungs[side]


def _slide_stomach_up(scene: Scene) -> None:
    """Hernia: a round pouch behind the heart just above the diaphragm, gas over a level of fluid."""
    rng, base = scene.rng, max(scene.anatomy.base)
    radius = rng.uniform(0.12, 0.18)
    du = scene.u - rng.normal(0.04, 0.09)
    dv = scene.v - (base - rng.uniform(0.0, 0.24))
    far = np.sqrt(du * du * 0.85 + dv * dv)
    gas = scene.edge(radius - far) * scene.edge(-dv - radius * rng.uniform(-0.4, 0.3))
    scene.added += 0.10 * scene.edge(radius - far) + 0.12 * scene.stroke(far - radius, 0.022)
    scene.added -= rng.uniform(0.26, 0.38) * gas


def _scatter_patches(scene: Scene) -> None:
    """Infiltration: a group of small soft patches."""
    rng = scene.rng
    u0, v0 = scene.point_in_lung(0.1)
    for _ in range(int(rng.integers(9, 15))):
        du, dv = scene.u - (u0 + rng.normal(0, 0.12)), scene.v - (v0 + rng.normal(0, 0.14))
        radius = rng.uniform(0.04, 0.065)
        patch = bump((du * du + dv * dv) / (radius * radius))
        scene.added += rng.uniform(0.22, 0.34) * patch * scene.lung


def _grow_mass(scene: Scene) -> None:
    """Mass: one big, dense, lobed ball with a sharp outline."""
    radius = scene.rng.uniform(0.11, 0.17)
    _add_ball(scene, radius, scene.rng.uniform(0.32, 0.44), lobed=True)


def _add_nodules(scene: Scene) -> None:
    """Nodule: one to three small, dense, sharp balls."""
    for _ in range(int(scene.rng.integers(1, 4))):
        _add_ball(scene, scene.rng.uniform(0.045, 0.062), scene.rng.uniform(0.38, 0.50), lobed=False)


def _add_ball(scene: Scene, radius: float, density: float, *, lobed: bool) -> None:
    u0, v0 = scene.point_in_lung(0.6 * radius)
    du, dv = scene.u - u0, scene.v - v0
    far = np.sqrt(du * du + dv * dv) + (3 * scene.wobble if lobed else 0)
    scene.added += density * scene.edge(radius - far, 0.02) * scene.lung


def _thicken_pleura(scene: Scene) -> None:
    """Pleural thickening: a lumpy rind along the chest wall."""
    rng = scene.rng
    for side in SIDES if rng.uniform() < 0.4 else (_any_side(scene),):
        depth = rng.uniform(0.06, 0.10) * (1 + 0.7 * smooth_noise(rng, scene.size, 9))
        v0, reach = rng.uniform(-0.5, 0.1), rng.uniform(0.35, 0.6)
        extent = ramp((reach - np.abs(scene.v - v0)) / 0.15)
        rind = scene.edge(depth * extent - scene.wall(side)) * extent * scene.lungs[side]
        scene.added += rng.uniform(0.32, 0.42) * rind


def _cloud_lobe(scene: Scene) -> None:
    """Pneumonia: one large cloud with a ragged outline, dense in the middle."""
    rng = scene.rng
    u0, v0 = scene.point_in_lung(0.15)
    du, dv = scene.u - u0, scene.v - v0
    ragged = smooth_noise(rng, scene.size, 14) + 0.7 * smooth_noise(rng, scene.size, 26)
    reach = rng.uniform(0.24, 0.34)
    depth = 1 - np.sqrt(du * du + dv * dv) / reach + 0.45 * ragged
    scene.added += rng.uniform(0.24, 0.34) * ramp(depth - 0.4) * scene.lung


def _let_air_in(scene: Scene) -> None:
    """Pneumothorax: the lung's edge stands off the wall as a thin white line; beyond it no markings."""
    rng, side = scene.rng, _any_side(scene)
    gap = rng.uniform(0.14, 0.28)
    slope = rng.uniform(0.05, 0.25)
    inwards = scene.wall(side) - gap + slope * (scene.v + 0.2) + scene.wobble
    beyond = scene.edge(-inwards) * scene.lungs[side]
    scene.vessels *= 1 - beyond
    scene.added -= rng.uniform(0.05, 0.11) * beyond
    scene.added += rng.uniform(0.20, 0.28) * scene.stroke(inwards, 0.016) * scene.lungs[side]


RESHAPERS: dict[str, Callable[[Anatomy, np.random.Generator], None]] = {
    "Atelectasis": _collapse_base,
    "Cardiomegaly": _widen_heart,
    "Emphysema": _inflate,
}
PAINTERS: dict[str, Callable[[Scene], None]] = {
    "Pneumothorax": _let_air_in,
    "Effusion": _pool_fluid,
    "Atelectasis": _plates,
    "Consolidation": _consolidate,
    "Edema": _flood_alveoli,
    "Emphysema": _blow_bullae,
    "Fibrosis": _weave_net,
    "Hernia": _slide_stomach_up,
    "Infiltration": _scatter_patches,
    "Mass": _grow_mass,
    "Nodule": _add_nodules,
    "Pleural_Thickening": _thicken_pleura,
    "Pneumonia": _cloud_lobe,
}
