"""Scenes and pixels: determinism, disjoint splits, events, occlusion, depth."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_core.errors import ConfigError
from tpo_heads.playground.render import FAR, NEAR, depth_map, render
from tpo_heads.playground.scenes import KINDS, LEVELS, SPLITS, Event, Scene, Thing, make_scene


def scene_of(*things: Thing, size: tuple[int, int] = (64, 48)) -> Scene:
    frames = len(things[0].shown_T)
    return Scene(0, "train", "track" if frames > 1 else "image", 1, 0, size, frames, 4.0, things, (), (0.0, 0.0))


def thing_at(x: float, y: float, *, radius: float = 10.0, shape: str = "square", depth: float = 2.0, colour: str = "red") -> Thing:
    one = np.ones(1)
    return Thing(colour, shape, "large", depth, np.array([[x, y]]), radius * one, one.astype(bool), 0 * one, (0.0, 0.0))


def test_scene_is_a_function_of_its_numbers() -> None:
    arguments = {"seed": 3, "split": "train", "kind": "clip", "level": 2, "index": 7}
    first, second = render(make_scene(**arguments)), render(make_scene(**arguments))
    np.testing.assert_array_equal(first.frames_THW3, second.frames_THW3)
    other = render(make_scene(**{**arguments, "seed": 4}))
    assert not np.array_equal(first.frames_THW3, other.frames_THW3)


def test_no_picture_of_a_split_occurs_in_another() -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for kind in KINDS:
            for index in range(25):
                for frame in render(make_scene(seed=0, split=split, kind=kind, level=1, index=index)).frames_THW3[:1]:
                    digest = hashlib.sha256(frame.tobytes()).hexdigest()
                    assert seen.setdefault(digest, split) == split
    assert len(seen) == 4 * 3 * 25


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10_000), level=st.sampled_from(sorted(LEVELS)), kind=st.sampled_from(KINDS))
def test_scenes_keep_the_level_s_rules(index: int, level: int, kind: str) -> None:
    world = LEVELS[level]
    scene = make_scene(seed=1, split="val", kind=kind, level=level, index=index, size=(96, 64))
    assert world.things[0] <= len(scene.things) <= world.things[1]
    names = {(t.colour, t.shape, t.size) if world.triples else (t.colour, t.shape) for t in scene.things}
    assert len(names) == len(scene.things)
    assert len({round(t.depth, 6) for t in scene.things}) == len(scene.things)
    assert (len(scene.events) == 2) == (kind == "clip")
    if kind == "clip":
        first, second = scene.events
        assert first.thing != second.thing
        inter = max(0, min(first.end, second.end) - max(first.start, second.start))
        union = first.end - first.start + second.end - second.start - inter
        assert inter / union <= 0.25
        assert all(0 <= e.start < e.end <= scene.frames for e in scene.events)
    for thing in scene.things:
        if kind != "clip":
            assert (thing.centre_T2 >= 0).all()
            assert (thing.centre_T2 <= scene.size).all()


def spans(count: int) -> np.ndarray:
    scenes = [make_scene(seed=0, split="test", kind="clip", level=1, index=i) for i in range(count)]
    return np.array([(e.start, e.end) for scene in scenes for e in scene.events], float)


def test_the_best_constant_span_is_seldom_right() -> None:
    truth = spans(400)
    best = 0.0
    for start in range(12):
        for end in range(start + 1, 13):
            inter = np.clip(np.minimum(truth[:, 1], end) - np.maximum(truth[:, 0], start), 0, None)
            union = truth[:, 1] - truth[:, 0] + end - start - inter
            best = max(best, float((inter / union >= 0.5).mean()))
    assert best <= 0.35


def test_events_change_only_their_frames() -> None:
    for index in range(40):
        scene = make_scene(seed=2, split="train", kind="clip", level=1, index=index)
        for event in scene.events:
            thing = scene.things[event.thing]
            inside = np.zeros(scene.frames, bool)
            inside[event.start : event.end] = True
            if event.action == "vanish":
                np.testing.assert_array_equal(thing.shown_T, ~inside)
            elif event.action == "appear":
                np.testing.assert_array_equal(thing.shown_T, inside)
            elif event.action == "flash":
                np.testing.assert_array_equal(thing.glow_T > 0, inside)
            elif event.action == "grow":
                np.testing.assert_array_equal(thing.radius_T > thing.radius_T[~inside].min() * 1.2, inside)
            else:
                resting = np.median(thing.centre_T2[~inside, 1])
                assert (np.abs(thing.centre_T2[inside, 1] - resting) > 4).all()


def test_the_nearer_thing_hides_the_farther_one() -> None:
    near, far = thing_at(24, 24, depth=1.5, colour="blue"), thing_at(32, 24, depth=4.0)
    for order in ((near, far), (far, near)):
        picture = render(scene_of(*order))
        i = order.index(near)
        whole = render(scene_of(near)).mask(0, 0)
        np.testing.assert_array_equal(picture.mask(i, 0), whole)
        assert not (picture.mask(0, 0) & picture.mask(1, 0)).any()
        assert picture.mask(1 - i, 0).sum() < render(scene_of(far)).mask(0, 0).sum()
        depth_HW = depth_map(scene_of(*order), picture, 0)
        assert depth_HW[24, 26] == pytest.approx(1.5)
        assert depth_HW[24, 38] == pytest.approx(4.0)
        assert (depth_HW[0, 0], depth_HW[-1, 0]) == (FAR, NEAR)


def test_square_has_the_box_it_should() -> None:
    picture = render(scene_of(thing_at(20.0, 30.0, radius=10.0)))
    # Half a side is 0.88 radius = 8.8 px: pixel centres from 11.5 to 28.5 lie inside.
    assert picture.box(0, 0) == (11, 21, 29, 39)
    assert picture.mask(0, 0).sum() == 18 * 18
    hidden = replace(thing_at(20.0, 30.0), shown_T=np.zeros(1, bool))
    assert render(scene_of(hidden)).box(0, 0) is None


@pytest.mark.parametrize(("shape", "area"), [("ring", 2.53), ("square", 3.10), ("cross", 2.15), ("triangle", 1.43)])
def test_shapes_have_their_area(shape: str, area: float) -> None:
    mask = render(scene_of(thing_at(60, 60, radius=40, shape=shape), size=(120, 120))).mask(0, 0)
    assert mask.sum() / 40**2 == pytest.approx(area, rel=0.03)


def test_media_need_not_be_square() -> None:
    picture = render(make_scene(seed=0, split="train", kind="track", level=3, index=0, size=(96, 48)))
    assert picture.frames_THW3.shape == (8, 48, 96, 3)


@pytest.mark.parametrize("change", [{"split": "dev"}, {"kind": "film"}, {"level": 4}, {"size": (16, 64)}, {"seed": -1}])
def test_wrong_arguments_are_named(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="playground"):
        make_scene(**{"seed": 0, "split": "train", "kind": "image", "level": 1, "index": 0, **change})


def test_events_are_plain_values() -> None:
    assert Event(0, "jump", 2, 5) == Event(0, "jump", 2, 5)
