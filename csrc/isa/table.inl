// The part of a kernel table that every ISA fills the same way.
#define RP_ROW_FUNCTIONS                                                                                               \
    row_exp_sum, row_max, row_largest, row_best, row_sum_from, row_collect, row_sum_squares, row_sum, row_normalise,   \
        row_add_scaled, row_glu, row_glu_typed, row_widen, row_narrow, row_axpy, row_map, row_scale, row_multiply,     \
        row_merge, row_divide, row_rotate, expand_bf16_12, row_read_sum
