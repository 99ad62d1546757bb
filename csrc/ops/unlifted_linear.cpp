// Products for the rows of a step whose attention runs over the latents themselves: into the latent space and out of it.
// They lie in runs between the lifted ones (ops/lifted.h); a step without prompts is one run.
#include "lifted.h"

namespace rp {
namespace {

struct Run { int64_t first, end; };

template <class Use> void each_run(const AttentionOp& op, int64_t rows, Use&& use) {
    Run run{0, 0};
    for (int64_t b = 0; b < *op.num_seqs; b++) {
        const Queries queries = queries_of(op, b, rows);
        if (queries.count == 0) continue;
        if (queries.token != run.end) {
            if (run.end > run.first) use(run);
            run.first = queries.token;
        }
        run.end = queries.token + queries.count;
    }
    if (run.end > run.first) use(run);
}

Workspace workspace(const void* raw, int64_t rows, int threads) {
    return kLinear.workspace(&static_cast<const UnliftedLinearOp*>(raw)->linear, rows, threads);
}

const uint8_t* first_panel(const void* raw, int64_t rows, int thread, int threads) {
    return kLinear.first_panel(&static_cast<const UnliftedLinearOp*>(raw)->linear, rows, thread, threads);
}

void body(const void* raw, int64_t rows, Region& region) {
    const UnliftedLinearOp& op = *static_cast<const UnliftedLinearOp*>(raw);
    bool begun = false;
    each_run(*op.attention, rows, [&](const Run& run) {
        if (begun) region.team.barrier();
        begun = true;
        LinearOp linear = op.linear;
        linear.x = offset(op.linear.x, run.first * op.linear.x_stride, op.linear.x_dtype);
        linear.y = offset(op.linear.y, run.first * op.linear.y_stride, op.linear.y_dtype);
        kLinear.body(&linear, run.end - run.first, region);
    });
}

}  // namespace

extern const Operator kUnliftedLinear{workspace, body, first_panel};

}  // namespace rp
