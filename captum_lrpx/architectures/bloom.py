"""BLOOM: a decoder with LayerNorm before each branch, ALiBi and a projection fused per head."""

from captum_lrpx.architectures.schema import (
    MLP,
    Architecture,
    Embeddings,
    FusedAttention,
    Head,
    Norms,
)

BLOOM = Architecture(
    model_types=("bloom",),
    embeddings=Embeddings(token="word_embeddings"),
    blocks="h.*",
    norms=Norms(
        attention="input_layernorm",
        mlp="post_attention_layernorm",
        final="ln_f",
        embedding="word_embeddings_layernorm",
    ),
    attention=FusedAttention(
        "self_attention",
        fused="self_attention.query_key_value",
        output="self_attention.dense",
        layout="per_head",
    ),
    mlp=MLP(input="mlp.dense_h_to_4h", activation="mlp.gelu_impl", output="mlp.dense_4h_to_h"),
    head=Head(language_model=("lm_head",)),
    # The first would take the residual from behind the norm; the second bypasses the modules.
    requires=(("apply_residual_connection_post_layernorm", False), ("slow_but_exact", False)),
    # ALiBi counts positions from the attention mask.
    position_ids=False,
)

ARCHITECTURES = (BLOOM,)
