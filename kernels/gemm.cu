// Products of float32 matrices whose sums go in the order of the CPU's (src/quant/gemm.rs), bit for bit.
//
// A library's product (cuBLAS) sums in an order of its own, which differs between GPUs and versions, and a code that lies
// between two values would go the other way. Here each value is the sum of chunks of 512 products, one after the other; the
// products of a chunk are added to zero in order, each with a fused multiply-add. Chunks do not depend on each other, so
// that a product of few columns has work for a whole GPU: gemm_chunks computes each in thread blocks of its own, and
// gemm_sum adds them up.
#include <cstddef>

constexpr unsigned TILE = 64;  // rows and columns of a thread block
constexpr unsigned DEPTH = 16; // products between two barriers
constexpr unsigned STRIDE = TILE + 4;
constexpr unsigned THREADS = 64;

/// Part of a tile that a thread moves: DEPTH * TILE / THREADS values of each factor.
constexpr unsigned MOVED = DEPTH * TILE / THREADS;

/// out[z] = a[:, chunk z] * b[chunk z, :] for row-major matrices.
///
/// a    [m, k] float32, rows a_stride apart
/// b    [k, n] float32, rows b_stride apart
/// out  [chunks, m, n] float32
///
/// Launch: 64 threads; ceil(n / 64) x ceil(m / 64) x ceil(k / chunk) thread blocks. Each thread sums 8 x 8 values in
/// registers; factors come through shared memory (8.5 KB), the next part of them read while the present one is multiplied.
extern "C" __global__ void __launch_bounds__(THREADS) gemm_chunks(
    const float* a, unsigned a_stride, const float* b, unsigned b_stride, unsigned m, unsigned n, unsigned k,
    unsigned chunk, float* out
) {
    __shared__ __align__(16) float tile_a[DEPTH * STRIDE]; // [k, m]
    __shared__ __align__(16) float tile_b[DEPTH * STRIDE]; // [k, n]
    unsigned first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    unsigned start = blockIdx.z * chunk, end = min(start + chunk, k);
    unsigned x = threadIdx.x % 8, y = threadIdx.x / 8;
    // A thread reads one column of the part of a, and one of the part of b.
    unsigned a_k = threadIdx.x % DEPTH, a_row = threadIdx.x / DEPTH;
    float next_a[MOVED], next_b[MOVED];
    auto read = [&](unsigned from) {
#pragma unroll
        for (unsigned i = 0; i < MOVED; ++i) {
            unsigned row = first_row + a_row + i * (THREADS / DEPTH), column = first_column + threadIdx.x;
            bool in_a = row < m && from + a_k < end, in_b = column < n && from + i < end;
            next_a[i] = in_a ? a[static_cast<size_t>(row) * a_stride + from + a_k] : 0.0f;
            next_b[i] = in_b ? b[static_cast<size_t>(from + i) * b_stride + column] : 0.0f;
        }
    };
    float sums[8][8] = {};
    auto multiply = [&](unsigned t) {
        float va[8], vb[8];
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            float4 four = *reinterpret_cast<const float4*>(tile_a + t * STRIDE + half * 32 + y * 4);
            va[4 * half] = four.x, va[4 * half + 1] = four.y, va[4 * half + 2] = four.z, va[4 * half + 3] = four.w;
            four = *reinterpret_cast<const float4*>(tile_b + t * STRIDE + half * 32 + x * 4);
            vb[4 * half] = four.x, vb[4 * half + 1] = four.y, vb[4 * half + 2] = four.z, vb[4 * half + 3] = four.w;
        }
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) {
#pragma unroll
            for (unsigned j = 0; j < 8; ++j) {
                sums[i][j] = fmaf(va[i], vb[j], sums[i][j]);
            }
        }
    };
    read(start);
    for (unsigned from = start; from < end; from += DEPTH) {
#pragma unroll
        for (unsigned i = 0; i < MOVED; ++i) {
            tile_a[a_k * STRIDE + a_row + i * (THREADS / DEPTH)] = next_a[i];
            tile_b[i * STRIDE + threadIdx.x] = next_b[i];
        }
        __syncthreads();
        if (from + DEPTH < end) {
            read(from + DEPTH);
        }
        if (from + DEPTH <= end) {
#pragma unroll
            for (unsigned t = 0; t < DEPTH; ++t) {
                multiply(t);
            }
        } else {
            // Zeros beyond the end are not added: they could turn a negative zero into a positive one.
            for (unsigned t = 0; t < end - from; ++t) {
                multiply(t);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
        unsigned row = first_row + i / 4 * 32 + y * 4 + i % 4;
#pragma unroll
        for (unsigned j = 0; j < 8; ++j) {
            unsigned column = first_column + j / 4 * 32 + x * 4 + j % 4;
            if (row < m && column < n) {
                out[(static_cast<size_t>(blockIdx.z) * m + row) * n + column] = sums[i][j];
            }
        }
    }
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
