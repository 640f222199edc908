// How weights come to the threads and blocks go back.
//
// A thread block has 128 threads, and each thread LEN weights in registers: a sub-block of its own. Sub-blocks of one GGML
// block are those of consecutive threads. Weights are read through a tile in shared memory, 16 bytes by consecutive threads
// at a time; rows of the tile are one float longer than needed, so that threads read them without bank conflicts.
#pragma once

#include "../arithmetic.cuh"

constexpr int THREADS = 128;

/// What all kernels are given.
struct Weights {
    /// Whole rows of weights.
    const float* x;
    /// One importance per column, or null.
    const float* importance;
    /// The mean square of each row, for types that need it with importance.
    const float* mean_squares;
    /// Weights of a row.
    unsigned columns;
    /// GGML blocks in all.
    unsigned blocks;
};

/// A thread's part of the work.
struct Part {
    /// Sub-block of the GGML block.
    unsigned sub;
    /// GGML block within the thread block.
    unsigned block;
    /// The first weight, counted from the start of all rows.
    size_t start;
    /// Column of the first weight.
    unsigned column;
    /// Whether there is such a block.
    bool active;
};

template <int LEN, int SUBS>
__device__ inline Part part_of_thread(const Weights& weights) {
    unsigned block = threadIdx.x / SUBS;
    size_t sub_block = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    size_t start = sub_block * LEN;
    return {
        threadIdx.x % SUBS, block, start, static_cast<unsigned>(start % weights.columns),
        blockIdx.x * (THREADS / SUBS) + block < weights.blocks,
    };
}

/// Reads the thread block's weights. Ends with a barrier.
template <int LEN, int SUBS>
__device__ inline void load_tile(const Weights& weights, float* tile) {
    size_t start = static_cast<size_t>(blockIdx.x) * THREADS * LEN;
    size_t all = static_cast<size_t>(weights.blocks) * SUBS * LEN;
    const float4* source = reinterpret_cast<const float4*>(weights.x + start);
    for (int i = threadIdx.x; i < THREADS * LEN / 4; i += THREADS) {
        if (start + 4 * static_cast<size_t>(i) < all) {
            float4 four = source[i];
            float* to = tile + 4 * i / LEN * (LEN + 1) + 4 * i % LEN;
            to[0] = four.x;
            to[1] = four.y;
            to[2] = four.z;
            to[3] = four.w;
        }
    }
    __syncthreads();
}

/// The importance of a thread's weights.
template <int LEN>
__device__ inline void load_importance(const Weights& weights, const Part& part, float (&w)[LEN]) {
    const float4* source = reinterpret_cast<const float4*>(weights.importance + part.column);
#pragma unroll
    for (int i = 0; i < LEN / 4; ++i) {
        float4 four = source[i];
        w[4 * i] = four.x;
        w[4 * i + 1] = four.y;
        w[4 * i + 2] = four.z;
        w[4 * i + 3] = four.w;
    }
}

/// Sum of the squares of a whole GGML block, from the first weight to the last.
template <int LEN, int SUBS>
__device__ inline float block_sum_of_squares(const float* tile, const Part& part) {
    float sum = 0.0f;
    for (int j = 0; j < SUBS; ++j) {
        const float* row = tile + (part.block * SUBS + j) * (LEN + 1);
        for (int i = 0; i < LEN; ++i) {
            sum += row[i] * row[i];
        }
    }
    return sum;
}

/// Writes the thread block's GGML blocks. Begins with a barrier.
template <int BYTES, int SUBS>
__device__ inline void store_blocks(const Weights& weights, const uint8_t* packed, uint8_t* out) {
    __syncthreads();
    constexpr unsigned PER_TILE = THREADS / SUBS;
    static_assert(PER_TILE * BYTES % 16 == 0 && BYTES % 2 == 0, "what a full thread block writes is whole 16 bytes");
    unsigned first = blockIdx.x * PER_TILE;
    uint8_t* to = out + static_cast<size_t>(first) * BYTES;
    if (weights.blocks - first >= PER_TILE) {
        for (unsigned i = threadIdx.x; i < PER_TILE * BYTES / 16; i += THREADS) {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(packed)[i];
        }
    } else {
        for (unsigned i = threadIdx.x; i < (weights.blocks - first) * BYTES / 2; i += THREADS) {
            reinterpret_cast<uint16_t*>(to)[i] = reinterpret_cast<const uint16_t*>(packed)[i];
        }
    }
}

__device__ inline void put_half(uint8_t* out, uint16_t half) {
    out[0] = half & 255;
    out[1] = half >> 8;
}
