"""How much arithmetic a trained token is: the numbers behind FLOP/s in the log and "equal active parameters".

Plain Python over the recipe. Counts products only (2 per multiply-add), as everyone does.
"""

from __future__ import annotations

from ridgepoint.train.recipe import Recipe


def parameter_counts(recipe: Recipe) -> tuple[int, int]:
    """(total, active per token), embedding table included in the total and not in the active ones (it is looked up)."""
    model, width = recipe.model, recipe.model.d_model
    attention = width * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    expert = 3 * width * model.expert_width
    moe_layers = model.num_layers - model.num_dense_layers
    always = model.num_layers * attention + model.num_dense_layers * 3 * width * model.dense_width
    always += moe_layers * (width * model.num_experts + expert * model.num_shared_experts)
    head = recipe.tokenizer.vocab_size * width
    total = always + moe_layers * expert * model.num_experts + head * (1 if model.tied_embeddings else 2)
    return total, always + moe_layers * expert * model.top_k + head


def flops_per_token(recipe: Recipe, seq_len: int) -> float:
    """Forward pass, causal attention at its average context; training is three times this."""
    model = recipe.model
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * (seq_len + 1) / 2
    return 2.0 * parameter_counts(recipe)[1] + attention
