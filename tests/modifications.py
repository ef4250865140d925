"""Tiny models, each with something in it that its family does not have."""

from __future__ import annotations

from types import MethodType

import torch
from models import randomize, tiny
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know


def rewritten(module, forward):
    """A module with another forward, of this instance alone."""
    module.forward = MethodType(forward, module)
    return module


def linear(inputs, outputs):
    """A linear layer with the same values each time."""
    layer = nn.Linear(inputs, outputs, dtype=torch.float64).eval()
    randomize(layer, seed=0)
    return layer


# Each returns the model, the module, a part of its path and a part of the name of the function.


def inline_gelu():
    model = tiny("gpt2", layers=1)
    mlp = rewritten(model.transformer.h[0].mlp, lambda self, x: self.c_proj(F.gelu(self.c_fc(x))))
    return model, mlp, "h.0.mlp", "gelu"


def inline_squared_relu():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(torch.relu(self.c_fc(x)) ** 2))
    return model, mlp, "h.0.mlp", "relu"


def relu_by_comparison():
    model = tiny("bert", layers=1)
    module = model.bert.encoder.layer[0].intermediate

    def forward(self, x):
        z = self.dense(x)
        return z * (z > 0)

    return model, rewritten(module, forward), "layer.0.intermediate", "mul"


def functional_activation():
    model = tiny("llama", layers=1)
    mlp = model.model.layers[0].mlp
    rewritten(mlp, lambda self, x: self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))
    return model, mlp, "layers.0.mlp", "silu"


def extra_gate():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    mlp.gate = linear(8, 12)
    rewritten(mlp, lambda self, x: self.c_proj(self.act(self.c_fc(x)) * self.gate(x)))
    return model, mlp, "h.0.mlp", "mul"


def soft_cap_on_logits():
    model = tiny("llama", layers=1)
    original = model.forward

    def forward(_self, *args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    model.forward = MethodType(forward, model)
    return model, model, "LlamaForCausalLM", "tanh"


def attention_of(module, change):
    """A single-head attention over the declared projections of a Llama, with a change in it."""

    def forward(self, hidden_states, **_):
        q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return self.o_proj(change(self, hidden_states, q, k, v)), None

    return rewritten(module, forward)


def soft_cap_on_scores():
    model = tiny("llama", layers=1)
    attention = model.model.layers[0].self_attn

    def change(_self, _x, q, k, v):
        return torch.softmax(5 * torch.tanh(q @ k.mT / 5), -1) @ v

    return model, attention_of(attention, change), "layers.0.self_attn", "tanh"


def bypassed_projection():
    model = tiny("llama", layers=1)
    attention = model.model.layers[0].self_attn
    attention.other = linear(8, 8)

    def change(self, x, _q, k, v):
        return torch.softmax(self.other(x) @ k.mT, -1) @ v

    return model, attention_of(attention, change), "layers.0.self_attn", "softmax"


def gated_attention():
    model = tiny("llama", layers=1)
    attention = model.model.layers[0].self_attn

    def change(_self, x, q, k, v):
        return (torch.softmax(q @ k.mT, -1) @ v) * x

    return model, attention_of(attention, change), "layers.0.self_attn", "mul"


def unknown_norm():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp

    def forward(self, x):
        z = self.act(self.c_fc(x))
        return self.c_proj(z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-5))

    return model, rewritten(mlp, forward), "h.0.mlp", "rsqrt"


def router():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    mlp.router = linear(8, 2)

    def forward(self, x):
        weight, _ = torch.softmax(self.router(x), -1).topk(1)
        return weight * self.c_proj(self.act(self.c_fc(x)))

    return model, rewritten(mlp, forward), "h.0.mlp", "softmax"


def max_pool():
    model = tiny("bert", layers=1)
    module = model.bert.encoder.layer[0].intermediate

    def forward(self, x):
        z = self.intermediate_act_fn(self.dense(x))
        return z + z.amax(1, keepdim=True)

    return model, rewritten(module, forward), "layer.0.intermediate", "amax"


def softmax_elsewhere():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(torch.softmax(self.c_fc(x), -1)))
    return model, mlp, "h.0.mlp", "softmax"


class Cube(torch.autograd.Function):
    """A function of somebody else, under a name that sounds linear."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def custom_function():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(Cube.apply(self.c_fc(x))))
    return model, mlp, "h.0.mlp", ""


def unknown_function():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(torch.lgamma(self.c_fc(x))))
    return model, mlp, "h.0.mlp", "lgamma"


def detached_branch():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp
    rewritten(mlp, lambda self, x: self.c_proj(self.act(self.c_fc(x))) + x.detach())
    return model, mlp, "h.0.mlp", "add"


def in_place_on_a_part():
    model = tiny("gpt2", layers=1)
    mlp = model.transformer.h[0].mlp

    def forward(self, x):
        z = self.act(self.c_fc(x))
        z[..., :6].tanh_()
        return self.c_proj(z)

    return model, rewritten(mlp, forward), "h.0.mlp", "tanh_"


def activation_with_the_size_of_its_row():
    model = tiny("gpt2", layers=1)
    act = model.transformer.h[0].mlp.act
    rewritten(act, lambda _self, x: F.gelu(x) * x.abs().mean(-1, keepdim=True))
    return model, act, "h.0.mlp.act", "mul"


EXPLAINED = [
    inline_gelu,
    inline_squared_relu,
    relu_by_comparison,
    functional_activation,
    extra_gate,
    soft_cap_on_logits,
    soft_cap_on_scores,
    bypassed_projection,
    unknown_norm,
    router,
    max_pool,
    softmax_elsewhere,
]
"""What the operations tell."""

REFUSED = {
    gated_attention: "a hint",
    activation_with_the_size_of_its_row: "a hint",
    custom_function: "strict=False",
    unknown_function: "strict=False",
    detached_branch: "strict=False",
    in_place_on_a_part: "inplace=False",
}
"""What no rule is for, and a part of the way out."""
