"""BERT and its relatives: encoders with the norm after the residual add."""

from dataclasses import replace

from captum_lrpx.architectures.schema import (
    MLP,
    Architecture,
    Attention,
    Embeddings,
    Head,
    Inline,
    Norms,
)

BERT = Architecture(
    model_types=("bert",),
    embeddings=Embeddings(
        token="embeddings.word_embeddings",
        position="embeddings.position_embeddings",
        segment="embeddings.token_type_embeddings",
    ),
    blocks="encoder.layer.*",
    norms=Norms(
        attention="attention.output.LayerNorm",
        mlp="output.LayerNorm",
        embedding="embeddings.LayerNorm",
        placement="post",
    ),
    attention=Attention(
        "attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
    ),
    mlp=MLP(
        input="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        output="output.dense",
    ),
    head=Head(
        language_model=("cls.predictions.transform", "cls.predictions.decoder"),
        norms=("cls.predictions.transform.LayerNorm",),
        activations=("cls.predictions.transform.transform_act_fn",),
        pooler_activation="pooler.activation",
    ),
    unsupported=("crossattention",),
)

ROBERTA = replace(
    BERT,
    model_types=("roberta", "xlm-roberta", "camembert"),
    embeddings=replace(BERT.embeddings, positions_after_padding=True),
    head=Head(
        language_model=("lm_head",),
        norms=("lm_head.layer_norm",),
        inline=(
            Inline("lm_head.dense", "lm_head.layer_norm", "gelu"),
            Inline("classifier.dense", "classifier.out_proj", "tanh"),
        ),
        pooler_activation="pooler.activation",
    ),
    position_ids=False,  # the model counts them itself, leaving out padding
)

DISTILBERT = Architecture(
    model_types=("distilbert",),
    embeddings=Embeddings(
        token="embeddings.word_embeddings", position="embeddings.position_embeddings"
    ),
    blocks="transformer.layer.*",
    norms=Norms(
        attention="sa_layer_norm",
        mlp="output_layer_norm",
        embedding="embeddings.LayerNorm",
        placement="post",
    ),
    attention=Attention(
        "attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
    ),
    mlp=MLP(input="ffn.lin1", activation="ffn.activation", output="ffn.lin2"),
    head=Head(
        language_model=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        norms=("vocab_layer_norm",),
        activations=("activation",),
        inline=(Inline("pre_classifier", "classifier", "relu"),),
    ),
)

ARCHITECTURES = (BERT, ROBERTA, DISTILBERT)
