"""OPT: a decoder with LayerNorm before each branch, or behind it in the 350m model."""

from dataclasses import replace

from captum_lrpx.architectures.schema import (
    MLP,
    Architecture,
    Attention,
    Embeddings,
    Head,
    Norms,
)

OPT = Architecture(
    model_types=("opt",),
    embeddings=Embeddings(token="decoder.embed_tokens", position="decoder.embed_positions"),
    blocks="decoder.layers.*",
    norms=Norms(
        attention="self_attn_layer_norm",
        mlp="final_layer_norm",
        final="decoder.final_layer_norm",
    ),
    attention=Attention(
        "self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
    ),
    mlp=MLP(input="fc1", activation="activation_fn", output="fc2"),
    head=Head(language_model=("lm_head",)),
    requires=(("do_layer_norm_before", True),),
    # Positions are counted from the attention mask.
    position_ids=False,
)

OPT_POST_NORM = replace(
    OPT,
    norms=replace(OPT.norms, final=None, placement="post"),
    requires=(("do_layer_norm_before", False),),
)

ARCHITECTURES = (OPT, OPT_POST_NORM)
