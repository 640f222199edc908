// Weights on a grid with scales and zero points: the search of scales, rounding to the nearest codes, what it leaves, and the
// result as it is stored, as src/quant/gptq/rows.rs has them, bit for bit.
//
// All matrices are row-major. [rows, size] float32: weights, codes (less their zero points), errors. [rows, groups] float32:
// scales, zeros, where groups = ceil(size / group_size). Rows are those of one or several problems (rows/team.cuh).
#include "rows/scale_search.cuh"

/// Chooses the scales of all groups from the weights as they are.
///
/// importance [problems, size] float32. Launch: teams, rows / teams x groups thread blocks; dynamic shared memory: 544 bytes a
/// row.
extern "C" __global__ void __launch_bounds__(128) affine_choose_scales(
    const float* weights, const float* importance, unsigned size, unsigned problem_rows, Grid grid, float* scales,
    float* zeros
) {
    extern __shared__ float shared[];
    Member me;
    unsigned start = blockIdx.y * grid.group_size, count = min(grid.group_size, size - start);
    const float* row = weights + static_cast<size_t>(me.row) * size + start;
    importance += me.problem(problem_rows) * size + start;
    Found found = search_scale(me, row, importance, count, grid, shared + me.team * TERMS_STRIDE);
    if (me.lane == 0) {
        size_t at = static_cast<size_t>(me.row) * gridDim.y + blockIdx.y;
        scales[at] = found.scale;
        zeros[at] = found.zero;
    }
}

/// Rounds every weight to its nearest code. Launch: 128 threads, a thread block for each row.
extern "C" __global__ void __launch_bounds__(128) affine_round(
    const float* weights, const float* scales, const float* zeros, unsigned size, unsigned groups, Grid grid, float* codes
) {
    size_t row = static_cast<size_t>(blockIdx.x) * size, group = static_cast<size_t>(blockIdx.x) * groups;
    for (unsigned column = threadIdx.x; column < size; column += 128) {
        size_t at = group + column / grid.group_size;
        codes[row + column] = Scale(scales[at], zeros[at], grid).code(weights[row + column]);
    }
}

/// Computes all errors anew: errors = weights - scales * codes. Launch: 128 threads, a thread block for each row.
extern "C" __global__ void __launch_bounds__(128) affine_errors(
    const float* weights, const float* codes, const float* scales, unsigned size, unsigned groups, unsigned group_size,
    float* errors
) {
    size_t row = static_cast<size_t>(blockIdx.x) * size, group = static_cast<size_t>(blockIdx.x) * groups;
    for (unsigned column = threadIdx.x; column < size; column += 128) {
        float scale = scales[group + column / group_size];
        errors[row + column] = weights[row + column] - scale * codes[row + column];
    }
}

/// The result as it is stored: codes [rows, size], scales [rows, groups] as half precision, zero points [rows, groups].
/// Launch: 128 threads, a thread block for each row.
extern "C" __global__ void __launch_bounds__(128) affine_finish(
    const float* codes, const float* scales, const float* zeros, unsigned size, unsigned groups, unsigned group_size,
    uint8_t* out_codes, uint16_t* out_scales, uint8_t* out_zeros
) {
    size_t row = static_cast<size_t>(blockIdx.x) * size, group = static_cast<size_t>(blockIdx.x) * groups;
    for (unsigned column = threadIdx.x; column < size; column += 128) {
        float code = codes[row + column] + zeros[group + column / group_size];
        out_codes[row + column] = static_cast<uint8_t>(code);
    }
    for (unsigned i = threadIdx.x; i < groups; i += 128) {
        out_scales[group + i] = to_half(scales[group + i]);
        out_zeros[group + i] = static_cast<uint8_t>(zeros[group + i]);
    }
}
