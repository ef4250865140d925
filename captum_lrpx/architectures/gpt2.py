"""GPT-2: a decoder with LayerNorm before each branch and a fused projection."""

from captum_lrpx.architectures.schema import (
    MLP,
    Architecture,
    Embeddings,
    FusedAttention,
    Head,
    Norms,
)

GPT2 = Architecture(
    model_types=("gpt2",),
    embeddings=Embeddings(token="wte", position="wpe"),
    blocks="h.*",
    norms=Norms(attention="ln_1", mlp="ln_2", final="ln_f"),
    attention=FusedAttention(
        "attn", fused="attn.c_attn", output="attn.c_proj", layout="concatenated"
    ),
    mlp=MLP(input="mlp.c_fc", activation="mlp.act", output="mlp.c_proj"),
    head=Head(language_model=("lm_head",), activations=("multiple_choice_head.activation",)),
    unsupported=("crossattention",),
)

ARCHITECTURES = (GPT2,)
