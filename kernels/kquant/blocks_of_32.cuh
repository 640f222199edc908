// Q4_0, Q5_0, Q4_1, Q5_1 and Q8_0: blocks of 32 weights, one for each thread (src/format/gguf/blocks/symmetric32.rs,
// affine32.rs and q8_0.rs, which describe the bytes).
#pragma once

#include "search_affine.cuh"
#include "search_symmetric.cuh"
#include "tile.cuh"

/// Bytes of the levels of a block.
__host__ __device__ constexpr int level_bytes(int bits) {
    return bits == 5 ? 20 : 16;
}

/// Packs 32 levels: for five bits a word of their highest bits, then two levels to a byte, i and i + 16.
template <int BITS>
__device__ inline void pack_levels(const uint8_t (&levels)[32], uint8_t* out) {
    if (BITS == 5) {
        uint32_t high = 0;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            high |= static_cast<uint32_t>(levels[i] >> 4 & 1) << i;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            *out++ = high >> (8 * i) & 255;
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        out[i] = (levels[i] & 15) | levels[i + 16] << 4;
    }
}

template <int BITS, bool IMPORTANCE>
struct Symmetric32 {
    static constexpr int BYTES = 2 + level_bytes(BITS);

    __device__ static void encode(const Weights& weights, const Part& part, const float (&x)[32], uint8_t* out) {
        constexpr int HALF = 1 << (BITS - 1);
        uint8_t levels[32];
        float scale;
        if (IMPORTANCE) {
            float w[32];
            load_importance(weights, part, w);
            scale_importance(w, x, weights.mean_squares[part.start / weights.columns]);
            Symmetric found = search_symmetric(x, w, HALF);
            scale = found.scale;
            multiply(x, found.factor, 0.0f, -HALF, HALF - 1, levels);
        } else {
            scale = extreme(x).value / -static_cast<float>(HALF);
            float factor = inverse(scale);
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                levels[i] = min(2 * HALF - 1, truncated(x[i] * factor + (static_cast<float>(HALF) + 0.5f)));
            }
        }
        put_half(out, to_half(scale));
        pack_levels<BITS>(levels, out + 2);
    }
};

template <int BITS, bool IMPORTANCE>
struct Affine32 {
    static constexpr int BYTES = 4 + level_bytes(BITS);

    __device__ static void encode(const Weights& weights, const Part& part, const float (&x)[32], uint8_t* out) {
        constexpr int TOP = (1 << BITS) - 1;
        uint8_t levels[32];
        float scale, min;
        if (IMPORTANCE) {
            float w[32];
            load_importance(weights, part, w);
            scale_importance(w, x, weights.mean_squares[part.start / weights.columns]);
            Affine found = search_affine(x, w, with_importance(TOP));
            scale = found.scale;
            min = -found.min;
            multiply(x, found.factor, found.offset, 0, TOP, levels);
        } else {
            min = x[0];
            float max = x[0];
#pragma unroll
            for (int i = 1; i < 32; ++i) {
                min = x[i] < min ? x[i] : min;
                max = x[i] > max ? x[i] : max;
            }
            scale = (max - min) / static_cast<float>(TOP);
            float factor = inverse(scale);
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                levels[i] = ::min(TOP, truncated((x[i] - min) * factor + 0.5f));
            }
        }
        put_half(out, to_half(scale));
        put_half(out + 2, to_half(min));
        pack_levels<BITS>(levels, out + 4);
    }
};

struct Q8_0 {
    static constexpr int BYTES = 34;

    __device__ static void encode(const Weights&, const Part&, const float (&x)[32], uint8_t* out) {
        float scale = extreme(x).magnitude / 127.0f;
        float factor = inverse(scale);
        put_half(out, to_half(scale));
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            float v = x[i] * factor;
            // The largest float below one half, away from zero: one half itself would carry 0.49999997 over to 1.
            float half = __uint_as_float(0x3effffffu);
            out[2 + i] = truncated(v + (v < 0.0f ? -half : half)) & 255;
        }
    }
};

template <bool IMPORTANCE>
using Q4_0 = Symmetric32<4, IMPORTANCE>;
template <bool IMPORTANCE>
using Q5_0 = Symmetric32<5, IMPORTANCE>;
template <bool IMPORTANCE>
using Q4_1 = Affine32<4, IMPORTANCE>;
template <bool IMPORTANCE>
using Q5_1 = Affine32<5, IMPORTANCE>;

/// Encodes blocks of 32 weights.
template <class Type>
__device__ void encode_blocks_of_32(const Weights& weights, uint8_t* out) {
    __shared__ float tile[THREADS * 33];
    __shared__ __align__(16) uint8_t packed[THREADS * Type::BYTES];
    load_tile<32, 1>(weights, tile);
    Part part = part_of_thread<32, 1>(weights);
    if (part.active) {
        float x[32];
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            x[i] = tile[threadIdx.x * 33 + i];
        }
        Type::encode(weights, part, x, packed + threadIdx.x * Type::BYTES);
    }
    store_blocks<Type::BYTES, 1>(weights, packed, out);
}
