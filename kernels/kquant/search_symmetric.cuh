// Scale of a block whose levels lie on both sides of zero (make_qx_quants in llama.cpp with rmse_type 1, and
// src/format/gguf/blocks/search_qx.rs).
#pragma once

#include "../arithmetic.cuh"

struct Symmetric {
    /// The scale; zero for a zero block.
    float scale;
    /// What takes weights to the levels that the scale goes with; not a number for a zero block.
    float factor;
};

/// Scale that minimises the weighted squared error, of 19 factors around the one that takes the extreme value to the
/// level -levels.
template <int L>
__device__ Symmetric search_symmetric(const float (&x)[L], const float (&w)[L], int levels) {
    Extreme most = extreme(x);
    float factor = 0.0f, scale = 0.0f, best = 0.0f;
    // Plain rounding first, then steps of a tenth of a level away from it.
#pragma unroll 1
    for (int turn = 0; turn < 19; ++turn) {
        int step = turn == 0 ? 0 : turn < 10 ? turn - 10 : turn - 9;
        float tried = -(static_cast<float>(levels) + 0.1f * static_cast<float>(step)) / most.value;
        float sum_lx = 0.0f, sum_l2 = 0.0f;
#pragma unroll
        for (int i = 0; i < L; ++i) {
            float l = static_cast<float>(nearest_within(tried * x[i], -levels, levels - 1));
            sum_lx += w[i] * x[i] * l;
            sum_l2 += w[i] * l * l;
        }
        if (turn == 0) {
            factor = tried;
            scale = sum_l2 != 0.0f ? sum_lx / sum_l2 : 0.0f;
            best = scale * sum_lx;
        } else if (sum_l2 > 0.0f && sum_lx * sum_lx > best * sum_l2) {
            factor = tried;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    bool is_zero = most.magnitude < ZERO_BELOW;
    return {is_zero ? 0.0f : scale, is_zero ? __int_as_float(0x7fc00000) : factor};
}

/// Levels that go with a factor, shifted by levels to start at zero; zero where the factor is not a number.
template <int L>
__device__ inline void levels_of(const float (&x)[L], float factor, int levels, uint8_t* out) {
    multiply(x, factor, 0.0f, -levels, levels - 1, out);
}
