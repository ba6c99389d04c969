"""A small SAM2 for CPUs: every part of the real one (Hiera, FPN, memory, object pointers) at 64 pixels and 64 channels. Imports sam2."""

from __future__ import annotations

from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base

WIDTH = 64
MEMORY_WIDTH = 32
EMBED = 16
HEADS = 4


def build_tiny(image_size: int) -> SAM2Base:
    """Return the small SAM2 with random weights; at 64 pixels its grid is 4 x 4 and its mask logits are 16 x 16."""
    grid = image_size // 16
    sam = SAM2Base(
        image_encoder=_image_encoder(),
        memory_attention=_memory_attention(grid),
        memory_encoder=_memory_encoder(),
        num_maskmem=4,
        image_size=image_size,
        backbone_stride=16,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        binarize_mask_from_pts_for_mem_enc=True,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_min_pt_num=1,
        multimask_max_pt_num=1,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        max_obj_ptrs_in_encoder=8,
        add_tpos_enc_to_obj_ptrs=True,
        proj_tpos_enc_in_obj_ptrs=True,
        use_signed_tpos_enc_to_obj_ptrs=True,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=True,
    )
    # SAM2Base builds a decoder with the widths of the large model; this one fits 64 channels.
    sam.sam_mask_decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=128, num_heads=HEADS),
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=WIDTH,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
    )
    return sam.eval()


def _image_encoder() -> ImageEncoder:
    # A block cannot both pool its queries and attend globally: with these stages blocks 1, 3 and 6 pool.
    trunk = Hiera(
        embed_dim=EMBED,
        num_heads=1,
        stages=(1, 2, 3, 1),
        global_att_blocks=(4, 5),
        window_pos_embed_bkg_spatial_size=(8, 8),
        window_spec=(8, 4, 4, 2),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=WIDTH, warmup_cache=False),
        d_model=WIDTH,
        backbone_channel_list=[EMBED * 8, EMBED * 4, EMBED * 2, EMBED],
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(grid: int) -> MemoryAttention:
    own = RoPEAttention(rope_theta=10000.0, feat_sizes=(grid, grid), embedding_dim=WIDTH, num_heads=1, downsample_rate=1, dropout=0.0)
    cross = RoPEAttention(
        rope_theta=10000.0,
        feat_sizes=(grid, grid),
        rope_k_repeat=True,
        embedding_dim=WIDTH,
        num_heads=1,
        downsample_rate=1,
        dropout=0.0,
        kv_in_dim=MEMORY_WIDTH,
    )
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=128,
        dropout=0.0,
        pos_enc_at_attn=False,
        self_attention=own,
        d_model=WIDTH,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=cross,
    )
    return MemoryAttention(d_model=WIDTH, pos_enc_at_input=True, layer=layer, num_layers=2)


def _memory_encoder() -> MemoryEncoder:
    block = CXBlock(dim=WIDTH, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return MemoryEncoder(
        out_dim=MEMORY_WIDTH,
        position_encoding=PositionEmbeddingSine(num_pos_feats=MEMORY_WIDTH, warmup_cache=False),
        mask_downsampler=MaskDownSampler(embed_dim=WIDTH, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(layer=block, num_layers=2),
        in_dim=WIDTH,
    )
