// IQ4_NL and IQ4_XS: four bits a weight that stand for unevenly spaced values; 32 weights for each thread
// (src/format/gguf/blocks/iq4.rs and nearest.rs).
#pragma once

#include "tile.cuh"

/// What level 0..15 stands for (kvalues_iq4nl in llama.cpp).
__device__ constexpr float IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Numbers to the nearest of the values: cells ten wide, each with the point halfway between two values in it, if one is.
struct Nearest {
    float values[16];
    float halfway[32];
    /// The level below that point; the next one from the point on.
    int below[32];
};

/// Fills the table. Ends with a barrier.
__device__ inline void prepare(Nearest& table) {
    int t = threadIdx.x;
    if (t < 16) {
        table.values[t] = IQ4_VALUES[t];
    }
    __syncthreads();
    if (t < 32) {
        // Cells are found by the five low bits of their numbers, -16..15.
        float end = (static_cast<float>(t < 16 ? t : t - 32) + 0.5f) * 10.0f;
        int below = 0;
        float halfway = __int_as_float(0x7f800000);
        for (int i = 0; i < 15; ++i) {
            float middle = (table.values[i] + table.values[i + 1]) / 2.0f;
            if (middle < end - 10.0f) {
                below = i + 1;
            } else if (middle < end) {
                halfway = middle;
            }
        }
        table.below[t] = below;
        table.halfway[t] = halfway;
    }
    __syncthreads();
}

/// The level of the value nearest to a number within +-155; at a halfway point the upper one.
__device__ inline int nearest_level(const Nearest& table, float v) {
    int cell = __float_as_int(v * (1.0f / 10.0f) + MAGIC) & 31;
    return table.below[cell] + (v >= table.halfway[cell] ? 1 : 0);
}

/// Scale of 32 weights that minimises the weighted squared error, of 16 factors (quantize_row_iq4_nl_impl in llama.cpp
/// with ntry 7).
__device__ inline float search_iq4_scale(const Nearest& table, const float (&x)[32], const float (&w)[32]) {
    Extreme most = extreme(x);
    float scale = 0.0f, best = 0.0f;
#pragma unroll 1
    for (int turn = 0; turn < 16; ++turn) {
        float factor = turn == 0 ? 1.0f / (-most.value / -127.0f) : (static_cast<float>(turn - 8) + -127.0f) / most.value;
        float sum_qx = 0.0f, sum_q2 = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            float q = table.values[nearest_level(table, factor * x[i])];
            float wq = w[i] * q;
            sum_qx += wq * x[i];
            sum_q2 += wq * q;
        }
        if (turn == 0) {
            scale = sum_q2 > 0.0f ? sum_qx / sum_q2 : 0.0f;
            best = scale * sum_qx;
        } else if (sum_q2 > 0.0f && sum_qx * sum_qx > best * sum_q2) {
            scale = sum_qx / sum_q2;
            best = scale * sum_qx;
        }
    }
    return most.magnitude < ZERO_BELOW ? 0.0f : scale;
}

/// Packs the levels of the values nearest to factor * x: byte i holds level i and, above it, level i + 16.
__device__ inline void put_iq4_levels(const Nearest& table, const float (&x)[32], float factor, uint8_t* out) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        int levels[2];
        for (int k = 0; k < 2; ++k) {
            float scaled = factor * x[i + 16 * k];
            scaled = scaled < 113.0f ? scaled : 113.0f;
            scaled = scaled > -127.0f ? scaled : -127.0f;
            levels[k] = nearest_level(table, scaled);
        }
        out[i] = levels[0] | levels[1] << 4;
    }
}

/// What each weight counts: from its importance if there is one, else its square.
template <bool IMPORTANCE, int SUBS>
__device__ inline void weigh_iq4(
    const Weights& weights, const Part& part, const float* tile, const float (&x)[32], float (&w)[32]
) {
    if (IMPORTANCE) {
        load_importance(weights, part, w);
        scale_importance(w, x, block_sum_of_squares<32, SUBS>(tile, part) * (2.0f / (32.0f * SUBS)));
    } else {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            w[i] = x[i] * x[i];
        }
    }
}

template <bool WITH_IMPORTANCE>
struct IQ4_NL {
    static constexpr bool IMPORTANCE = WITH_IMPORTANCE;
    static constexpr int SUBS = 1, BYTES = 18;

    __device__ static void encode(const Nearest& table, const Part& part, const float (&x)[32], float scale, float*, uint8_t* out) {
        if (part.active) {
            put_half(out, to_half(scale));
            put_iq4_levels(table, x, inverse(scale), out + 2);
        }
    }
};

template <bool WITH_IMPORTANCE>
struct IQ4_XS {
    static constexpr bool IMPORTANCE = WITH_IMPORTANCE;
    static constexpr int SUBS = 8, BYTES = 136;

    __device__ static void encode(const Nearest& table, const Part& part, const float (&x)[32], float scale, float* scales, uint8_t* out) {
        if (part.active) {
            scales[threadIdx.x] = scale;
        }
        __syncthreads();
        if (!part.active) {
            return;
        }
        const float* all = scales + part.block * SUBS;
        float of_scales = -extreme(all, SUBS).value / 32.0f;
        float factor = inverse(of_scales);
        int level = nearest_within(factor * scale, -32, 31);
        put_iq4_levels(table, x, inverse(of_scales * static_cast<float>(level)), out + 8 + 16 * part.sub);
        if (part.sub == 0) {
            put_half(out, to_half(of_scales));
            uint32_t low = 0, high = 0;
            for (int j = 0; j < SUBS; ++j) {
                uint32_t shifted = nearest_within(factor * all[j], -32, 31) + 32;
                low |= (shifted & 15) << (4 * j);
                high |= (shifted >> 4) << (2 * j);
            }
            put_half(out + 2, static_cast<uint16_t>(high));
            put_half(out + 4, static_cast<uint16_t>(low));
            put_half(out + 6, static_cast<uint16_t>(low >> 16));
        }
    }
};

/// Encodes blocks of IQ4_NL or IQ4_XS.
template <class Type>
__device__ void encode_iq4(const Weights& weights, uint8_t* out) {
    constexpr int SUBS = Type::SUBS, BYTES = Type::BYTES;
    __shared__ float tile[THREADS * 33];
    __shared__ float scales[THREADS];
    __shared__ Nearest table;
    __shared__ __align__(16) uint8_t packed[THREADS / SUBS * BYTES];
    prepare(table);
    load_tile<32, SUBS>(weights, tile);
    Part part = part_of_thread<32, SUBS>(weights);
    float x[32], scale = 0.0f;
    if (part.active) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            x[i] = tile[threadIdx.x * 33 + i];
        }
        float w[32];
        weigh_iq4<Type::IMPORTANCE, SUBS>(weights, part, tile, x, w);
        scale = search_iq4_scale(table, x, w);
    }
    Type::encode(table, part, x, scale, scales, packed + part.block * BYTES);
    store_blocks<BYTES, SUBS>(weights, packed, out);
}
