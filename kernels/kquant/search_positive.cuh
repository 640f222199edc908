// Scale of the scales: x ~ scale * level where nothing is expected to be negative (make_qp_quants in llama.cpp, and
// src/format/gguf/blocks/search_qp.rs).
#pragma once

#include "../arithmetic.cuh"

/// Scale of up to max_level steps, and the bytes that stand for x, minimising the weighted squared error. A level is kept as
/// the byte that it is in llama.cpp, so a negative x wraps as it does there.
template <int L>
__device__ float search_positive(const float* x, const float* w, int max_level, uint8_t* out) {
    float max = 0.0f;
    for (int i = 0; i < L; ++i) {
        max = max > x[i] ? max : x[i];
    }
    if (max < ZERO_BELOW) {
        for (int i = 0; i < L; ++i) {
            out[i] = 0;
        }
        return 0.0f;
    }
    float factor = static_cast<float>(max_level) / max;
    float best = 0.0f;
#pragma unroll 1
    for (int turn = 0; turn < 9; ++turn) {
        // Plain rounding first, then steps of a tenth of a level away from it.
        int step = turn == 0 ? 0 : turn < 5 ? turn - 5 : turn - 4;
        float tried = (0.1f * static_cast<float>(step) + static_cast<float>(max_level)) / max;
        float scale = 1.0f / tried;
        float error = 0.0f;
        for (int i = 0; i < L; ++i) {
            int level = nearest(tried * x[i]);
            level = turn == 0 ? level & 255 : min(max_level, level);
            float difference = x[i] - scale * static_cast<float>(level);
            error += w[i] * difference * difference;
        }
        if (turn == 0) {
            best = error;
        } else if (error < best) {
            best = error;
            factor = tried;
        }
    }

    float sum_lx = 0.0f, sum_l2 = 0.0f;
    for (int i = 0; i < L; ++i) {
        int level = min(max_level, nearest(factor * x[i]));
        float l = static_cast<float>(level);
        out[i] = level & 255;
        sum_lx += w[i] * x[i] * l;
        sum_l2 += w[i] * l * l;
    }
#pragma unroll 1
    for (int turn = 0; turn < 5; ++turn) {
        bool changed = false;
        for (int i = 0; i < L; ++i) {
            float wx = w[i] * x[i];
            float old = static_cast<float>(out[i]);
            float lx = sum_lx - wx * old;
            float l2 = sum_l2 - w[i] * old * old;
            int level = min(max_level, nearest(x[i] * l2 / lx));
            float l = static_cast<float>(level);
            if (lx > 0.0f && l2 > 0.0f && l != old) {
                lx += wx * l;
                l2 += w[i] * l * l;
                if (lx * lx * sum_l2 > sum_lx * sum_lx * l2) {
                    out[i] = level & 255;
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
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

/// Bytes of values relative to the largest one, which gets max_level; returns the scale.
template <int L>
__device__ float quantize_by_largest(const float* x, int max_level, int limit, uint8_t* out) {
    float max = 0.0f;
    for (int i = 0; i < L; ++i) {
        max = x[i] > max ? x[i] : max;
    }
    float top = static_cast<float>(max_level);
    float factor = max > 0.0f ? top / max : 0.0f;
    for (int i = 0; i < L; ++i) {
        out[i] = min(limit, nearest(factor * x[i]) & 255);
    }
    return max / top;
}
