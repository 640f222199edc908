// Search for levels and scale of a sub-block of Q3_K, one level after the other (make_q3_quants in llama.cpp with do_rmse,
// and src/format/gguf/blocks/search_q3.rs).
#pragma once

#include "../arithmetic.cuh"

/// Scale and levels that maximise the fit to x, each weight counting with its square. Levels are -levels..levels and come
/// back shifted by levels; a zero block has scale and shifted levels of zero.
template <int L>
__device__ float search_levels(const float (&x)[L], int levels, uint8_t* out) {
    Extreme most = extreme(x);
    if (most.magnitude < ZERO_BELOW) {
        for (int i = 0; i < L; ++i) {
            out[i] = 0;
        }
        return 0.0f;
    }
    float factor = -static_cast<float>(levels) / most.value;
    float found[L];
    float sum_lx = 0.0f, sum_l2 = 0.0f;
#pragma unroll
    for (int i = 0; i < L; ++i) {
        float w = x[i] * x[i];
        float l = static_cast<float>(nearest_within(factor * x[i], -levels, levels - 1));
        found[i] = l;
        sum_lx += w * x[i] * l;
        sum_l2 += w * l * l;
    }
#pragma unroll 1
    for (int turn = 0; turn < 5; ++turn) {
        bool changed = false;
#pragma unroll
        for (int i = 0; i < L; ++i) {
            float w = x[i] * x[i];
            float lx = sum_lx - w * x[i] * found[i];
            float l2 = sum_l2 - w * found[i] * found[i];
            float l = static_cast<float>(nearest_within(x[i] * l2 / lx, -levels, levels - 1));
            if (lx > 0.0f && l != found[i]) {
                lx += w * x[i] * l;
                l2 += w * l * l;
                if (l2 > 0.0f && lx * lx * sum_l2 > sum_lx * sum_lx * l2) {
                    found[i] = l;
                    sum_lx = lx;
                    sum_l2 = l2;
                    changed = true;
                }
            }
        }
        if (!changed) {
            break;
        }
    }
#pragma unroll
    for (int i = 0; i < L; ++i) {
        out[i] = static_cast<int>(found[i]) + levels;
    }
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}
