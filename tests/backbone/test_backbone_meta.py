"""Built without weights: the same names, shapes and identity as the model with its weights, whatever it is loaded as."""

from __future__ import annotations

import shutil

import pytest
import torch

from tpo_core.backbone import LoraOptions, load_backbone
from tpo_core.model.build import ModelOptions, build_model
from tpo_core.plugins import load_plugins
from tpo_core.testing.backbones import FAMILIES


@pytest.fixture(scope="module")
def without_weights(backbones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weightless")
    for family in FAMILIES:
        shutil.copytree(backbones[family], folder / family, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_weights_builds_the_same_model(family, backbones, without_weights):
    heads = [load_plugins().load_head("region")]
    options = ModelOptions(lora=LoraOptions(r=4, alpha=8))
    real = build_model(load_backbone(backbones[family]), heads, options=options).model
    empty = build_model(load_backbone(without_weights / family, meta=True), heads, options=options).model
    assert {g: {n: p.shape for n, p in ps.items()} for g, ps in empty.groups().items()} == {
        g: {n: p.shape for n, p in ps.items()} for g, ps in real.groups().items()
    }
    for group, parameters in empty.groups().items():
        if not group.startswith("tokens."):
            assert {p.device.type for p in parameters.values()} == {"meta"}, group


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identity_does_not_depend_on_the_dtype_that_it_is_loaded_as(dtype, backbones):
    stored = load_backbone(backbones["llava_onevision"], meta=True)
    other = load_backbone(backbones["llava_onevision"], dtype=dtype)
    assert other.embedding.weight.dtype is getattr(torch, dtype)
    assert other.identity() == stored.identity()
    assert load_backbone(backbones["llava_onevision"], dtype=dtype, meta=True).embedding.weight.dtype is getattr(torch, dtype)
