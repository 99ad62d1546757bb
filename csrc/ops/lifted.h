// Which queries of a latent cache meet lifted keys, and which meet the latents themselves.
//
// Lifting costs products per key, absorbing costs products per pair of query and key, so many queries at once are cheaper
// lifted. The forms round differently. So that a token's bits depend neither on the chunk it comes in nor on its company,
// the form follows from its place in its own prompt: tokens of whole runs of `lift_tokens` are lifted, the rest of the prompt
// and everything generated is not. A step that computes generated tokens again does what decoding did.
#pragma once
#include "op.h"

namespace rp {

// Consecutive queries of one sequence: first row of the batch, how many, place of the first in its sequence.
struct Queries { int64_t token, count, position; };

// Those of sequence b that `op` attends for; none of a sequence that does not fit into `tokens` rows.
inline Queries queries_of(const AttentionOp& op, int64_t b, int64_t tokens) {
    const int64_t token = op.query_starts[b], count = op.query_starts[b + 1] - token, position = op.context_lens[b] - count;
    if (count <= 0 || token + count > tokens) return {token, 0, position};
    if (!op.prompt_lens) return op.lifted ? Queries{token, 0, position} : Queries{token, count, position};
    const int64_t whole = op.prompt_lens[b] / op.lift_tokens * op.lift_tokens - position;
    const int64_t lifted = whole < 0 ? 0 : whole < count ? whole : count;
    if (op.lifted) return {token, lifted, position};
    return {token + lifted, count - lifted, position + lifted};
}

}  // namespace rp
