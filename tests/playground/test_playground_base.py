"""The base model: a stock folder, a tokenizer that reads anything, and lessons that equal what the stock processor and model do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from tpo_core.errors import CheckpointError, ConfigError
from tpo_heads.mask.tiny import build_tiny
from tpo_heads.playground.base import build_base, make_base
from tpo_heads.playground.curriculum import base_scene, make_cells, make_lesson, stack_rows, turns_of, write_row
from tpo_heads.playground.pretrain import Aligner, Course, align, read, see, teach, words_loss
from tpo_heads.playground.recipe import lay_base
from tpo_heads.playground.school import teach_base
from tpo_heads.playground.tokenizer import SPECIAL, train_tokenizer

SHORT = Course(align_steps=2, align_batch=2, steps=4, mixture=(("image", 2),), mixture_late=(("clip", 1), ("image", 2)), chained=2)


@pytest.fixture(scope="module")
def stock() -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    return make_base(seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("base"), seed=0)


def test_the_folder_is_an_ordinary_one(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert "auto_map" not in config
    assert sorted(p.suffix for p in folder.iterdir() if p.suffix not in (".json", ".jinja")) == [".safetensors"]
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    assert type(model) is Qwen3VLForConditionalGeneration
    assert type(processor) is Qwen3VLProcessor
    made, _ = make_base(seed=0)
    for (name, loaded), (other, ours) in zip(model.named_parameters(), made.named_parameters()):
        assert name == other
        torch.testing.assert_close(loaded, ours, rtol=0, atol=0)


def test_the_loaded_folder_generates(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    _, picture, _ = base_scene(0, "image", 0)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    batch = processor(text=[text], images=[Image.fromarray(picture.frames_THW3[0])], return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=3)
    assert batch["input_ids"].shape[1] < out.shape[1] <= batch["input_ids"].shape[1] + 3


def test_seeds_make_models_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (make_base(seed=seed)[0].lm_head.weight for seed in (1, 1, 2))
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first, other)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=("Cs", "Lu", "Lt", "Cc"), blacklist_characters="▁"), max_size=30))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = TOKENIZER
    wanted = text.lower()
    if wanted != text or text != text.strip() or not text:
        return
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("<unk>") not in ids


TOKENIZER = train_tokenizer()


def test_words_are_one_token_wherever_they_stand() -> None:
    one = TOKENIZER("red")["input_ids"]
    assert len(one) == 1
    ids = TOKENIZER("<|assistant|>Red<|end|>")["input_ids"]
    assert ids[1:2] == one
    assert TOKENIZER("the red ring")["input_ids"][1:2] == one
    assert len(TOKENIZER("<2.5 seconds>")["input_ids"]) == 1
    assert len({TOKENIZER.convert_tokens_to_ids(token) for token in SPECIAL}) == len(SPECIAL)


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_lessons_are_what_the_stock_processor_makes(kind: str, stock: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]) -> None:
    model, processor = stock
    scene, picture, speaker = base_scene(0, kind, 3)
    asks = [speaker.caption(), speaker.chat("count"), speaker.chat("exists")]
    lesson = stack_rows([write_row(processor.tokenizer, scene, asks, chained=True)], picture.frames_THW3, processor.tokenizer.pad_token_id)
    part = {"type": "image" if kind == "image" else "video"}
    messages = []
    for ask in asks:
        text = [{"type": "text", "text": ask.question}]
        messages.append({"role": "user", "content": text if messages else [part, *text]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": ask.answer}]})
    text = processor.apply_chat_template(messages, tokenize=False)
    if kind == "image":
        batch = processor(text=[text], images=[Image.fromarray(picture.frames_THW3[0])], return_tensors="pt")
    else:
        metadata = {"total_num_frames": 12, "fps": 4.0, "frames_indices": list(range(12)), "duration": 3.0}
        frames = torch.from_numpy(picture.frames_THW3).permute(0, 3, 1, 2)
        batch = processor(text=[text], videos=[frames], video_metadata=[metadata], return_tensors="pt")
    assert batch["input_ids"].tolist() == lesson.ids_BL.tolist()
    pixels = batch["pixel_values" if kind == "image" else "pixel_values_videos"]
    torch.testing.assert_close(pixels, lesson.pixels_FP, rtol=0, atol=1e-6)
    with torch.no_grad():
        ours = model.lm_head(read(model, lesson))
        theirs = model(**batch).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    learnt = processor.tokenizer.decode(lesson.labels_BL[0][lesson.labels_BL[0] >= 0])
    assert learnt == "<|end|>".join(f" {ask.answer}" for ask in asks).strip() + "<|end|>"


def test_turns_that_stand_alone_equal_first_turns(stock: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]) -> None:
    model, processor = stock
    tokenizer = processor.tokenizer
    scene, picture, speaker = base_scene(0, "image", 5)
    asks = turns_of(speaker)
    together = stack_rows([write_row(tokenizer, scene, asks, chained=False)], picture.frames_THW3, tokenizer.pad_token_id)
    with torch.no_grad():
        packed = model.lm_head(read(model, together))[0]
        turn = torch.tensor(write_row(tokenizer, scene, asks, chained=False).turn)
        for number, ask in enumerate(asks, 1):
            alone = stack_rows([write_row(tokenizer, scene, [ask], chained=True)], picture.frames_THW3, tokenizer.pad_token_id)
            single = model.lm_head(read(model, alone))[0]
            torch.testing.assert_close(packed[turn == number], single[int((turn == 0).sum()) :], rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(stock: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]) -> None:
    model, processor = stock
    tokenizer = processor.tokenizer
    written, frames = [], []
    for index in (1, 2, 3):
        scene, picture, speaker = base_scene(0, "image", index)
        written.append(write_row(tokenizer, scene, turns_of(speaker)[: 2 * index], chained=False))
        frames.append(picture.frames_THW3)
    batch = stack_rows(written, np.concatenate(frames), tokenizer.pad_token_id)
    with torch.no_grad():
        states = read(model, batch)
        for b, row in enumerate(written):
            alone = read(model, stack_rows([row], frames[b], tokenizer.pad_token_id))
            torch.testing.assert_close(states[b, : len(row.ids)], alone[0], rtol=1e-4, atol=1e-4)


def test_cells_name_what_they_show() -> None:
    cells = make_cells(TOKENIZER, seed=0, first=0, size=9)
    scenes = [base_scene(0, "image" if i % 3 else "clip", i)[:2] for i in range(9)]
    things = [(thing, scene, i) for i, (scene, _) in enumerate(scenes) for thing in scene.things]
    assert len(things) == len(cells.words)
    for ids, (thing, _, _) in zip(cells.words, things):
        assert TOKENIZER.decode(ids[ids >= 0][:3]) == f"{thing.size} {thing.colour} {thing.shape}"
    for frame in range(9):
        owners = {int(o) for o in cells.owner_FP[frame] if o >= 0}
        assert all(things[o][2] == frame for o in owners)
        assert owners
    # The cell (row, column) that holds an object's centre is its own, where nothing nearer covers it.
    thing, scene, frame = things[-1]
    x, y = thing.centre_T2[frame % scene.frames] / 16
    assert cells.owner_FP[frame].reshape(4, 4)[int(y), int(x)] in range(len(things))


def test_the_aligner_is_content_with_its_own_aim() -> None:
    model, processor = make_base(seed=0)
    table = model.get_input_embeddings().weight
    placeholder = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    aligner = Aligner(table, placeholder, seed=0)
    cells = make_cells(processor.tokenizer, seed=0, first=0, size=6)
    owner = cells.owner_FP.flatten()
    aim = table[placeholder].detach().expand(len(owner), -1).clone()
    for i in torch.nonzero(owner >= 0).flatten():
        words = cells.words[owner[i]]
        words = words[words >= 0]
        aim[i] = table[words].detach().sum(0) / len(words) ** 0.5
    loss, scores = aligner(aim, cells)
    far, _ = aligner(torch.randn(aim.shape, generator=torch.Generator().manual_seed(0)), cells)
    assert min(scores.values()) > 0.99
    assert loss < 0.6 * far


def test_aligning_trains_the_tower_alone() -> None:
    model, processor = make_base(seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    align(model, processor.tokenizer, seed=0, course=SHORT, report=lambda *_: None)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all(".visual." in name for name in moved)


def test_teaching_lowers_the_loss_and_resumes_exactly(tmp_path: Path) -> None:
    def taught(folder: Path, stop: int | None = None) -> Qwen3VLForConditionalGeneration:
        model, processor = make_base(seed=0)

        def report(phase: str, step: int, values: dict[str, float]) -> None:
            if step == stop:
                seen.append(step)

        seen: list[int] = []
        teach(model, processor.tokenizer, seed=0, course=SHORT, report=report, folder=folder, every=2)
        return model

    whole = taught(tmp_path / "whole")
    keep = tmp_path / "broken"

    class Crash(Exception):
        pass

    model, processor = make_base(seed=0)

    def crash(phase: str, step: int, values: dict[str, float]) -> None:
        if step == 4:
            raise Crash

    with pytest.raises(Crash):
        teach(model, processor.tokenizer, seed=0, course=SHORT, report=crash, folder=keep, every=2)
    resumed = taught(keep)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    lesson = make_lesson(processor.tokenizer, seed=0, kind="image", first=0, size=2, chained=False)
    with torch.no_grad():
        assert words_loss(whole, lesson) < words_loss(make_base(seed=0)[0], lesson)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight/other": torch.zeros(1)}, tmp_path / "course.safetensors", metadata={"step": "1"})
    model, processor = make_base(seed=0)
    with pytest.raises(CheckpointError, match="lacks 80 weights"):
        teach(model, processor.tokenizer, seed=0, course=SHORT, report=lambda *_: None, folder=tmp_path)


def test_see_gives_sixteen_tokens_a_frame(stock: tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]) -> None:
    cells = make_cells(TOKENIZER, seed=0, first=0, size=3)
    with torch.no_grad():
        assert see(stock[0], cells.pixels).shape == (3 * 16, 128)


def test_bases_are_laid_or_refused(tmp_path: Path, folder: Path) -> None:
    assert lay_base(tmp_path / "a", base=str(folder)) == folder
    made = lay_base(tmp_path / "b", base="scratch", seed=0)
    ours, theirs = load_file(made / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match=r"give shipped, scratch, or a folder with config\.json"):
        lay_base(tmp_path / "c", base="nowhere")


def test_the_course_ends_in_a_folder_that_loads(tmp_path: Path) -> None:
    said: list[str] = []
    reached = teach_base(tmp_path / "base", seed=0, scale=0.0005, say=said.append)
    assert {"image_colour", "clip_does", "track_place", "caption_image", "sam_first", "sam_last"} <= set(reached)
    assert all(0 <= value <= 1 for value in reached.values())
    assert any("align 2" in line for line in said)
    assert any("teach 2" in line for line in said)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.float16
    assert sum(path.stat().st_size for path in (tmp_path / "base").iterdir()) < 6 * 2**20
    assert set(load_file(tmp_path / "base" / "sam2.safetensors")) == set(build_tiny(64).state_dict())
    again = teach_base(tmp_path / "base", seed=0, scale=0.0005)
    assert again == reached, "a finished course is not taught again"
