// GPTQ: codes, scales and zero points of the rows of a matrix, as src/quant/gptq finds them, bit for bit.
//
// All matrices are row-major. [rows, size] float32: weights, codes (less their zero points), errors. [rows, groups] float32:
// scales, zeros, where groups = ceil(size / group_size). Rows are those of one or several problems (rows/team.cuh).
//
// The order of the launches is that of src/backend/cuda/gptq.rs. Threads of a block: 8 for each of its 1 to 16 rows in
// kernels of teams (rows/team.cuh), which have dynamic shared memory; else 128. The first scales, rounding, errors and the
// result are those of affine.cu.
#include "gptq/descent.cuh"
#include "gptq/solve.cuh"

/// sums[row] += the sum over columns of x * (y - ridge * x), in float64 and in the order of columns.
///
/// x [rows, size] float32, of which columns from start on count; y [rows, length] float32; ridges [problems] float32, or null
/// for ridges of 0; sums [rows] float64.
/// Launch: 128 threads, rows / 16 thread blocks. Shared memory: 8.5 KB.
extern "C" __global__ void __launch_bounds__(128) gptq_dots(
    const float* x, const float* y, const float* ridges, unsigned problem_rows, unsigned size, unsigned start,
    unsigned length, double* sums
) {
    __shared__ double shared[16 * (TERMS + 4)];
    Member me;
    double* terms = shared + me.team * (TERMS + 4);
    float ridge = ridges == nullptr ? 0.0f : ridges[me.problem(problem_rows)];
    x += static_cast<size_t>(me.row) * size + start;
    y += static_cast<size_t>(me.row) * length;
    double sum = me.lane == 0 ? sums[me.row] : 0.0;
    for (unsigned from = 0; from < length; from += TERMS) {
        unsigned count = min(TERMS, length - from);
        for (unsigned i = me.lane; i < count; i += TEAM) {
            float value = x[from + i];
            terms[i] = static_cast<double>(value) * static_cast<double>(y[from + i] - ridge * value);
        }
        __syncwarp();
        if (me.lane == 0) {
            for (unsigned i = 0; i < count; ++i) {
                sum += terms[i];
            }
        }
        __syncwarp();
    }
    if (me.lane == 0) {
        sums[me.row] = sum;
    }
}

/// Gives each row of one group the stored scale nearest to its best one if that lowers the error (refit_row in descent.rs).
///
/// slopes, bends [rows] float64. Launch: 128 threads, ceil(rows / 128) thread blocks.
extern "C" __global__ void __launch_bounds__(128)
    gptq_refit(const double* slopes, const double* bends, unsigned rows, float* scales) {
    unsigned row = blockIdx.x * 128 + threadIdx.x;
    if (row < rows) {
        double scale = scales[row], slope = slopes[row], bend = bends[row];
        float better = stored(static_cast<float>(scale + slope / bend));
        double change = static_cast<double>(better) - scale;
        if (change * (2.0 * slope - change * bend) > 0.0) {
            scales[row] = better;
        }
    }
}
