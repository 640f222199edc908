// A tile of a product of float32 matrices whose sums go in the order of the CPU's (src/matmul.rs), bit for bit.
//
// A library's product (cuBLAS) sums in an order of its own, which differs between GPUs and versions, and a code that lies
// between two values would go the other way. Here each value is the sum of chunks of 512 products, one after the other; the
// products of a chunk are added to zero in order, each with a fused multiply-add.
#pragma once

#include <cstddef>

constexpr unsigned TILE = 64;  // rows and columns of a thread block
constexpr unsigned DEPTH = 16; // products between two barriers
constexpr unsigned STRIDE = TILE + 4;
constexpr unsigned PRODUCT_THREADS = 64;

/// How a factor lies in memory.
enum class Lies {
    /// [rows or columns of the product, depth]: what is summed over lies side by side.
    Along,
    /// [depth, rows or columns of the product].
    Across,
};

/// A factor of a product: `size` rows (or columns, of the right one), `stride` apart or side by side.
template <Lies LIES>
struct Factor {
    const float* values;
    unsigned stride, size;

    /// Part of a tile that a thread moves.
    static constexpr unsigned MOVED = DEPTH * TILE / PRODUCT_THREADS;

    /// Reads this thread's part of a tile: rows from `first` on, products from `from` to `end`. Zeros where there is nothing.
    __device__ void read(unsigned first, unsigned from, unsigned end, float (&next)[MOVED]) const {
#pragma unroll
        for (unsigned i = 0; i < MOVED; ++i) {
            unsigned row = first + row_of(i), depth = from + depth_of(i);
            size_t at = LIES == Lies::Along ? static_cast<size_t>(row) * stride + depth : static_cast<size_t>(depth) * stride + row;
            next[i] = row < size && depth < end ? values[at] : 0.0f;
        }
    }

    __device__ static void store(const float (&next)[MOVED], float* tile) {
#pragma unroll
        for (unsigned i = 0; i < MOVED; ++i) {
            tile[depth_of(i) * STRIDE + row_of(i)] = next[i];
        }
    }

    /// Consecutive threads read what lies side by side.
    __device__ static unsigned row_of(unsigned i) {
        return LIES == Lies::Along ? threadIdx.x / DEPTH + i * (PRODUCT_THREADS / DEPTH) : threadIdx.x;
    }

    __device__ static unsigned depth_of(unsigned i) { return LIES == Lies::Along ? threadIdx.x % DEPTH : i; }
};

/// Four values that lie side by side in a tile, twice.
__device__ inline void read_eight(const float* from, float (&to)[8]) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
        float4 four = *reinterpret_cast<const float4*>(from + half * 32);
        to[4 * half] = four.x;
        to[4 * half + 1] = four.y;
        to[4 * half + 2] = four.z;
        to[4 * half + 3] = four.w;
    }
}

/// Computes 64 rows and columns of a product from `first_row` and `first_column` on, over the depths start..end of one chunk,
/// and gives each value to `store(row, column, sum)`. 64 threads; each sums 8 x 8 values in registers. Factors come through
/// shared memory (8.5 KB), the next part of them read while the present one is multiplied.
template <Lies A, Lies B, class Store>
__device__ inline void product_tile(
    const Factor<A>& a, const Factor<B>& b, unsigned first_row, unsigned first_column, unsigned start, unsigned end, Store store
) {
    __shared__ __align__(16) float tile_a[DEPTH * STRIDE];
    __shared__ __align__(16) float tile_b[DEPTH * STRIDE];
    unsigned x = threadIdx.x % 8, y = threadIdx.x / 8;
    float next_a[Factor<A>::MOVED], next_b[Factor<B>::MOVED];
    float sums[8][8] = {};
    auto multiply = [&](unsigned t) {
        float va[8], vb[8];
        read_eight(tile_a + t * STRIDE + y * 4, va);
        read_eight(tile_b + t * STRIDE + x * 4, vb);
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) {
#pragma unroll
            for (unsigned j = 0; j < 8; ++j) {
                sums[i][j] = fmaf(va[i], vb[j], sums[i][j]);
            }
        }
    };
    a.read(first_row, start, end, next_a);
    b.read(first_column, start, end, next_b);
    for (unsigned from = start; from < end; from += DEPTH) {
        a.store(next_a, tile_a);
        b.store(next_b, tile_b);
        __syncthreads();
        if (from + DEPTH < end) {
            a.read(first_row, from + DEPTH, end, next_a);
            b.read(first_column, from + DEPTH, end, next_b);
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
            if (row < a.size && column < b.size) {
                store(row, column, sums[i][j]);
            }
        }
    }
}
