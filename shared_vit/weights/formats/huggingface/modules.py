"""Names of modules as transformers saves them, without the body's prefix: canonical modules or
tensors, within a block without its prefix, and where each lies."""

from collections.abc import Mapping

# A module of several names is stored in parts, joined along the first axis.
Names = Mapping[str, str | tuple[str, ...]]


def _projections(pattern: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(pattern.format(part) for part in parts)


_QKV = ("query", "key", "value")
_VIT_BLOCK: dict[str, str | tuple[str, ...]] = {
    "norm1": "layernorm_before",
    "attn.qkv": _projections("attention.attention.{}", _QKV),
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VIT_OUTER: dict[str, str | tuple[str, ...]] = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
VIT = _VIT_OUTER | _VIT_BLOCK
DEIT = VIT | {
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.distillation_token",  # where nothing reads it
}
DINOV2 = VIT | {
    "reg_token": "embeddings.register_tokens",
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gated.fc1": "mlp.weights_in",
    "gated.fc2": "mlp.weights_out",
}
DINOV3: Names = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
    "norm1": "norm1",
    "attn.qkv": _projections("attention.{}_proj", ("q", "k", "v")),
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "gated.fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "gated.fc2": "mlp.down_proj",
    "ls2.gamma": "layer_scale2.lambda1",
}
_TOWER: dict[str, str | tuple[str, ...]] = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "attn.qkv": _projections("self_attn.{}_proj", ("q", "k", "v")),
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
CLIP = _TOWER | {
    "cls_token": "embeddings.class_embedding",
    "norm_pre": "pre_layrnorm",  # as transformers spells it
    "head": "classifier",
    "projection": "visual_projection",
}
SIGLIP = _TOWER | {
    "attn_pool.latent": "head.probe",
    "attn_pool.proj": "head.attention.out_proj",
    "attn_pool.norm": "head.layernorm",
    "attn_pool.mlp.fc1": "head.mlp.fc1",
    "attn_pool.mlp.fc2": "head.mlp.fc2",
    "attn_pool.q.weight": "head.attention.in_proj_weight",
    "attn_pool.q.bias": "head.attention.in_proj_bias",
    "attn_pool.kv.weight": "head.attention.in_proj_weight",
    "attn_pool.kv.bias": "head.attention.in_proj_bias",
    "head": "classifier",
}
AIMV2: Names = {
    "patch_embed.proj": "embeddings.patch_embed",
    "patch_embed.norm": "embeddings.rms_norm",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm": "rms_norm",
    "norm1": "rms_norm1",
    "attn.qkv": _projections("attention.{}_proj", ("q", "k", "v")),
    "attn.proj": "attention.out_proj",
    "norm2": "rms_norm2",
    "gated.fc1": ("ffn.gate_proj", "ffn.up_proj"),
    "gated.fc2": "ffn.down_proj",
}
_TABLE = "relative_position_bias.relative_position_bias_table"
BEIT = VIT | {
    "fc_norm": "pooler.layernorm",
    "attn.relative_position_bias_table": f"attention.attention.{_TABLE}",
    "ls1.gamma": "lambda_1",
    "ls2.gamma": "lambda_2",
}
SHARED_TABLE = f"encoder.{_TABLE}"  # BEiT's before fine-tuning: one for all blocks
