from __future__ import annotations

import torch
from distributed import ddp_scenarios, fsdp_step, single_gradients, spawn


def test_two_processes_give_the_gradients_of_one(backbones, media_root, tmp_path):
    """Micro-batches of unequal content; disjoint heads with a rank that only chats, on layouts with and without a video interface."""
    scenarios = {
        "micro": (backbones["qwen3_vl"], media_root, [[[0, 1], [2, 3]], [[4, 5], [6, 0]]]),
        "disjoint": (backbones["llava_onevision"], media_root, [[[1]], [[0]]]),
        "chat": (backbones["idefics3"], media_root, [[[1]], [[2]]]),
    }
    ranks = spawn(ddp_scenarios, tmp_path, scenarios)
    for name, (backbone, root, plan) in scenarios.items():
        expected = single_gradients(backbone, root, [[i for rank in plan for group in rank for i in group]])
        for found in ranks:
            mine = {key.partition("|")[2]: value for key, value in found.items() if key.startswith(f"{name}|")}
            assert mine.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(mine[key], value, rtol=5e-4, atol=5e-6, msg=f"{name}: {key}")


def test_fsdp2_with_a_chat_only_rank(backbones, media_root, tmp_path):
    expected = single_gradients(backbones["qwen3_vl"], media_root, [[0, 5, 2]])
    for found in spawn(fsdp_step, tmp_path, backbones["qwen3_vl"], media_root, [[[0, 5]], [[2]]]):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=5e-4, atol=5e-6, msg=name)
