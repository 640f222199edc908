// Products of float32 matrices (product.cuh).
#include "product.cuh"

/// out[z] = a[:, chunk z] * b[chunk z, :] for row-major matrices.
///
/// a    [m, k] float32, rows a_stride apart
/// b    [k, n] float32, rows b_stride apart
/// out  [chunks, m, n] float32
///
/// Chunks do not depend on each other, so that a product of few columns has work for a whole GPU: each is computed by thread
/// blocks of its own, and gemm_sum adds them up. Launch: 64 threads; ceil(n / 64) x ceil(m / 64) x ceil(k / chunk) thread
/// blocks.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS) gemm_chunks(
    const float* a, unsigned a_stride, const float* b, unsigned b_stride, unsigned m, unsigned n, unsigned k,
    unsigned chunk, float* out
) {
    Factor<Lies::Along> left = {a, a_stride, m};
    Factor<Lies::Across> right = {b, b_stride, n};
    unsigned start = blockIdx.z * chunk, end = min(start + chunk, k);
    product_tile(left, right, blockIdx.y * TILE, blockIdx.x * TILE, start, end, [&](unsigned row, unsigned column, float sum) {
        out[(static_cast<size_t>(blockIdx.z) * m + row) * n + column] = sum;
    });
}

/// out = chunks[0] + chunks[1] + ..., one after the other.
///
/// chunks [count, values] float32, out [values] float32. Launch: 128 threads, ceil(values / 128) thread blocks.
extern "C" __global__ void __launch_bounds__(128)
    gemm_sum(const float* chunks, unsigned count, size_t values, float* out) {
    size_t at = static_cast<size_t>(blockIdx.x) * 128 + threadIdx.x;
    if (at < values) {
        float sum = chunks[at];
        for (unsigned chunk = 1; chunk < count; ++chunk) {
            sum += chunks[chunk * values + at];
        }
        out[at] = sum;
    }
}
