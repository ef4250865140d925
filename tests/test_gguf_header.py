"""GGUF files: what cannot be loaded is refused by its header, and a whole one is loaded."""

import struct

import pytest
import torch
import transformers

from captum_lrpx import AttnLRPx, ledger, loading
from captum_lrpx.gguf_header import read_header
from captum_lrpx.loading import load_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
TOKENS = (*SPECIAL, *"▁abcdefghijklmnopqrstuvwxyz")
HIDDEN, LAYERS, HEADS, WIDTH = 32, 2, 2, 16
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}
"""Modules of Gemma 3 in transformers -> in GGUF files."""


def tiny_gemma3():
    """A Gemma 3 with random weights."""
    config = transformers.Gemma3TextConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=WIDTH,
        intermediate_size=48,
        query_pre_attn_scalar=256,  # the default; GGUF files do not say it
        max_position_embeddings=64,
        sliding_window=16,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.1 if "norm" in name else 0.3)
    return model


def weights(model):
    """Name in a GGUF file -> values, which are one more for a norm."""
    for name, value in model.model.state_dict(prefix="model.").items():
        stored = value + 1 if "norm" in name else value
        stem = name.removesuffix(".weight")
        block = ""
        if stem.startswith("model.layers."):
            _, _, number, stem = stem.split(".", 3)
            block = f"blk.{number}."
        yield f"{block}{NAMES[stem]}.weight", stored.numpy()


@pytest.fixture
def write(tmp_path):
    """Writes a file with these weights and further values of the metadata."""

    def write(tensors, architecture="gemma3", **values):
        path = tmp_path / f"{architecture}.gguf"
        file = gguf.GGUFWriter(path, architecture)
        file.add_context_length(64)
        file.add_embedding_length(HIDDEN)
        file.add_block_count(LAYERS)
        file.add_feed_forward_length(48)
        file.add_head_count(HEADS)
        file.add_head_count_kv(1)
        file.add_key_length(WIDTH)
        file.add_value_length(WIDTH)
        file.add_layer_norm_rms_eps(1e-6)
        file.add_rope_freq_base(1e6)
        file.add_sliding_window(16)
        file.add_tokenizer_model("llama")
        file.add_token_list(TOKENS)
        file.add_token_scores([-float(number) for number in range(len(TOKENS))])
        file.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
        file.add_pad_token_id(0)
        file.add_eos_token_id(1)
        file.add_bos_token_id(2)
        file.add_unk_token_id(3)
        for key, value in values.items():
            add = file.add_string if isinstance(value, str) else file.add_uint32
            add(key.replace("__", "."), value)
        for name, tensor in tensors:
            file.add_tensor(name, tensor)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return path

    return write


@pytest.fixture
def unconverted(monkeypatch):
    """Nothing may be read by transformers."""

    def never(*_args, **_keywords):
        raise AssertionError("transformers was asked")

    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", never)


def test_a_gemma_3_is_loaded_and_explained(write):
    model = tiny_gemma3()
    loaded = load_model(str(write(weights(model))))
    ids = loaded.tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
    book = ledger(AttnLRPx(loaded.model), ids, (-1, TOKENS.index("a")))
    assert book.relative_residual("value").max() < 1e-5


def test_the_header_says_what_is_in_the_file(write):
    given = dict(weights(tiny_gemma3()))
    path = write(given.items(), general__alignment=64)
    header = read_header(path)
    assert header.values["general.architecture"] == "gemma3"
    assert header.values["gemma3.block_count"] == LAYERS
    assert header.values["tokenizer.ggml.tokens"] == len(TOKENS)
    content = path.read_bytes()
    for tensor in header.tensors:
        values = given[tensor.name]
        assert tensor.shape[::-1] == values.shape
        start = header.data + tensor.offset
        assert content[start : start + values.nbytes] == values.tobytes()


OTHER_FILES = {
    "another architecture": (
        {"architecture": "clip"},
        r"does not convert the architecture 'clip' from GGUF files, but .*gemma3.*llama",
    ),
    "an adapter": ({"general__type": "adapter"}, "holds no model, but is of the type 'adapter'"),
    "a part": ({"split__count": 3, "split__no": 1}, "part 2 of 3 of a model; .*--merge"),
}


@pytest.mark.usefixtures("unconverted")
@pytest.mark.parametrize("case", OTHER_FILES)
def test_what_is_no_model_that_can_be_converted(write, case):
    values, message = OTHER_FILES[case]
    path = write(weights(tiny_gemma3()), **values)
    for reads in (load_model, loading.source_of):
        with pytest.raises(ValueError, match=rf"{path.name}' cannot be loaded: .*{message}"):
            reads(str(path))


@pytest.mark.usefixtures("unconverted")
def test_weights_that_nothing_converts(write):
    path = write([("token_embd.weight", torch.zeros(4, 32, dtype=torch.int32).numpy())])
    with pytest.raises(ValueError, match=r"weights of its type 26 cannot be converted \(.*I32"):
        load_model(str(path))
    content = path.read_bytes()
    place = content.index(b"token_embd.weight") + len("token_embd.weight") + struct.calcsize("<IQQ")
    path.write_bytes(content[:place] + struct.pack("<I", 999) + content[place + 4 :])
    with pytest.raises(ValueError, match="weights of its type 999 cannot be converted"):
        load_model(str(path))


@pytest.mark.usefixtures("unconverted")
def test_a_vocabulary_alone(write):
    with pytest.raises(ValueError, match="no weights, as a vocabulary alone"):
        load_model(str(write([])))


@pytest.mark.usefixtures("unconverted")
def test_what_is_no_gguf_file(write):
    path = write(weights(tiny_gemma3()))
    content = path.read_bytes()
    for start, message in {
        b"PK\3\4": "does not start like a GGUF file",
        b"GGUF\1\0\0\0": "version 1, not 3",
        b"GGUF\0\0\0\3": "version 50331648, not 3",
    }.items():
        path.write_bytes(start + content[len(start) :])
        with pytest.raises(ValueError, match=message):
            load_model(str(path))


@pytest.mark.usefixtures("unconverted")
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off(write, share):
    path = write(weights(tiny_gemma3()))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"gemma3.gguf' cannot be loaded: .*is the file complete"):
        load_model(str(path))
