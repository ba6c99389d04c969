"""The head's loss terms: one sum per query, over the frames that say something about the term.

Legend: N queries, T frames, R = N * T rows, M candidates, P prompt tokens, C their width, h w mask logits, H W SAM2's side.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tpo_core.types import Tensors
from tpo_heads.mask.config import MaskConfig
from tpo_heads.mask.losses import enlarge, mask_iou, mask_losses, object_loss, projection_loss, sample_points


def mask_terms(output: Tensors, targets: Tensors, config: MaskConfig, side: int) -> Tensors:
    """Return focal, dice, iou (frames with a mask where the object is), object (annotated frames), projection (frames with a box alone).

    Args:
        output: of `MaskHead.forward` in training; without candidates (eval mode) the chosen mask is the only one.
        side: at which masks are compared.
    """
    masks_NThw = output["masks"]
    candidates = output.get("candidates", masks_NThw[:, :, None]).flatten(0, 1).float()
    iou_RM = output.get("candidate_iou", output["iou"][..., None]).flatten(0, 1)
    known, present, annotated = (targets[name].flatten(0, 1) for name in ("mask_known", "present", "annotated"))
    seen = present & annotated
    if config.points is None:
        logits, truth = enlarge(candidates, side), targets["masks"].flatten(0, 1).flatten(1)
        losses = mask_losses(logits, iou_RM, truth, focal=config.focal, dice=config.dice)
    else:
        logits = sample_points(candidates, targets["points"].flatten(0, 1))
        # Points lie more densely where the object is: good for learning its border, wrong for measuring an IoU.
        cover = functional.adaptive_avg_pool2d(targets["masks"].flatten(0, 1).float(), (candidates.shape[-2], candidates.shape[-1]))
        real_RM = mask_iou(candidates.flatten(2), cover.flatten(1) >= 0.5)
        truth = targets["point_labels"].flatten(0, 1)
        losses = mask_losses(logits, iou_RM, truth, focal=config.focal, dice=config.dice, real_RM=real_RM)
    logits_RHW = masks_NThw.flatten(0, 1)
    terms = {
        "focal": losses.focal_R * (seen & known),
        "dice": losses.dice_R * (seen & known),
        "iou": losses.iou_R * (seen & known),
        "object": object_loss(output["object"].flatten(0, 1), present) * annotated,
        "projection": projection_loss(logits_RHW, targets["boxes"].flatten(0, 1)) * (seen & ~known),
    }
    count = targets["present"].shape[1]
    return {name: values_R.view(-1, count).sum(dim=1) for name, values_R in terms.items()}


def prompt_terms(output: Tensors, targets: Tensors, teacher_NPC: Tensor) -> Tensors:
    """Return distil and aux_box: mean L1 to SAM2's own box prompt, and to the box, where the object is on the prompt frame.

    Args:
        teacher_NPC: SAM2's prompt tokens of the annotated box; as many as the adapter makes are compared.
    """
    tokens_NPC, position_N = output["tokens"].float(), targets["prompt_position"]
    rows = position_N.new_tensor(range(len(position_N)))
    there_N = targets["present"][rows, position_N]
    teacher_NPC = teacher_NPC[:, : tokens_NPC.shape[1]]
    box_N4 = targets["boxes"][rows, position_N]
    return {
        "distil": (tokens_NPC - teacher_NPC).abs().mean(dim=(1, 2)) * there_N,
        "aux_box": (output["aux_box"].float() - box_N4).abs().mean(dim=1) * there_N,
    }
