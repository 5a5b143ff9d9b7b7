"""Files of transformers 4 and of the hub, made by hand: a line is a name and a shape.

Width 8, patch 2, a grid of 2 x 2, one block, an MLP of 12.
"""

import numpy as np

_VIT_4 = """
{0}embeddings.cls_token 1 1 8
{0}embeddings.position_embeddings 1 5 8
{0}embeddings.patch_embeddings.projection.weight 8 3 2 2
{0}embeddings.patch_embeddings.projection.bias 8
{0}encoder.layer.0.attention.attention.query.weight 8 8
{0}encoder.layer.0.attention.attention.query.bias 8
{0}encoder.layer.0.attention.attention.key.weight 8 8
{0}encoder.layer.0.attention.attention.key.bias 8
{0}encoder.layer.0.attention.attention.value.weight 8 8
{0}encoder.layer.0.attention.attention.value.bias 8
{0}encoder.layer.0.attention.output.dense.weight 8 8
{0}encoder.layer.0.attention.output.dense.bias 8
{0}encoder.layer.0.intermediate.dense.weight 12 8
{0}encoder.layer.0.intermediate.dense.bias 12
{0}encoder.layer.0.output.dense.weight 8 12
{0}encoder.layer.0.output.dense.bias 8
{0}encoder.layer.0.layernorm_before.weight 8
{0}encoder.layer.0.layernorm_before.bias 8
{0}encoder.layer.0.layernorm_after.weight 8
{0}encoder.layer.0.layernorm_after.bias 8
{0}layernorm.weight 8
{0}layernorm.bias 8
"""
_CLASSIFIER = "classifier.weight 3 8\nclassifier.bias 3\n"
_TOWER_4 = """
{0}embeddings.position_ids 1 {1}
{0}embeddings.patch_embedding.weight 8 3 2 2
{0}embeddings.position_embedding.weight {1} 8
{0}encoder.layers.0.self_attn.k_proj.weight 8 8
{0}encoder.layers.0.self_attn.k_proj.bias 8
{0}encoder.layers.0.self_attn.v_proj.weight 8 8
{0}encoder.layers.0.self_attn.v_proj.bias 8
{0}encoder.layers.0.self_attn.q_proj.weight 8 8
{0}encoder.layers.0.self_attn.q_proj.bias 8
{0}encoder.layers.0.self_attn.out_proj.weight 8 8
{0}encoder.layers.0.self_attn.out_proj.bias 8
{0}encoder.layers.0.layer_norm1.weight 8
{0}encoder.layers.0.layer_norm1.bias 8
{0}encoder.layers.0.mlp.fc1.weight 12 8
{0}encoder.layers.0.mlp.fc1.bias 12
{0}encoder.layers.0.mlp.fc2.weight 8 12
{0}encoder.layers.0.mlp.fc2.bias 8
{0}encoder.layers.0.layer_norm2.weight 8
{0}encoder.layers.0.layer_norm2.bias 8
{0}post_layernorm.weight 8
{0}post_layernorm.bias 8
"""
_TEXT = """
logit_scale
text_model.embeddings.token_embedding.weight 20 8
text_model.final_layer_norm.weight 8
text_model.head.weight 8 8
text_model.head.bias 8
"""
_CLIP_4 = (
    _TOWER_4.format("vision_model.", 5)
    + """
vision_model.embeddings.class_embedding 8
vision_model.pre_layrnorm.weight 8
vision_model.pre_layrnorm.bias 8
"""
)
_SIGLIP_4 = (
    _TOWER_4.format("vision_model.", 4)
    + """
vision_model.embeddings.patch_embedding.bias 8
vision_model.head.probe 1 1 8
vision_model.head.attention.in_proj_weight 24 8
vision_model.head.attention.in_proj_bias 24
vision_model.head.attention.out_proj.weight 8 8
vision_model.head.attention.out_proj.bias 8
vision_model.head.layernorm.weight 8
vision_model.head.layernorm.bias 8
vision_model.head.mlp.fc1.weight 12 8
vision_model.head.mlp.fc1.bias 12
vision_model.head.mlp.fc2.weight 8 12
vision_model.head.mlp.fc2.bias 8
"""
)
_MAE_4 = (
    _VIT_4.format("vit.")
    + "decoder.mask_token 1 1 8\ndecoder.decoder_embed.weight 8 8\ndecoder.decoder_pred.bias 12\n"
)
_NOT_BEITS = ("key.bias", "position_embeddings", "beit.layernorm")
_BEIT_4 = (
    "\n".join(
        line
        for line in _VIT_4.format("beit.").splitlines()
        if not any(name in line for name in _NOT_BEITS)
    )
    + """
beit.embeddings.mask_token 1 1 8
beit.encoder.layer.0.lambda_1 8
beit.encoder.layer.0.lambda_2 8
beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table 12 2
beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index 5 5
beit.pooler.layernorm.weight 8
beit.pooler.layernorm.bias 8
"""
    + _CLASSIFIER
)
_DINOV3_4 = """
embeddings.cls_token 1 1 8
embeddings.mask_token 1 1 8
embeddings.register_tokens 1 4 8
embeddings.patch_embeddings.weight 8 3 2 2
embeddings.patch_embeddings.bias 8
rope_embeddings.inv_freq 1
layer.0.norm1.weight 8
layer.0.norm1.bias 8
layer.0.attention.q_proj.weight 8 8
layer.0.attention.q_proj.bias 8
layer.0.attention.k_proj.weight 8 8
layer.0.attention.v_proj.weight 8 8
layer.0.attention.v_proj.bias 8
layer.0.attention.o_proj.weight 8 8
layer.0.attention.o_proj.bias 8
layer.0.layer_scale1.lambda1 8
layer.0.norm2.weight 8
layer.0.norm2.bias 8
layer.0.mlp.gate_proj.weight 12 8
layer.0.mlp.gate_proj.bias 12
layer.0.mlp.up_proj.weight 12 8
layer.0.mlp.up_proj.bias 12
layer.0.mlp.down_proj.weight 8 12
layer.0.mlp.down_proj.bias 8
layer.0.layer_scale2.lambda1 8
norm.weight 8
norm.bias 8
"""
_MSN_5 = "\n".join(  # what version 5 saves of a ViTMSNForImageClassification
    line.replace("vit.encoder", "encoder") for line in _VIT_4.format("vit.").splitlines()
)
# `(names and shapes, fields of the model, beginnings of what is said to be left out)`.
BY_HAND = {
    "vit 4": (_VIT_4.format("vit.") + _CLASSIFIER, dict(num_classes=3), []),
    "msn 4": (_VIT_4.format("vit.") + _CLASSIFIER, dict(num_classes=3), []),
    "msn 5": (_MSN_5 + "\n" + _CLASSIFIER, dict(num_classes=3), []),
    "mae": (
        _MAE_4,
        dict(num_classes=0),
        ["the decoder of a masked autoencoder: 3 arrays (decoder.decoder_embed.weight and 2 more)"],
    ),
    "clip": (
        _CLIP_4 + _TEXT + "visual_projection.weight 6 8\ntext_projection.weight 6 8\n",
        dict(num_classes=6, embed_norm="tokens", activation="quick_gelu", no_bias=("patch",)),
        [
            "the text tower: 6 arrays (logit_scale and 5 more)",
            "tables that are computed anew: 1 arrays (vision_model.embeddings.position_ids)",
        ],
    ),
    "siglip": (
        _SIGLIP_4 + _TEXT + "logit_bias\n",
        dict(num_classes=0, pool="map", gelu="tanh", class_token=False),
        ["the text tower: 6 arrays (logit_bias and 5 more)", "tables that are computed anew: 1 "],
    ),
    "beit": (
        _BEIT_4,
        dict(num_classes=3, relative_bias=True, layer_scale="both", norm_after_pool=True),
        ["the token of masked patches: 1 ", "tables that are computed anew: 1 "],
    ),
    "dinov3": (
        _DINOV3_4,
        dict(num_classes=0, registers=4, rope="centred", gated=True, no_bias=("k",)),
        ["the token of masked patches: 1 ", "tables that are computed anew: 1 "],
    ),
}


def by_hand(text: str) -> dict[str, np.ndarray]:
    """Drawn arrays of these names and shapes."""
    rng, found = np.random.default_rng(0), {}
    for line in text.split("\n"):
        if line.strip():
            name, *shape = line.split()
            whole = name.endswith(("position_ids", "relative_position_index"))
            values = rng.standard_normal([int(n) for n in shape]).astype(np.float32)
            found[name] = values.astype(np.int64) if whole else values
    return found
