"""Draws one synthetic chest X-ray: anatomy, findings where they belong, then exposure and noise.

An X-ray is a sum of densities along the ray: soft tissue, less the air of the lungs, plus bone, vessels and what
a finding adds. Every X-ray has its own pose, build, breath, rib phase, exposure and shading, so that findings
show in shapes more than in the grey level at a fixed position. Lengths are in half image sides, as in `scene`.
"""

from collections.abc import Sequence

import numpy as np

from distcxr.phantom.findings import PAINTERS, RESHAPERS
from distcxr.phantom.scene import SIDES, Anatomy, Field, Scene, bump, looked_up_noise, ramp, smooth_noise

LUNG_AIR = 0.46  # density that aerated lung lacks compared with soft tissue


def draw_xray(findings: Sequence[str], rng: np.random.Generator, size: int, sex: str, view: str) -> np.ndarray:
    """Draw one X-ray, uint8 [size, size], 0 black (air) to 255 white (bone).

    `findings` by their NIH names, painted in a fixed order whatever the order given; `sex` M or F; `view` PA or
    AP. All randomness comes from `rng`; findings have random numbers of their own, so the same `rng` without
    the finding gives the same chest, exposure and noise.
    """
    chest, illness, camera = rng.spawn(3)
    anatomy = Anatomy.sample(chest, view)
    for name, reshape in RESHAPERS.items():
        if name in findings:
            reshape(anatomy, illness)
    scene = Scene(anatomy, chest, illness, size)
    for name, paint in PAINTERS.items():
        if name in findings:
            paint(scene)
    density = _soft_tissue(scene, chest, sex) - LUNG_AIR * scene.air + scene.added
    density += _skeleton(scene, chest) + _vessels(scene, chest)
    _add_devices(scene, chest, density, view)
    return _expose(density * _body(scene, chest), camera, size, view)


def _body(scene: Scene, rng: np.random.Generator) -> Field:
    """1 inside the patient, 0 in the air around: neck, sloping shoulders, trunk."""
    out = np.abs(scene.u)
    trunk = scene.anatomy.half_width + rng.uniform(0.08, 0.25)
    shoulder = ramp((rng.uniform(-0.35, 0.0) - scene.v) / 0.5)
    side = trunk + 0.45 * shoulder + 3 * scene.wobble - out
    neck = rng.uniform(0.2, 0.28)
    slope = rng.uniform(0.2, 0.4)
    top = scene.v - (-1.0 + slope * (out - neck)) + 2 * ramp((neck - out) / 0.08)
    return scene.edge(side, 0.04) * scene.edge(top, 0.05)


def _soft_tissue(scene: Scene, rng: np.random.Generator, sex: str) -> Field:
    """Flesh around the lungs: chest wall, mediastinum, belly with its gas, breasts."""
    u, v, shape = scene.u, scene.v, scene.anatomy
    flesh = np.full_like(u, rng.uniform(0.52, 0.64))
    flesh += 0.13 * bump((u / 0.30) ** 2) + 0.07 * scene.heart * ramp((v + 0.3) / 0.4)
    knob_u, knob_v = u - rng.uniform(0.09, 0.14), v + rng.uniform(0.30, 0.42)
    flesh += 0.12 * bump((knob_u * knob_u + knob_v * knob_v) / 0.012)  # aortic knob
    windpipe = bump(((u - rng.normal(0, 0.015)) / 0.05) ** 2)
    flesh -= 0.13 * windpipe * ramp((-0.35 - v) / 0.1)
    for side in SIDES:
        below = ramp(-scene.above_diaphragm(side) / 0.3) * (scene.out(side) > 0)
        flesh += 0.14 * below
    for _ in range(int(rng.integers(0, 4))):  # stomach and bowel gas, below the diaphragm
        gu, gv = u - rng.uniform(-0.1, 0.6), v - (shape.base[1] + rng.uniform(0.15, 0.5))
        flesh -= rng.uniform(0.08, 0.25) * bump(gu * gu / 0.02 + gv * gv / 0.008)
    if sex == "F":
        breast, low = rng.uniform(0.02, 0.12), shape.base[0] + rng.uniform(-0.25, 0.12)
        width = rng.uniform(0.28, 0.36)
        for side in SIDES:
            du, dv = (scene.out(side) - 0.48) / width, (v - low + 0.22) / 0.3
            flesh += breast * scene.edge((1 - du * du - dv * dv) * 0.15, 0.06)
    return flesh


def _skeleton(scene: Scene, rng: np.random.Generator) -> Field:
    """Spine, ribs (the back ones brighter), clavicles and shoulder blades."""
    u, v, shape = scene.u, scene.v, scene.anatomy
    spine = bump((u / 0.085) ** 2)
    discs = _stripes(v / 0.125 + rng.uniform(), 0.7, 0.25)
    bone = rng.uniform(0.05, 0.12) * spine * (0.6 + 0.4 * discs)
    spacing, phase = rng.uniform(0.135, 0.165), rng.uniform()
    sag, back, front = rng.uniform(0.5, 0.8), rng.uniform(0.05, 0.11), rng.uniform(0.01, 0.05)
    for side in SIDES:
        out = scene.out(side)
        cage = ramp((scene.wall(side) + 0.03) / 0.04) * ramp((out - 0.06) / 0.06)
        cage = cage * (1 - 0.7 * ramp(-scene.above_diaphragm(side) / 0.2))
        off = out - 0.25
        behind = (v - sag * off * off * (1 - 0.3 * v)) / spacing + phase
        before = (v - 0.55 * (out - 1) ** 2) / (spacing * 1.15) + phase * 1.7
        ribs = back * _stripes(behind, 0.42, 0.22)
        ribs += front * _stripes(before, 0.38, 0.3) * ramp((out - 0.35) / 0.3)
        bone += cage * ribs
        drop, tilt = shape.apex + rng.uniform(0.08, 0.20), rng.uniform(0.12, 0.35)
        bend = out - 0.3
        course = v - drop + tilt * (out - 0.08) - 0.4 * bend * bend * bend
        reach = ramp((out - 0.07) / 0.04) * ramp((0.72 - out) / 0.06)
        bone += rng.uniform(0.06, 0.12) * scene.edge(0.026 - np.abs(course), 0.02) * reach
        blade = out - (shape.half_width - 0.06) - 0.35 * (v + 0.3)
        extent = bump(((v + 0.45) / 0.4) ** 2)
        bone += rng.uniform(0, 0.07) * scene.edge(blade, 0.03) * extent
    return bone


def _stripes(phase: Field, filled: float, softness: float) -> Field:
    """1 on the `filled` share of each period of `phase`, softly 0 between, brighter at the rims like a bone."""
    saw = np.abs(phase - np.floor(phase) - 0.5) * 2
    depth = (filled - saw) / softness
    return ramp(depth) * (0.75 + 0.25 * bump((depth - 0.6) ** 2))


def _vessels(scene: Scene, rng: np.random.Generator) -> Field:
    """Lung markings: strands that leave each hilum and thin out towards the wall, plus a fine grain."""
    warp = smooth_noise(rng, scene.size, 9) * 0.035
    du = np.abs(scene.u) - rng.uniform(0.12, 0.18) + warp
    dv = scene.v + rng.uniform(0.0, 0.12) + 2 * scene.wobble - warp
    square = du * du + dv * dv
    far = np.sqrt(square) + 1e-3
    # dv / (|du| + |dv|) stands in for the angle; each lung has its own half of the noise.
    heading = 0.25 + 0.2 * dv / (np.abs(du) + np.abs(dv) + 1e-3)
    heading += 0.5 * (scene.u > 0)
    noise = looked_up_noise(rng, heading, far / 1.2, (60, 7))
    strands = ramp((0.28 - np.abs(noise)) / 0.4) * bump(square / 0.56)
    hilum = bump((square - 0.5 * dv * dv) / 0.03)
    grain = smooth_noise(rng, scene.size, 40)
    markings = 0.20 * strands + 0.16 * hilum + 0.02 * grain
    return markings * scene.vessels * scene.air


def _add_devices(scene: Scene, rng: np.random.Generator, density: Field, view: str) -> None:
    """Leads, a central line or a pacemaker, more often on AP (bedside) X-rays; whether ill or not."""
    u, v = scene.u, scene.v
    for _ in range(int(rng.integers(0, 4)) if view == "AP" or rng.uniform() < 0.15 else 0):
        tilt, bend, start = rng.uniform(-1.5, 1.5), rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.7)
        lead = u - start - tilt * v - bend * v * v
        steep = 1 / (1 + abs(tilt) + abs(bend))
        density += rng.uniform(0.06, 0.16) * scene.stroke(lead * steep, 0.008)
    if rng.uniform() < 0.08:
        side, high = int(rng.choice(SIDES)), rng.uniform(-0.62, -0.45)
        du, dv = np.abs(scene.out(side) - 0.5), np.abs(v - high)
        density += 0.4 * scene.edge(0.085 - np.maximum(du, dv * 1.2), 0.03)
        wire = v - high - 2.2 * (scene.out(side) - 0.42) ** 2 * 1.5
        inside = (scene.out(side) < 0.42) & (scene.out(side) > -0.05)
        density += 0.2 * scene.stroke(wire, 0.01) * inside


def _expose(density: Field, rng: np.random.Generator, size: int, view: str) -> np.ndarray:
    """Density to grey: uneven shading, a tone curve, noise, the marker and the shutters; uint8 [size, size]."""
    assert density.dtype == np.float32, density.dtype
    shade = 1 + 0.18 * smooth_noise(rng, size, 2) + 0.08 * smooth_noise(rng, size, 4)
    gain, lift, curve = rng.uniform(0.95, 1.35), rng.uniform(-0.06, 0.10), rng.uniform(-0.45, 0.7)
    grey = np.clip(density * shade * gain + lift, 0, 1.15)
    grey = grey + curve * grey * (1 - grey)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    grain = rng.uniform(0.006, 0.016) * (1.4 if view == "AP" else 1.0)
    grey = grey + grain * (noise + 0.5 * np.roll(noise, 1, axis=0) + 0.5 * np.roll(noise, 1, axis=1))
    pixels: np.ndarray = np.clip(grey * 235 + 4, 0, 255).astype(np.uint8)
    _stamp(pixels, rng, size)
    return pixels


def _stamp(pixels: np.ndarray, rng: np.random.Generator, size: int) -> None:
    """The lead letter L in the upper right corner, and now and then a black shutter edge."""
    high, wide = max(3, size // 24), max(2, size // 40)
    thick = max(1, size // 128)
    top, left = int(rng.uniform(0.02, 0.12) * size), int(rng.uniform(0.86, 0.93) * size)
    pixels[top : top + high, left : left + thick] = 250
    pixels[top + high - thick : top + high, left : left + wide] = 250
    if rng.uniform() < 0.2:
        depth = int(rng.uniform(0.01, 0.05) * size)
        edge = int(rng.integers(4))
        if depth:
            np.rot90(pixels, edge)[:depth] = 6  # rot90 is a view
