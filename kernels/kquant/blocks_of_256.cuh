// Q2_K, Q3_K, Q4_K, Q5_K and Q6_K: blocks of 256 weights in sub-blocks of 16 or 32, one sub-block for each thread
// (src/format/gguf/blocks/q2_k.rs, q3_k.rs, q4_k_q5_k.rs and q6_k.rs, which describe the bytes).
//
// Each thread searches for the scale of its sub-block; then one thread of each block quantizes the scales; then each thread
// finds the levels of its weights with the scale as it will be decoded; then all of them pack the levels.
#pragma once

#include "search_affine.cuh"
#include "search_levels.cuh"
#include "search_positive.cuh"
#include "search_symmetric.cuh"
#include "tile.cuh"

/// What the threads of a block tell each other.
struct Exchange {
    float scales[THREADS], mins[THREADS], sums[THREADS];
    uint8_t scale_levels[THREADS], min_levels[THREADS];
    /// Of each block: what its scale levels and minimum levels are multiplied by.
    float scale[THREADS], min[THREADS];
    /// Levels of all weights.
    uint8_t levels[THREADS * 32];
};

/// Packs the two bits from shift on of each of 256 levels: of 128 levels, byte i holds i, i + 32, i + 64 and i + 96. The
/// threads of the block share the 64 bytes.
template <int SUBS>
__device__ inline void pack_2_bits(const uint8_t* levels, int shift, unsigned sub, uint8_t* out) {
    for (int byte = sub; byte < 64; byte += SUBS) {
        const uint8_t* from = levels + byte / 32 * 128 + byte % 32;
        int packed = 0;
        for (int k = 0; k < 4; ++k) {
            packed |= (from[32 * k] >> shift & 3) << (2 * k);
        }
        out[byte] = packed;
    }
}

/// Packs one bit of each of 256 levels: bit k of byte i is that of level i + 32 * k.
template <int SUBS>
__device__ inline void pack_bit(const uint8_t* levels, int bit, unsigned sub, uint8_t* out) {
    for (int byte = sub; byte < 32; byte += SUBS) {
        int packed = 0;
        for (int k = 0; k < 8; ++k) {
            packed |= (levels[byte + 32 * k] >> bit & 1) << k;
        }
        out[byte] = packed;
    }
}

/// Packs the four low bits of each of 256 levels: of 2 * HALF levels, byte i holds i and, above it, i + HALF.
template <int SUBS, int HALF>
__device__ inline void pack_4_bits(const uint8_t* levels, unsigned sub, uint8_t* out) {
    for (int byte = sub; byte < 128; byte += SUBS) {
        const uint8_t* from = levels + byte / HALF * 2 * HALF + byte % HALF;
        out[byte] = (from[0] & 15) | from[HALF] << 4;
    }
}

/// Quantizes scales or minimums of one block; returns what their levels are multiplied by.
template <int SUBS, bool SEARCHED>
__device__ inline float quantize_scales(const float* v, const float* w, int max_level, int limit, uint8_t* out) {
    if (!SEARCHED) {
        return quantize_by_largest<SUBS>(v, max_level, limit, out);
    }
    float scale = search_positive<SUBS>(v, w, max_level, out);
    for (int j = 0; j < SUBS; ++j) {
        out[j] = min(limit, static_cast<int>(out[j]));
    }
    return scale;
}

/// Quantizes scales and minimums of all blocks, each by a thread of its own, and waits for all of them.
template <int SUBS, bool SEARCHED>
__device__ inline void quantize_scales_and_mins(Exchange& e, const Part& part, int max_level, int limit) {
    __syncthreads();
    unsigned first = part.block * SUBS;
    if (part.active && part.sub == 0) {
        e.scale[part.block] =
            quantize_scales<SUBS, SEARCHED>(e.scales + first, e.sums + first, max_level, limit, e.scale_levels + first);
    }
    if (part.active && part.sub == 1) {
        e.min[part.block] =
            quantize_scales<SUBS, SEARCHED>(e.mins + first, e.sums + first, max_level, limit, e.min_levels + first);
    }
    __syncthreads();
}

template <bool IMPORTANCE>
struct Q2_K {
    static constexpr int LEN = 16, SUBS = 16, BYTES = 84;

    __device__ static void encode(
        const Weights& weights, const Part& part, const float* tile, const float (&x)[LEN], Exchange& e, uint8_t* out
    ) {
        unsigned t = threadIdx.x;
        Affine found = {};
        if (part.active) {
            float w[LEN];
            if (IMPORTANCE) {
                load_importance(weights, part, w);
                scale_importance(w, x, block_sum_of_squares<LEN, SUBS>(tile, part) / 256.0f);
                found = search_affine(x, w, with_importance(3));
            } else {
#pragma unroll
                for (int i = 0; i < LEN; ++i) {
                    w[i] = fabsf(x[i]);
                }
                found = search_affine(x, w, {3, -0.5f, 0.1f, 15, true});
            }
            e.scales[t] = found.scale;
            e.mins[t] = found.min;
            e.sums[t] = sum_of(w);
        }
        quantize_scales_and_mins<SUBS, IMPORTANCE>(e, part, 15, 255);
        if (part.active) {
            uint16_t scale = to_half(e.scale[part.block]), min = to_half(e.min[part.block]);
            if (part.sub == 0) {
                put_half(out + 80, scale);
                put_half(out + 82, min);
            }
            uint8_t byte = e.scale_levels[t] | e.min_levels[t] << 4;
            out[part.sub] = byte;
            float sub_scale = from_half(scale) * static_cast<float>(byte & 15);
            float sub_min = from_half(min) * static_cast<float>(byte >> 4);
            if (sub_scale == 0.0f) {
                multiply(x, found.factor, found.offset, 0, 3, e.levels + t * LEN);
            } else {
                divide(x, sub_scale, sub_min, 0, 3, e.levels + t * LEN);
            }
        }
        __syncthreads();
        if (part.active) {
            pack_2_bits<SUBS>(e.levels + part.block * 256, 0, part.sub, out + 16);
        }
    }
};

template <int BITS, bool IMPORTANCE>
struct Q4_K_Q5_K {
    static constexpr int LEN = 32, SUBS = 8, BYTES = BITS == 5 ? 176 : 144;
    static constexpr int TOP = (1 << BITS) - 1;

    __device__ static void encode(
        const Weights& weights, const Part& part, const float* tile, const float (&x)[LEN], Exchange& e, uint8_t* out
    ) {
        unsigned t = threadIdx.x;
        Affine found = {};
        if (part.active) {
            float w[LEN];
            if (IMPORTANCE) {
                load_importance(weights, part, w);
                scale_importance(w, x, 2.0f * block_sum_of_squares<LEN, SUBS>(tile, part) / 256.0f);
                found = search_affine(x, w, with_importance(TOP));
            } else {
                float mean = sqrtf(sum_of_squares(x) / 32.0f);
#pragma unroll
                for (int i = 0; i < LEN; ++i) {
                    w[i] = mean + fabsf(x[i]);
                }
                found = BITS == 4 ? search_affine(x, w, {TOP, -1.0f, 0.1f, 20, false})
                                  : search_affine(x, w, {TOP, -0.5f, 0.1f, 15, false});
            }
            e.scales[t] = found.scale;
            e.mins[t] = found.min;
            e.sums[t] = sum_of(w);
        }
        // Only quantize_row_q4_K_impl of llama.cpp leaves what cannot be represented as it is.
        quantize_scales_and_mins<SUBS, IMPORTANCE>(e, part, 63, IMPORTANCE && BITS == 4 ? 255 : 63);
        if (part.active) {
            uint16_t scale = to_half(e.scale[part.block]), min = to_half(e.min[part.block]);
            if (part.sub == 0) {
                put_half(out, scale);
                put_half(out + 2, min);
            }
            const uint8_t* scales = e.scale_levels + part.block * SUBS;
            const uint8_t* mins = e.min_levels + part.block * SUBS;
            for (int i = part.sub; i < 12; i += SUBS) {
                out[4 + i] = scale_byte(scales, mins, i);
            }
            int j = part.sub;
            int scale_level, min_level;
            if (j < 4) {
                scale_level = scale_byte(scales, mins, j) & 63;
                min_level = scale_byte(scales, mins, j + 4) & 63;
            } else {
                uint8_t low = scale_byte(scales, mins, j + 4);
                scale_level = (low & 15) | scale_byte(scales, mins, j - 4) >> 6 << 4;
                min_level = low >> 4 | scale_byte(scales, mins, j) >> 6 << 4;
            }
            float sub_scale = from_half(scale) * static_cast<float>(scale_level);
            float sub_min = from_half(min) * static_cast<float>(min_level);
            if (sub_scale == 0.0f) {
                multiply(x, found.factor, found.offset, 0, TOP, e.levels + t * LEN);
            } else {
                divide(x, sub_scale, sub_min, 0, TOP, e.levels + t * LEN);
            }
        }
        __syncthreads();
        if (part.active) {
            const uint8_t* levels = e.levels + part.block * 256;
            if (BITS == 5) {
                pack_bit<SUBS>(levels, 4, part.sub, out + 16);
            }
            pack_4_bits<SUBS, 32>(levels, part.sub, out + BYTES - 128);
        }
    }

    /// Byte i of the twelve that hold scales and minimums of six bits.
    __device__ static uint8_t scale_byte(const uint8_t* scales, const uint8_t* mins, int i) {
        if (i < 4) {
            return scales[i] | scales[i + 4] >> 4 << 6;
        }
        if (i < 8) {
            return mins[i - 4] | mins[i] >> 4 << 6;
        }
        return (scales[i - 4] & 15) | mins[i - 4] << 4;
    }
};

template <bool IMPORTANCE>
struct Q3_K {
    static constexpr int LEN = 16, SUBS = 16, BYTES = 110;

    __device__ static void encode(
        const Weights& weights, const Part& part, const float* tile, const float (&x)[LEN], Exchange& e, uint8_t* out
    ) {
        unsigned t = threadIdx.x;
        uint8_t* own_levels = e.levels + t * LEN;
        if (part.active) {
            if (IMPORTANCE) {
                float w[LEN];
                load_importance(weights, part, w);
                scale_importance(w, x, 2.0f * block_sum_of_squares<LEN, SUBS>(tile, part) / 256.0f);
                Symmetric found = search_symmetric(x, w, 4);
                e.scales[t] = found.scale;
                e.sums[t] = sum_of(w);
                levels_of(x, found.factor, 4, own_levels);
            } else {
                e.scales[t] = search_levels(x, 4, own_levels);
            }
        }
        __syncthreads();
        if (part.active && part.sub == 0) {
            const float* scales = e.scales + t;
            e.scale[part.block] = IMPORTANCE ? quantize_by_search(scales, e.sums + t, e.scale_levels + t)
                                             : quantize_by_extreme(scales, e.scale_levels + t);
        }
        __syncthreads();
        if (part.active) {
            uint16_t scale = to_half(e.scale[part.block]);
            if (part.sub == 0) {
                put_half(out + 108, scale);
            }
            const uint8_t* scales = e.scale_levels + part.block * SUBS;
            int j = part.sub;
            if (j < 8) {
                out[96 + j] = (scales[j] & 15) | scales[j + 8] << 4;
            } else if (j < 12) {
                int k = j - 8;
                out[96 + j] =
                    scales[k] >> 4 | scales[k + 4] >> 4 << 2 | scales[k + 8] >> 4 << 4 | scales[k + 12] >> 4 << 6;
            }
            float sub_scale = from_half(scale) * static_cast<float>((scales[j] & 63) - 32);
            // With nothing to divide by, the levels of the search stay.
            if (sub_scale != 0.0f) {
                divide(x, sub_scale, 0.0f, -4, 3, own_levels);
            }
        }
        __syncthreads();
        if (part.active) {
            const uint8_t* levels = e.levels + part.block * 256;
            pack_bit<SUBS>(levels, 2, part.sub, out);
            pack_2_bits<SUBS>(levels, 0, part.sub, out + 32);
        }
    }

    /// Levels of the scales, shifted by 32, by the search that weights have too.
    __device__ static float quantize_by_search(const float* scales, const float* sums, uint8_t* out) {
        float x[SUBS], w[SUBS];
#pragma unroll
        for (int j = 0; j < SUBS; ++j) {
            x[j] = scales[j];
            w[j] = sums[j];
        }
        Symmetric found = search_symmetric(x, w, 32);
        levels_of(x, found.factor, 32, out);
        return found.scale;
    }

    /// Levels of the scales, shifted by 32, relative to the extreme one, which gets -32; all zero where all scales are.
    __device__ static float quantize_by_extreme(const float* scales, uint8_t* out) {
        float max = extreme(scales, SUBS).value;
        bool found = max != 0.0f;
        float factor = -32.0f / max;
        for (int j = 0; j < SUBS; ++j) {
            // The level passes through a signed byte before it is limited.
            int level = static_cast<int8_t>(nearest(factor * scales[j]) & 255);
            out[j] = found ? ::max(-32, min(31, level)) + 32 : 0;
        }
        return found ? 1.0f / factor : 0.0f;
    }
};

template <bool IMPORTANCE>
struct Q6_K {
    static constexpr int LEN = 16, SUBS = 16, BYTES = 210;

    __device__ static void encode(
        const Weights& weights, const Part& part, const float*, const float (&x)[LEN], Exchange& e, uint8_t* out
    ) {
        unsigned t = threadIdx.x;
        Symmetric found = {};
        if (part.active) {
            float w[LEN];
            if (IMPORTANCE) {
                load_importance(weights, part, w);
            } else {
#pragma unroll
                for (int i = 0; i < LEN; ++i) {
                    w[i] = x[i] * x[i];
                }
            }
            found = search_symmetric(x, w, 32);
            e.scales[t] = found.scale;
        }
        __syncthreads();
        Extreme most = {};
        if (part.active) {
            most = extreme(e.scales + part.block * SUBS, SUBS);
            float factor = -128.0f / most.value;
            uint16_t scale = to_half(1.0f / factor);
            uint8_t scale_level = min(127, nearest(factor * e.scales[t]));
            out[192 + part.sub] = scale_level;
            if (part.sub == 0) {
                put_half(out + 208, scale);
            }
            float sub_scale = from_half(scale) * static_cast<float>(static_cast<int8_t>(scale_level));
            if (sub_scale == 0.0f) {
                multiply(x, found.factor, 0.0f, -32, 31, e.levels + t * LEN);
            } else {
                divide(x, sub_scale, 0.0f, -32, 31, e.levels + t * LEN);
            }
        }
        __syncthreads();
        if (part.active) {
            const uint8_t* levels = e.levels + part.block * 256;
            if (most.magnitude < ZERO_BELOW) {
                for (int i = part.sub; i < BYTES; i += SUBS) {
                    out[i] = 0;
                }
            } else {
                pack_4_bits<SUBS, 64>(levels, part.sub, out);
                pack_2_bits<SUBS>(levels, 4, part.sub, out + 128);
            }
        }
    }
};

template <bool IMPORTANCE>
using Q4_K = Q4_K_Q5_K<4, IMPORTANCE>;
template <bool IMPORTANCE>
using Q5_K = Q4_K_Q5_K<5, IMPORTANCE>;

/// Encodes blocks of 256 weights.
template <class Type>
__device__ void encode_blocks_of_256(const Weights& weights, uint8_t* out) {
    constexpr int LEN = Type::LEN;
    __shared__ float tile[THREADS * (LEN + 1)];
    __shared__ Exchange exchange;
    __shared__ __align__(16) uint8_t packed[THREADS / Type::SUBS * Type::BYTES];
    load_tile<LEN, Type::SUBS>(weights, tile);
    Part part = part_of_thread<LEN, Type::SUBS>(weights);
    float x[LEN];
    if (part.active) {
#pragma unroll
        for (int i = 0; i < LEN; ++i) {
            x[i] = tile[threadIdx.x * (LEN + 1) + i];
        }
    }
    Type::encode(weights, part, tile, x, exchange, packed + part.block * Type::BYTES);
    store_blocks<Type::BYTES, Type::SUBS>(weights, packed, out);
}
