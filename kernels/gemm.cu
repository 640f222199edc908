// Products of float32 matrices (product.cuh).
#include "product.cuh"

/// out[c, z] = a[z][:, chunk c] * b[z][chunk c] for row-major matrices.
///
/// a    [m, k] float32, rows a_stride apart, products a_step apart
/// b    [k, n] float32, rows b_stride apart, products b_step apart
/// out  [chunks, products, m, n] float32
///
/// Chunks do not depend on each other, so that a product of few columns has work for a whole GPU: each is computed by thread
/// blocks of its own, and gemm_sum adds them up. Launch: 64 threads; ceil(n / 64) x ceil(m / 64) x products * chunks thread
/// blocks.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS) gemm_chunks(
    const float* a, size_t a_step, unsigned a_stride, const float* b, size_t b_step, unsigned b_stride, unsigned m,
    unsigned n, unsigned k, unsigned chunk, float* out
) {
    unsigned chunks = (k + chunk - 1) / chunk, products = gridDim.z / chunks;
    unsigned c = blockIdx.z % chunks, z = blockIdx.z / chunks;
    Factor<Lies::Along> left = {a + z * a_step, a_stride, m};
    Factor<Lies::Across> right = {b + z * b_step, b_stride, n};
    unsigned start = c * chunk, end = min(start + chunk, k);
    out += static_cast<size_t>(c * products + z) * m * n;
    product_tile(left, right, blockIdx.y * TILE, blockIdx.x * TILE, start, end, [&](unsigned row, unsigned column, float sum) {
        out[static_cast<size_t>(row) * n + column] = sum;
    });
}

/// A product of matrices, or several of one shape, of which one chunk is added: as the host passes it.
struct Products {
    const float *a, *b, *bias;                   // bias: one value for each column, added after the last chunk; or null
    float* out;
    unsigned long long a_step, b_step, out_step; // values from one product to the next
    unsigned a_stride, b_stride, out_stride;     // values from one row to the next
    unsigned share;                              // products in a row that have the same b
    unsigned m, n;
    unsigned start, end;                         // the chunk; the first one starts at 0
};

/// Adds a chunk to a tile of a product.
template <Lies B>
__device__ inline void add_chunk(const Products& p) {
    size_t z = blockIdx.z;
    Factor<Lies::Along> left = {p.a + z * p.a_step, p.a_stride, p.m};
    Factor<B> right = {p.b + z / p.share * p.b_step, p.b_stride, p.n};
    product_tile(left, right, blockIdx.y * TILE, blockIdx.x * TILE, p.start, p.end, [&](unsigned row, unsigned column, float sum) {
        float* to = p.out + z * p.out_step + static_cast<size_t>(row) * p.out_stride + column;
        float total = p.start == 0 ? sum : *to + sum;
        *to = p.bias != nullptr ? total + p.bias[column] : total;
    });
}

/// out[z] += a[z][:, chunk] * b[z / share][:, chunk]^T: a linear layer, or queries times keys. For many rows, as those of a
/// batch of tokens, which have work for a whole GPU: chunks come one after the other, and only the result takes memory.
///
/// a    [m, k] float32, rows a_stride apart, products a_step apart; b [n, k] likewise
/// out  [m, n] float32
///
/// Launch, for each chunk: 64 threads; ceil(n / 64) x ceil(m / 64) x products thread blocks.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 6) gemm_along(Products products) {
    add_chunk<Lies::Along>(products);
}

/// out[z] += a[z][:, chunk] * b[z / share][chunk]: weights of attention times values. As gemm_along, but for b, which is [k, n].
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS) gemm_across(Products products) {
    add_chunk<Lies::Across>(products);
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
