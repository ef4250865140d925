"""Generated text
==============

A whole continuation from one forward pass, and single words in contrast to others.
"""

# %%
# Each row explains one token of the continuation, each column is a token of the prompt.
from captum_lrpx import AttnLRPx, LLMRelevance, zoo

model, tokenizer = zoo.load("sva-llama")
llm = LLMRelevance(AttnLRPx(model), tokenizer)
result = llm.attribute("the keys to the cabinet", target="are old .")
figure, axes = result.plot_token_attr()

# %%
# The continuation is input for what comes after it.
for token, row in zip(result.output_tokens, result.context_attr, strict=True):
    print(f"{token}:")
    for source, relevance in zip(result.context_tokens, row, strict=True):
        print(f"{source:>20} {relevance:+.3f}")

# %%
# Why *are* rather than *is*?
contrast = llm.attribute("the keys to the cabinet", target="are", foil="is")
for token, relevance in zip(contrast.input_tokens, contrast.seq_attr, strict=True):
    print(f"{token:>20} {relevance:+.3f}")
