"""Llama and its relatives: decoders with RMSNorm before each branch and a gated MLP."""

from dataclasses import replace

from captum_lrpx.architectures.schema import (
    Architecture,
    Attention,
    Embeddings,
    GatedMLP,
    Head,
    Norms,
)

LLAMA = Architecture(
    model_types=("llama",),
    embeddings=Embeddings(token="embed_tokens"),
    blocks="layers.*",
    norms=Norms(
        attention="input_layernorm",
        mlp="post_attention_layernorm",
        final="norm",
        centered=False,
    ),
    attention=Attention(
        "self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
    ),
    mlp=GatedMLP(
        "mlp",
        gate="mlp.gate_proj",
        activation="mlp.act_fn",
        up="mlp.up_proj",
        output="mlp.down_proj",
    ),
    head=Head(language_model=("lm_head",)),
)

MISTRAL = replace(LLAMA, model_types=("mistral",))
QWEN2 = replace(LLAMA, model_types=("qwen2",))
QWEN3 = replace(
    LLAMA,
    model_types=("qwen3",),
    norms=replace(LLAMA.norms, others=("self_attn.q_norm", "self_attn.k_norm")),
)

ARCHITECTURES = (LLAMA, MISTRAL, QWEN2, QWEN3)
